"""``RUN/faults``: the batches of steps that had no finite loss or gradient, loss spikes, and the ways back taken."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from imagen.errors import UserError
from imagen.files import atomic_write, disk_errors, naming, write_json
from imagen.randomness import seed_of
from imagen.types import Batch, Place, TextEmbedding


@dataclass(frozen=True)
class Rollback:
    """At step ``failed`` a run gave up and went back to its state after step ``back_to``."""

    failed: int
    back_to: int


def save_batch(folder: Path, name: str, batch: Batch, known: dict[str, Any]) -> Path:
    """Write ``<name>.safetensors``: pixels, tokens, masks, and in its metadata keys, captions and what is ``known``."""
    tensors = {
        "image": batch.image,
        "can_flip": batch.can_flip,
        **{f"text.{key}": getattr(batch.text, key) for key in ("tokens", "mask", "absent")},
    }
    metadata = {"keys": batch.key, "captions": batch.caption, "place": asdict(batch.place), **known}
    path = folder / f"{name}.safetensors"
    with atomic_write(path) as temporary, disk_errors():
        plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        save_file(plain, temporary, {key: json.dumps(value) for key, value in metadata.items()})
    return path


def read_batch(path: str | Path) -> tuple[Batch, dict[str, Any]]:
    """A batch that was saved, ready for the loss, and what was known of it: step, seed, rank, loss, gradient_norm.

    Raises: UserError if it is damaged, or something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            known = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
        text = TextEmbedding(*(tensors[f"text.{key}"] for key in ("tokens", "mask", "absent")))
        keys, captions, place = known.pop("keys"), known.pop("captions"), Place(**known.pop("place"))
        return Batch(tensors["image"], text, tensors["can_flip"], keys, captions, place), known
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"batch '{path}' is damaged, or was not saved by a training ({error}): give another") from error


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add a line of JSON to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_rollbacks(folder: Path, step: int) -> list[Rollback]:
    """Those that a run which goes on from ``step`` has behind it; later ones are of a run that is given up."""
    path = folder / "rollbacks.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return [rollback for rollback in (Rollback(**row) for row in rows) if rollback.back_to <= step]


def write_rollbacks(folder: Path, rollbacks: list[Rollback]) -> None:
    write_json(folder / "rollbacks.json", [asdict(rollback) for rollback in rollbacks])


def training_seed(seed: int, rollbacks: list[Rollback]) -> int:
    """What the draws of training begin with: another number after each way back, or the run would fail as before."""
    return seed_of(seed, "rollback", len(rollbacks)) if rollbacks else seed


def robust_score(value: float, window: list[float]) -> float:
    """How many standard deviations ``value`` lies above the median of ``window``, these taken from the median too.

    1.4826 times the median absolute deviation is a normal distribution's standard deviation. It is taken for at least
    a thousandth of the median, or where all are alike the least change would be many.
    """
    values = torch.tensor(window, dtype=torch.float64)
    median = values.quantile(0.5)
    deviation = 1.4826 * (values - median).abs().quantile(0.5)
    least = max(1e-3 * abs(median.item()), 1e-12)
    return ((value - median) / deviation.clamp(min=least)).item()
