"""Coloured shapes with captions, made in memory: each caption has exactly one true picture."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from imagen.data.module import StreamModule
from imagen.data.parts import Decode, Read
from imagen.data.stream import Crop, Sample, Shard
from imagen.errors import UserError
from imagen.randomness import seed_of
from imagen.ranges import Natural
from imagen.text_encoder import TextEncoder

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 70),
    "blue": (40, 80, 200),
    "yellow": (240, 210, 50),
    "purple": (140, 60, 170),
    "orange": (240, 140, 40),
    "black": (20, 20, 20),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "cross")
_SAMPLES_PER_PIXEL = 8  # along each side, for smooth edges


def _a(colour: str) -> str:
    return f"an {colour}" if colour == "orange" else f"a {colour}"


CAPTIONS = {
    f"{_a(colour)} {shape} on {_a(ground)} background": (colour, shape, ground)
    for (colour, ground), shape in itertools.product(itertools.permutations(COLOURS, 2), SHAPES)
}
"""All 224 captions, each with its (colour, shape, ground): every shape in every colour on every other colour."""


def draw(
    caption: str, resolution: int, window: Callable[[Any], Any] = lambda cover: cover
) -> UInt8[np.ndarray, "h w 3"]:
    """The one true picture of a caption of ``CAPTIONS``, symmetric under mirroring. UserError for any other.

    ``window`` may take a part of it, which alone is then painted: a large picture costs more than is seen of it.
    """
    if caption not in CAPTIONS:
        raise UserError(
            f"caption {caption!r} is not of the synthetic set: say it as 'a red circle on a blue background'"
        )
    colour, shape, ground = CAPTIONS[caption]
    cover = window(_coverage(shape, resolution))[..., None]
    return (cover * np.array(COLOURS[colour]) + (1 - cover) * np.array(COLOURS[ground])).round().astype(np.uint8)


def split_captions(split: str) -> list[str]:
    """The captions of train or val: every eighth, by a hash of the caption alone, is held out."""
    held_out = sorted(CAPTIONS, key=seed_of)[::8]
    return held_out if split == "val" else [caption for caption in CAPTIONS if caption not in held_out]


@functools.lru_cache(maxsize=2 * len(SHAPES))
def _coverage(shape: str, resolution: int) -> Float[np.ndarray, "h w"]:
    """How much of each pixel the shape covers, 0 to 1."""
    side = resolution * _SAMPLES_PER_PIXEL
    line = (np.arange(side) + 0.5) / side * 2 - 1
    rows = []
    for y in np.split(line, resolution):  # row by row: the points of a large picture are more than fit the memory
        inside = _inside(shape, line[None, :], y[:, None])
        rows.append(inside.reshape(_SAMPLES_PER_PIXEL, resolution, _SAMPLES_PER_PIXEL).mean(axis=(0, 2)))
    return np.stack(rows)


def _inside(shape: str, x: Float[np.ndarray, "1 w"], y: Float[np.ndarray, "h 1"]) -> Bool[np.ndarray, "h w"]:
    """Which points of [-1, 1] x [-1, 1], y downwards, lie in the shape."""
    wide = np.maximum(np.abs(x), np.abs(y))
    return {
        "circle": x**2 + y**2 < 0.65**2,
        "square": wide < 0.6,
        "triangle": (np.abs(x) < (y + 0.7) / 2) & (y < 0.7),
        "cross": (np.minimum(np.abs(x), np.abs(y)) < 0.2) & (wide < 0.7),
    }[shape]


class Captioned(NamedTuple):
    """A caption with its tokens, the picture yet to be drawn."""

    shard: str
    key: str
    caption: str
    tokens: Float[Tensor, "n d"]


@dataclass(frozen=True)
class Memory:
    """The samples of the one shard that lies in memory, by their rows."""

    samples: list[Captioned]

    def __call__(self, wanted: list[tuple[Shard, int]]) -> list[Captioned]:
        return [self.samples[row] for _, row in wanted]


@dataclass(frozen=True)
class Draw:
    """Captions into samples; drawn when needed, since large pictures would not fit the memory."""

    resolution: int
    crop: Crop

    def sample(self, epoch: int, raw: Captioned) -> Sample:
        """Draw one."""
        image = draw(raw.caption, self.resolution, functools.partial(self.crop, epoch=epoch, key=raw.key))
        return Sample(raw.key, image, raw.tokens, raw.caption)


class SyntheticModule(StreamModule):
    """196 pictures to train on and 28 held out, embedded at start by ``encoder``; needs no files."""

    def __init__(
        self,
        encoder: TextEncoder,
        *,
        resolution: int,
        crop: int | None,
        batch_size: int,
        seed: int,
        num_workers: Natural,
        multiprocessing_context: str | None,
        flip: bool,
    ) -> None:
        super().__init__(
            encoder,
            resolution=resolution,
            crop=crop,
            batch_size=batch_size,
            seed=seed,
            num_workers=num_workers,
            multiprocessing_context=multiprocessing_context,
            flip=flip,
            window=1,
            max_unfit=0.0,
        )
        self.captioned: dict[str, list[Captioned]] = {}

    def setup(self, stage: str | None = None) -> None:
        """Embed the captions."""
        if self.shards:
            return
        self.captioned = {split: self._captioned(split) for split in ("train", "val")}
        memory = Path("memory")
        self.shards = {split: (Shard(memory, None, len(made)),) for split, made in self.captioned.items()}
        self.text_fingerprint = self.encoder.fingerprint()

    def reading(self, split: str) -> tuple[Read, Decode]:
        return Memory(self.captioned[split]), Draw(self.resolution, self.crop_of(split)).sample

    def _captioned(self, split: str) -> list[Captioned]:
        captions = split_captions(split)
        text = self.encoder.encode(captions)
        tokens = [row[mask].cpu() for row, mask in zip(text.tokens, text.mask, strict=True)]
        return [Captioned("memory", f"{i:03}", *pair) for i, pair in enumerate(zip(captions, tokens, strict=True))]
