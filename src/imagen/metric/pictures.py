"""Pictures to be measured or to measure against: in memory or in files, handed out in batches."""

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from imagen.data.pixels import downsample, to_float, to_uint8
from imagen.errors import UserError
from imagen.text_encoder import TextEncoder

MOST_IN_MEMORY = 2**29
"""Bytes of pictures that are held in memory at once; more are decoded anew each time."""


class Pictures(ABC):
    """Captioned pictures of one size; ``captions[i]`` is that of the i-th."""

    captions: Sequence[str]

    def __len__(self) -> int:
        return len(self.captions)

    @abstractmethod
    def batches(self, size: int) -> Iterator[UInt8[Tensor, "_ 3 h w"]]:
        """All pictures in order, ``size`` at a time, the last batch perhaps smaller."""

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of all pixels in their order: which pictures these are."""
        whole = hashlib.sha256()
        for batch in self.batches(32):
            whole.update(batch.contiguous().numpy().tobytes())
        return whole.hexdigest()

    @cached_property
    def captioned_digest(self) -> str:
        """The SHA-256 of pixels and captions: which examples these are."""
        return hashlib.sha256("\n".join([self.digest, *self.captions]).encode()).hexdigest()

    def singly(self) -> Iterator[UInt8[Tensor, "3 h w"]]:
        """All pictures in order, one at a time."""
        for batch in self.batches(32):
            yield from batch


@dataclass(frozen=True)
class InMemory(Pictures):
    """Pictures [n 3 h w] that are there already."""

    images: UInt8[Tensor, "n 3 h w"]
    captions: Sequence[str]

    def batches(self, size: int) -> Iterator[UInt8[Tensor, "_ 3 h w"]]:
        yield from self.images.split(size)


@dataclass(frozen=True)
class Streamed(Pictures):
    """Pictures that ``images`` hands out one by one, anew each time they are asked for."""

    images: Callable[[], Iterator[UInt8[Tensor, "3 h w"]]]
    captions: Sequence[str]

    def batches(self, size: int) -> Iterator[UInt8[Tensor, "_ 3 h w"]]:
        images = self.images()
        while batch := list(itertools.islice(images, size)):
            yield torch.stack(batch)


@dataclass(frozen=True)
class InFiles(Pictures):
    """Picture files, read when they are asked for."""

    files: Sequence[Path]
    captions: Sequence[str]

    def batches(self, size: int) -> Iterator[UInt8[Tensor, "_ 3 h w"]]:
        for start in range(0, len(self.files), size):
            try:
                pictures = [read_picture(path) for path in self.files[start : start + size]]
            except UserError as error:
                raise UserError(f"{error}: delete it, and it is drawn again") from error
            yield torch.stack(pictures)


def read_picture(path: Path) -> UInt8[Tensor, "3 h w"]:
    """One picture as RGB. Raises: UserError if it cannot be read."""
    try:
        with Image.open(path) as picture:
            pixels = np.array(picture.convert("RGB"))
    except (OSError, ValueError) as error:
        raise UserError(f"picture {path} cannot be read ({error})") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def joined(*parts: Pictures) -> Pictures:
    """One set of several, in their order."""
    return Streamed(
        lambda: itertools.chain.from_iterable(part.singly() for part in parts),
        [caption for part in parts for caption in part.captions],
    )


def first(pictures: Pictures, count: int) -> Pictures:
    """The first ``count`` pictures, or as many as there are."""
    return Streamed(lambda: itertools.islice(pictures.singly(), count), pictures.captions[:count])


def repeated(pictures: Pictures, times: int) -> Pictures:
    """Each picture ``times`` times, one after the other."""
    return Streamed(
        lambda: (picture for picture in pictures.singly() for _ in range(times)),
        [caption for caption in pictures.captions for _ in range(times)],
    )


def made_small(pictures: Pictures, side: int) -> Pictures:
    """The pictures at ``side`` pixels, by block means, rounded to bytes as in a file."""

    def small(picture: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 h2 w2"]:
        return to_uint8(downsample(to_float(picture[None]), picture.shape[-1] // side))[0]

    return Streamed(lambda: map(small, pictures.singly()), pictures.captions)


def in_memory(pictures: Pictures, metric: str) -> UInt8[Tensor, "n 3 h w"]:
    """All pictures at once. Raises: UserError, saying that ``metric`` needs it, if they are too many."""
    one, count = next(pictures.batches(1)), len(pictures)
    if count * one.numel() > MOST_IN_MEMORY:
        raise UserError(
            f"{metric} holds all pictures of the data in memory, and {count:,} of {one.shape[-1]} px are more than "
            f"{MOST_IN_MEMORY >> 20} MiB: leave it out of metric="
        )
    return torch.cat(list(pictures.batches(256)))


@dataclass(frozen=True)
class PictureSet:
    """A data set at one size; ``read`` gives its splits, which are read when they are first asked for.

    ``encoder`` reads its captions for the stage, ``judge`` for metrics that compare what they mean.
    """

    read: Callable[[str], Pictures]
    encoder: TextEncoder
    judge: TextEncoder

    @cached_property
    def train(self) -> Pictures:
        return self.read("train")

    @cached_property
    def val(self) -> Pictures:
        return self.read("val")

    @cached_property
    def whole(self) -> Pictures:
        """What was trained on, then what was held out."""
        return joined(self.train, self.val)
