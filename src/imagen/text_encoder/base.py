"""What every text encoder is: a name, a width, a fingerprint, and captions in, tokens out."""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch

from imagen.errors import UserError
from imagen.types import TextEmbedding


def fingerprint8(fingerprint: dict[str, Any]) -> str:
    """First 8 hex digits of the SHA-256 of the canonical JSON: names the folder of an encoder's embeddings."""
    canonical = json.dumps(fingerprint, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


class TextEncoder(ABC):
    """A frozen encoder. ``name`` is a slug for folder names, ``width`` is d, ``max_length`` counts special tokens too.

    ``dtype_name`` is the compute dtype: embeddings made in another are not interchangeable.
    """

    kind: ClassVar[str]
    layer: ClassVar[str] = "last"
    dtype_name: str = "fp32"

    def __init__(self, *, name: str, width: int, max_length: int) -> None:
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise UserError(f"text_encoder.name={name!r} names a folder: use only a-z, 0-9 and _")
        if width < 1 or max_length < 2:
            raise UserError(f"text_encoder.width={width} must be at least 1 and max_length={max_length} at least 2")
        self.name, self.width, self.max_length = name, width, max_length
        self.device = torch.device("cpu")
        self.picked_by = f"text_encoder={name}"  # on a command line, for the commands that messages name

    def declared(self) -> dict[str, str | int | None]:
        """What the config alone says of the output; touches no file.

        Where the weights come from is not part of it: the hub's copy and a folder's are the same encoder.
        """
        names = {"kind": self.kind, "name": self.name, "layer": self.layer}
        return names | {"width": self.width, "max_length": self.max_length, "dtype": self.dtype_name}

    @abstractmethod
    def fingerprint(self) -> dict[str, str | int | None]:
        """What is declared, and the hashes of weights and tokenizer: equal where embeddings are interchangeable."""

    def encode(self, captions: list[str]) -> TextEmbedding:
        """Hidden states as float32 on ``device``, zero where padded; an empty caption has a real token too."""
        return self.encode_tokenized(self.tokenize(captions))

    @abstractmethod
    def tokenize(self, captions: list[str]) -> list[list[Any]]:
        """The tokens of each caption, special ones too, at most ``max_length``: the half that needs no device."""

    @abstractmethod
    def encode_tokenized(self, tokenized: list[list[Any]]) -> TextEmbedding:
        """What ``encode`` makes of captions that ``tokenize`` has been through, padded to the longest of them."""

    @abstractmethod
    def cut(self, captions: list[str]) -> list[str]:
        """For each caption the words lost to ``max_length``, "" where there are none."""

    def to(self, device: torch.device | str) -> "TextEncoder":
        """Encode there from now on."""
        self.device = torch.device(device)
        return self


def check_captions(captions: list[str]) -> None:
    if not captions:
        raise UserError("captions is an empty list: give at least one caption (it may be empty itself)")
