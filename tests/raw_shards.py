"""Shards as img2dataset leaves them, made of pictures of our own, for the tests of what reads them."""

import io
import json
import tarfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from imagen.data.shards import write_tar
from imagen.files import Location, write_json

Member = tuple[str, bytes]


def scene(width: int, height: int, seed: int) -> Image.Image:
    """A smooth picture of its own for every seed."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def sample(key: str, picture: bytes, caption: str | None = None, suffix: str = "jpg", **info: Any) -> list[Member]:
    """The members of a sample; ``info`` is its json, to which ``key`` and ``caption`` are added."""
    text = f"a scene of {key}" if caption is None else caption
    content = {"caption": text, "url": f"http://127.0.0.1/{key}", "key": key, "status": "success", **info}
    return [
        (f"{key}.{suffix}", picture),
        (f"{key}.json", json.dumps(content, indent=4).encode()),
        (f"{key}.txt", text.encode()),
    ]


def write_raw(folder: Location, shard: int, samples: Sequence[Sequence[Member]], **stats: Any) -> Location:
    """``<folder>/<shard>.tar`` with its stats."""
    tar = folder / f"{shard:05}.tar"
    write_tar(tar, [member for members in samples for member in members])
    counts = {"count": len(samples), "successes": len(samples), "failed_to_download": 0, "failed_to_resize": 0}
    write_json(tar.with_name(f"{shard:05}_stats.json"), counts | {"status_dict": {"success": len(samples)}} | stats)
    return tar


def members(tar: Location) -> dict[str, bytes]:
    """Name and content of every member."""
    with tar.open("rb") as file, tarfile.open(fileobj=file) as archive:
        return {info.name: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]
