"""The folder contract: what the data_prep scripts write and the loader reads.

::

    <root>/{train,val}/images-<size>/00000.tar            key.png|jpg|webp  key.txt  key.json (as img2dataset's)
                                     00000.parquet  00000_index.npy  00000_stats.json (last: the mark of a whole shard)
    <root>/{train,val}/text-<encoder>-<fp8>/00000.tar     _encoder.json (first), then key.safetensors
                                            00000_index.npy

Keys join the two tars, never positions. The root is a path or any URL that fsspec knows. Nothing here ever unpickles.
"""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from imagen.errors import UserError
from imagen.files import Location, atomic_write, locate, names_in
from imagen.text_encoder import TextEncoder, fingerprint8

SPLITS = ("train", "val")
ENCODER_MEMBER = "_encoder.json"
TOKENS_SUFFIX = ".safetensors"
_TEXT = re.compile("text-.+-.+")


def images_folder(root: str | Location, split: str, size: int) -> Location:
    """Where pictures of ``size`` pixels (short side) of one split lie."""
    return locate(root) / split / f"images-{size}"


def text_folder(root: str | Location, split: str, name: str, fingerprint: dict[str, Any]) -> Location:
    """Where the sidecars of the encoder ``name`` with this full fingerprint lie."""
    return locate(root) / split / f"text-{name}-{fingerprint8(fingerprint)}"


def stats_path(tar: Location) -> Location:
    """The file whose presence marks ``tar`` as whole: ``00000.tar`` -> ``00000_stats.json``."""
    return tar.with_name(f"{tar.stem}_stats.json")


def caption_hash(caption: str) -> str:
    """32 hex digits (16 bytes of SHA-256) that tie an embedding to the caption it was made from."""
    return hashlib.sha256(caption.encode()).hexdigest()[:32]


def whole_shards(folder: str | Location, *, skip_unfinished: bool) -> list[Location]:
    """The image tars of ``folder`` that have their ``_stats.json``, in name order.

    UserError when there is none, or, unless ``skip_unfinished``, when a tar lacks its mark (its writing was cut off).
    """
    folder = locate(folder)
    names = names_in(folder)
    tars = [folder / name for name in sorted(names) if name.endswith(".tar")]
    whole = [tar for tar in tars if stats_path(tar).name in names]
    unfinished = [tar.name for tar in tars if stats_path(tar).name not in names]
    if unfinished and not skip_unfinished:
        raise UserError(
            f"{folder} has {len(unfinished)} unfinished shard(s), the first {unfinished[0]}, without its _stats.json: "
            "run the script that writes them again, or remove them"
        )
    if not whole:
        raise UserError(
            f"{folder} has no whole shard (00000.tar with 00000_stats.json): check the path, or write the set"
        )
    return whole


def write_tar(path: str | Location, members: Iterable[tuple[str, bytes]]) -> None:
    """Write a USTAR of (name, content), whole or not at all; the same members give the same bytes."""
    with atomic_write(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o444
            tar.addfile(info, io.BytesIO(content))


@contextmanager
def open_tar(tar: str | Location) -> Iterator[tarfile.TarFile]:
    """A tar to read from, wherever it lies."""
    with locate(tar).open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
        yield archive


def read_members(tar: str | Location, suffix: str) -> Iterator[tuple[str, bytes]]:
    """(key, content) of the members that end in ``suffix``, in the tar's order, seeking over all others.

    UserError where the tar is damaged.
    """
    try:
        with open_tar(tar) as archive:
            for info in archive:
                if info.isfile() and info.name.endswith(suffix) and info.name != ENCODER_MEMBER:
                    content = archive.extractfile(info)
                    assert content is not None
                    yield info.name.removesuffix(suffix), content.read()
    except tarfile.TarError as error:
        raise UserError(f"{tar} is damaged ({error}): remove it and write it again") from error


def read_captions(tar: str | Location) -> dict[str, str]:
    """key -> caption of an image tar, in the tar's order; a caption that is not UTF-8 is read as far as it goes."""
    return {key: content.decode(errors="replace") for key, content in read_members(tar, ".txt")}


def read_encoder(tar: str | Location) -> dict[str, Any]:
    """The full fingerprint of the encoder that made a sidecar tar: its first member."""
    try:
        with open_tar(tar) as archive:
            first = archive.next()
            if first is not None and first.name == ENCODER_MEMBER:
                content = archive.extractfile(first)
                assert content is not None
                return json.load(content)
    except (tarfile.TarError, json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{tar} cannot be read as a tar of text embeddings ({error}): make it again") from error
    raise UserError(f"{tar} is no tar of text embeddings: its first member is not {ENCODER_MEMBER}")


def dump_tokens(tokens: Float[Tensor, "n d"], caption: str) -> bytes:
    """A sidecar member: real tokens only, float16, with the hash of their caption in the header."""
    half = tokens.to(torch.float16).contiguous()
    return safetensors.torch.save({"tokens": half}, {"caption": caption_hash(caption)})


def load_tokens(member: bytes) -> tuple[Float[Tensor, "n d"], str]:
    """The tokens (float16) and the caption hash of a sidecar member; ValueError if it is not one."""
    try:
        tokens = safetensors.torch.load(member)["tokens"]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"not a text embedding: {error}") from error
    return tokens, tokens_caption_hash(member)


def tokens_caption_hash(member: bytes) -> str:
    """The caption hash in a sidecar member's header; ValueError if there is none."""
    try:
        length = int.from_bytes(member[:8], "little")
        return json.loads(member[8 : 8 + length])["__metadata__"]["caption"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError("not a text embedding: no caption hash in its header") from error


def find_text_folder(root: str | Location, split: str, encoder: TextEncoder) -> Location:
    """The one sidecar folder of ``split`` whose fingerprint agrees with all that ``encoder`` declares.

    UserError when there is none (with the command that makes it) or several (asking which).
    """
    declared = encoder.declared()
    made = {
        folder: read_encoder(tars[0]) for folder in text_folders(root, split) if (tars := sorted(folder.glob("*.tar")))
    }
    found = [folder for folder, by in made.items() if all(by.get(key) == value for key, value in declared.items())]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(folder.name for folder in found)
        raise UserError(
            f"{locate(root) / split} has several text folders for {encoder.name} ({names}): pick one, data.text=<name>"
        )
    others = ", ".join(folder.name for folder in made) or "none"
    raise UserError(
        f"{locate(root) / split} has no text embeddings by {encoder.name} with {declared} (found: {others}): "
        f"python data_prep/embed_text.py root={root} {encoder.picked_by}"
    )


def text_folders(root: str | Location, split: str) -> list[Location]:
    """Every folder of text embeddings of a split."""
    folder = locate(root) / split
    return [path for name in sorted(names_in(folder)) if _TEXT.fullmatch(name) and (path := folder / name).is_dir()]
