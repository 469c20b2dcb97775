"""One member of a tar: a picture of the promised size, tokens of the right shape, an encoder that its folder names."""

import json
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from imagen.data.pixels import open_picture
from imagen.data.shards import text_folder
from imagen.data.tokens import STORAGES, decode, tokens_caption_hash
from imagen.prep.verify.findings import Findings

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}


def as_object(content: bytes | str | None) -> dict[str, Any] | None:
    """JSON's object; None for whatever else it is."""
    try:
        value = json.loads(content or b"")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def check_picture(
    content: bytes, info: dict[str, Any], size: int, shape: object, where: str, findings: Findings
) -> None:
    """It decodes, and its short side is ``size``, or it has the ``shape`` [height, width] where the stats say one."""
    findings.checked["pictures decoded"] += 1
    exif = as_object(str(info.get("exif"))) or {}
    try:
        picture = open_picture(content, exif.get("Image Orientation"))
    except ValueError as error:
        findings.add("undecodable picture", where, str(error))
        return
    made = f"{picture.width} x {picture.height}"
    if shape is None and min(picture.size) != size:
        findings.add("wrong size", where, f"{made}, the short side is not {size}")
    if shape is not None and shape != [picture.height, picture.width]:
        findings.add("wrong size", where, f"{made}, its shard's shape [height, width] is {shape}")


def storage_of(folder: str) -> str:
    """The code in which a folder of text embeddings holds its tokens, by its name."""
    last = folder.rpartition("-")[2]
    return last if last in STORAGES else "fp16"


def check_encoder(content: bytes, folder: str, where: str, findings: Findings) -> int | None:
    """The encoder's width by its fingerprint, which must be the one that names the folder; None where it is none."""
    said = as_object(content)
    if said is None or not isinstance(said.get("width"), int):
        return None
    named = text_folder("", "", str(said.get("name")), said, storage_of(folder)).name
    if folder != named:
        findings.add("wrong encoder", where, f"made by that of {named}")
    return said["width"]


def check_tokens(
    content: bytes, width: int | None, storage: str, caption: str | None, where: str, findings: Findings
) -> bool:
    """Whether a member is ``[n, width]`` finite numbers, coded as its folder's are, for the caption of this hash."""
    try:
        parts = safetensors.torch.load(content)
        tokens, made_from = decode(parts), tokens_caption_hash(content)
    except (SafetensorError, KeyError, ValueError) as error:
        findings.add("damaged tokens", where, str(error))
        return False
    if tokens.ndim != 2 or not len(tokens) or (width is not None and tokens.shape[1] != width):
        findings.add("wrong shape", where, f"{list(tokens.shape)}, the encoder is {width} wide")
    elif parts["tokens"].dtype != DTYPES[storage]:
        findings.add("wrong shape", where, f"of {parts['tokens'].dtype}, the folder's are {storage}")
    elif not bool(torch.isfinite(tokens).all()):
        findings.add("not finite", where)
    elif caption is not None and made_from != caption:
        findings.add("wrong caption", where, "the embedding is of another caption")
    else:
        return True
    return False
