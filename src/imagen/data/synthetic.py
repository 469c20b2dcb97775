"""Coloured shapes with captions, made in memory: each caption has exactly one true picture."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from imagen.data.module import StreamModule
from imagen.data.stream import Order, ReadMemory, Sample, Shard, Shuffle, without_epoch
from imagen.errors import UserError
from imagen.randomness import seed_of
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


def draw(caption: str, resolution: int) -> UInt8[np.ndarray, "{resolution} {resolution} 3"]:
    """The one true picture of a caption of ``CAPTIONS``, symmetric under mirroring. UserError for any other."""
    if caption not in CAPTIONS:
        raise UserError(
            f"caption {caption!r} is not of the synthetic set: say it as 'a red circle on a blue background'"
        )
    colour, shape, ground = CAPTIONS[caption]
    cover = _coverage(shape, resolution)[..., None]
    return (cover * np.array(COLOURS[colour]) + (1 - cover) * np.array(COLOURS[ground])).round().astype(np.uint8)


def split_captions(split: str) -> list[str]:
    """The captions of train or val: every eighth, by a hash of the caption alone, is held out."""
    held_out = sorted(CAPTIONS, key=seed_of)[::8]
    return held_out if split == "val" else [caption for caption in CAPTIONS if caption not in held_out]


def _coverage(shape: str, resolution: int) -> Float[np.ndarray, "h w"]:
    """How much of each pixel the shape covers, 0 to 1."""
    side = resolution * _SAMPLES_PER_PIXEL
    line = (np.arange(side) + 0.5) / side * 2 - 1
    inside = _inside(shape, line[None, :], line[:, None])
    return inside.reshape(resolution, _SAMPLES_PER_PIXEL, resolution, _SAMPLES_PER_PIXEL).mean(axis=(1, 3))


def _inside(shape: str, x: Float[np.ndarray, "1 w"], y: Float[np.ndarray, "h 1"]) -> Bool[np.ndarray, "h w"]:
    """Which points of [-1, 1] x [-1, 1], y downwards, lie in the shape."""
    wide = np.maximum(np.abs(x), np.abs(y))
    return {
        "circle": x**2 + y**2 < 0.65**2,
        "square": wide < 0.6,
        "triangle": (np.abs(x) < (y + 0.7) / 2) & (y < 0.7),
        "cross": (np.minimum(np.abs(x), np.abs(y)) < 0.2) & (wide < 0.7),
    }[shape]


class SyntheticModule(StreamModule):
    """196 pictures to train on and 28 held out, embedded at start by ``encoder``; needs no files."""

    def __init__(
        self,
        encoder: TextEncoder,
        *,
        resolution: int,
        batch_size: int,
        seed: int,
        num_workers: int,
        multiprocessing_context: str | None,
        flip: bool,
    ) -> None:
        super().__init__(
            encoder,
            resolution=resolution,
            batch_size=batch_size,
            seed=seed,
            num_workers=num_workers,
            multiprocessing_context=multiprocessing_context,
            flip=flip,
            max_unfit=0.0,
        )
        self.samples: dict[str, list[Sample]] = {}

    def setup(self, stage: str | None = None) -> None:
        """Draw the pictures and embed their captions."""
        if self.shards:
            return
        self.samples = {split: self._samples(split) for split in ("train", "val")}
        memory = Path("memory")
        self.shards = {split: (Shard(memory, memory, len(made)),) for split, made in self.samples.items()}
        self.text_fingerprint = self.encoder.fingerprint()

    def stages(self, split: str, order: Order) -> list[Callable[..., Any]]:
        read = ReadMemory(self.samples[split])
        if split == "val":
            return [read, without_epoch]
        return [read, Shuffle(len(read.samples), self.seed), order.skip, without_epoch]

    def _samples(self, split: str) -> list[Sample]:
        texts = split_captions(split)
        text = self.encoder.encode(texts)
        tokens = [row[mask].cpu() for row, mask in zip(text.tokens, text.mask, strict=True)]
        made = zip(texts, tokens, strict=True)
        return [Sample(f"{i:03}", draw(words, self.resolution), own, words) for i, (words, own) in enumerate(made)]
