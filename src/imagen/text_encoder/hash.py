"""A text encoder without weights, for tests and for teaching."""

import functools
import hashlib
import re

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imagen.text_encoder.base import TextEncoder, check_captions
from imagen.types import TextEmbedding


class Hash(TextEncoder):
    """No weights: every word has a fixed pseudo-random vector of unit variance, and an end mark follows. For tests."""

    kind = "hash"

    def __init__(self, *, name: str, width: int, max_length: int) -> None:
        super().__init__(name=name, width=width, max_length=max_length)

    def fingerprint(self) -> dict[str, str | int | None]:
        return self.declared() | {"weights": "shake-256", "tokenizer": "words"}

    def tokenize(self, captions: list[str]) -> list[list[str]]:
        check_captions(captions)
        return [[*_words(caption)[: self.max_length - 1], ""] for caption in captions]

    def encode_tokenized(self, tokenized: list[list[str]]) -> TextEmbedding:
        tokens = [torch.stack([_word_vector(word, self.width) for word in row]) for row in tokenized]
        padded = nn.utils.rnn.pad_sequence(tokens, batch_first=True)
        lengths = torch.tensor([len(row) for row in tokenized])
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        return TextEmbedding(padded, mask).to(self.device)

    def cut(self, captions: list[str]) -> list[str]:
        return [" ".join(_words(caption)[self.max_length - 1 :]) for caption in captions]


def _words(caption: str) -> list[str]:
    return re.findall(r"\w+", caption.lower())


@functools.lru_cache(maxsize=4096)
def _word_vector(word: str, width: int) -> Float[Tensor, " d"]:
    # uniform in [-sqrt 3, sqrt 3], straight from the hash: the same on every machine and every version of torch
    digest = hashlib.shake_256(word.encode()).digest(2 * width)
    values = [int.from_bytes(digest[i : i + 2], "little") for i in range(0, 2 * width, 2)]
    return (torch.tensor(values, dtype=torch.float32) / 65535 * 2 - 1) * 3**0.5
