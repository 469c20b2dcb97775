"""A small set in the folder contract, written by hand so that tests can break it in every way."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagen.data.shards import ENCODER_MEMBER, stats_path, text_folder, write_tar
from imagen.data.tokens import dump_tokens
from imagen.text_encoder import Hash

ENCODER = Hash(name="hash", width=8, max_length=16)

Members = list[tuple[str, bytes]]


def picture(number: int, size: int = 8) -> bytes:
    """A PNG whose pixels say which sample it is: red = number % 256, green = number // 256."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (number % 256, number // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def number_of(image: np.ndarray) -> int:
    """Undo ``picture``: ``image`` is [3 h w]."""
    return int(image[0, 0, 0]) + 256 * int(image[1, 0, 0])


def caption(number: int) -> str:
    return f"picture {number}"


def image_members(numbers: range, size: int = 8) -> Members:
    members: Members = []
    for i in numbers:
        key = f"{i:05}"
        info = json.dumps({"caption": caption(i), "key": key, "width": size, "height": size}).encode()
        members += [(f"{key}.json", info), (f"{key}.png", picture(i, size)), (f"{key}.txt", caption(i).encode())]
    return members


def text_members(numbers: range, encoder: Hash = ENCODER) -> Members:
    text = encoder.encode([caption(i) for i in numbers] or ["none"])
    rows = [row[mask] for row, mask in zip(text.tokens, text.mask, strict=True)][: len(numbers)]
    members = [(ENCODER_MEMBER, json.dumps(encoder.fingerprint()).encode())]
    return members + [
        (f"{i:05}.safetensors", dump_tokens(row, caption(i))) for i, row in zip(numbers, rows, strict=True)
    ]


def write_shard(tar: Path, members: Members, successes: int) -> None:
    write_tar(tar, members)
    stats_path(tar).write_text(json.dumps({"count": successes, "successes": successes}))


def write_split(
    root: Path,
    split: str,
    counts: list[int],
    *,
    size: int = 8,
    encoder: Hash = ENCODER,
    images: Callable[[int, Members], Members] = lambda shard, members: members,
    texts: Callable[[int, Members], Members] = lambda shard, members: members,
) -> None:
    """Shards of ``counts`` samples numbered through; ``images`` and ``texts`` may change a shard's members."""
    first = 0
    text = text_folder(root, split, encoder.name, encoder.fingerprint())
    for shard, count in enumerate(counts):
        numbers = range(first, first + count)
        tar = root / split / f"images-{size}" / f"{shard:05}.tar"
        write_shard(tar, images(shard, image_members(numbers, size)), count)
        write_tar(text / tar.name, texts(shard, text_members(numbers, encoder)))
        first += count


def options(root: Path, **changed: Any) -> dict[str, Any]:
    """What WebDatasetModule takes, small."""
    plain = {"root": str(root), "images": None, "text": None, "made_by": "make the set", "resolution": 8, "crop": None}
    plain |= {"batch_size": 4, "seed": 3, "num_workers": 0, "multiprocessing_context": None, "flip": False}
    plain |= {"random_crop": False, "jpeg_draft": False, "window": 2, "max_unfit": 0.001}
    return plain | changed
