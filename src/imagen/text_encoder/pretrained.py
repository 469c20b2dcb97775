"""What all Hugging Face text encoders share: finding, checking, tokenizing, encoding."""

import functools
import json
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from imagen.errors import UserError
from imagen.text_encoder.base import TextEncoder, check_captions
from imagen.text_encoder.weights import digest, from_hub, weight_files
from imagen.types import TextEmbedding

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "vocab.txt", "vocab.json", "merges.txt")


class Pretrained(TextEncoder):
    """A Hugging Face encoder from ``path``: a folder, or a name in the user's cache or on the hub at ``revision``.

    ``dtype`` is bf16 or fp32, never fp16: T5 overflows in it (huggingface/transformers issue 9295). Only safetensors
    weights are read. UserError where the weights are missing or not what the config says.
    """

    model_types: ClassVar[tuple[str, ...]]

    def __init__(self, *, name: str, path: str, revision: str | None, width: int, max_length: int, dtype: str) -> None:
        super().__init__(name=name, width=width, max_length=max_length)
        if dtype not in DTYPES:
            raise UserError(f"text_encoder.dtype={dtype!r} must be bf16 or fp32 (T5 overflows in fp16)")
        self.path, self.revision, self.dtype_name = path, revision, dtype

    @abstractmethod
    def _load(self, folder: Path, **options: Any) -> Any:
        """The transformers model and its loading report, as a pair."""

    def _hidden(self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        return self._model(input_ids=ids, attention_mask=mask.long()).last_hidden_state

    @functools.cached_property
    def folder(self) -> Path:
        """Where the weights are on this machine; downloads them if they are named and a network is there."""
        local = Path(self.path).expanduser()
        folder = local if local.is_dir() else from_hub(self.name, self.path, self.revision)
        config = folder / "config.json"
        if not config.is_file():
            raise UserError(f"text_encoder.path={self.path}: there is no config.json in {folder}")
        model_type = json.loads(config.read_text()).get("model_type")
        if model_type not in self.model_types:
            needed = " or ".join(self.model_types)
            raise UserError(f"text_encoder.path={self.path}: {config} holds model_type {model_type}, not {needed}")
        if not weight_files(folder):
            raise UserError(
                f"text_encoder.path={self.path}: {folder} has no safetensors weights; save_pretrained writes them"
            )
        return folder

    @functools.cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        with _quietly():
            return AutoTokenizer.from_pretrained(self.folder, local_files_only=True, padding_side="right")

    @functools.cached_property
    def _model(self) -> Any:
        options = {"dtype": DTYPES[self.dtype_name], "use_safetensors": True, "local_files_only": True}
        with _quietly():
            model, report = self._load(self.folder, output_loading_info=True, **options)
        if missing := sorted(report["missing_keys"]):
            raise UserError(
                f"text_encoder.path={self.path}: its weights lack {len(missing)} tensors, the first {missing[0]}"
            )
        if (width := model.config.hidden_size) != self.width:
            raise UserError(
                f"text_encoder.width={self.width}, but {self.path} is {width} wide: set text_encoder.width={width}"
            )
        positions = getattr(model.config, "max_position_embeddings", self.max_length)
        if positions < self.max_length:
            raise UserError(
                f"text_encoder.max_length={self.max_length}, but {self.path} takes at most {positions} tokens"
            )
        return model.eval().requires_grad_(False).to(self.device)

    def fingerprint(self) -> dict[str, str | int | None]:
        tokenizer = [file for name in TOKENIZER_FILES if (file := self.folder / name).exists()]
        hashes = {"weights": digest(weight_files(self.folder)), "tokenizer": digest(tokenizer)}
        return self.declared() | hashes

    def tokenize(self, captions: list[str]) -> list[list[int]]:
        check_captions(captions)
        return self._tokenizer(captions, truncation=True, max_length=self.max_length)["input_ids"]

    def encode_tokenized(self, tokenized: list[list[int]]) -> TextEmbedding:
        model = self._model
        rows = [torch.tensor(row) for row in tokenized]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self._tokenizer.pad_token_id)
        lengths = torch.tensor([len(row) for row in tokenized])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).to(self.device)
        # the fingerprint promises the dtype, whatever autocast the caller is in
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            hidden = self._hidden(ids.to(self.device), mask)
        assert model.dtype == DTYPES[self.dtype_name]
        return TextEmbedding(hidden.float().masked_fill(~mask[..., None], 0.0), mask)

    def cut(self, captions: list[str]) -> list[str]:
        check_captions(captions)
        room = self.max_length - self._tokenizer.num_special_tokens_to_add()
        options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
        offsets = self._tokenizer(captions, **options)["offset_mapping"]
        return [_from_word(c, o[room][0]) if len(o) > room else "" for c, o in zip(captions, offsets, strict=True)]

    def to(self, device: torch.device | str) -> "Pretrained":
        super().to(device)
        if "_model" in self.__dict__:
            self._model.to(self.device)
        return self


def _from_word(caption: str, offset: int) -> str:
    """The caption from the word on that ``offset`` falls into: a word cut in two is lost."""
    start = offset
    if not caption[offset].isspace():
        while start > 0 and not caption[start - 1].isspace():
            start -= 1
    return caption[start:].strip()


@contextmanager
def _quietly() -> Iterator[None]:
    """No progress bars and load reports of transformers: what is missing is checked here, the rest is expected."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
