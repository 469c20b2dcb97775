"""Pictures to be measured or to measure against: in memory or in files, handed out in batches."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from imagen.errors import UserError
from imagen.text_encoder import TextEncoder


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
        for batch in self.batches(256):
            whole.update(batch.contiguous().numpy().tobytes())
        return whole.hexdigest()


@dataclass(frozen=True)
class InMemory(Pictures):
    """Pictures [n 3 h w] that are there already."""

    images: UInt8[Tensor, "n 3 h w"]
    captions: Sequence[str]

    def batches(self, size: int) -> Iterator[UInt8[Tensor, "_ 3 h w"]]:
        yield from self.images.split(size)


@dataclass(frozen=True)
class InFiles(Pictures):
    """Picture files, read when they are asked for."""

    files: Sequence[Path]
    captions: Sequence[str]

    def batches(self, size: int) -> Iterator[UInt8[Tensor, "_ 3 h w"]]:
        for start in range(0, len(self.files), size):
            yield torch.stack([read_picture(path) for path in self.files[start : start + size]])


def read_picture(path: Path) -> UInt8[Tensor, "3 h w"]:
    """One picture as RGB. Raises: UserError if it cannot be read."""
    try:
        with Image.open(path) as picture:
            pixels = np.array(picture.convert("RGB"))
    except (OSError, ValueError) as error:
        raise UserError(f"picture {path} cannot be read ({error}): delete it, and it is drawn again") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


@dataclass(frozen=True)
class PictureSet(InMemory):
    """All pictures of a data set at one size; ``train`` and ``val`` are rows of it.

    ``encoder`` reads its captions for the stage, ``judge`` for metrics that compare what they mean.
    """

    train: Sequence[int]
    val: Sequence[int]
    encoder: TextEncoder
    judge: TextEncoder
