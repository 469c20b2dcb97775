"""The folder contract: what the data_prep scripts write and the loader reads.

::

    <root>/{train,val}/images-<size>/00000.tar            key.png|jpg|webp  key.txt  key.json (as img2dataset's)
                                     00000.parquet  00000_index.npy  00000_stats.json (last: the mark of a whole shard)
    <root>/{train,val}/text-<encoder>-<fp8>/00000.tar     _encoder.json (first), then key.safetensors (data/tokens.py)
                                            00000_index.npy  00000_stats.json (last)

Embeddings stored in another code than fp16 lie in ``text-<encoder>-<fp8>-<storage>``, of the same fingerprint: which
code a run was trained on is no matter of the encoder's.

Keys join the two tars, never positions. The root is a path or any URL that fsspec knows. Nothing here ever unpickles.
"""

import io
import json
import re
import tarfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from imagen.errors import UserError
from imagen.files import Location, atomic_write, locate, names_in
from imagen.text_encoder import TextEncoder, fingerprint8

SPLITS = ("train", "val")
ENCODER_MEMBER = "_encoder.json"
TOKENS_SUFFIX = ".safetensors"
_TEXT = re.compile("text-.+-.+")
MAX_NAME = 1000
MAX_BYTES = 2**28
"""What a member may have: no picture or embedding comes near it, and a damaged header may claim anything."""


def images_folder(root: str | Location, split: str, size: int) -> Location:
    """Where pictures of ``size`` pixels (short side) of one split lie."""
    return locate(root) / split / f"images-{size}"


def text_folder(
    root: str | Location, split: str, name: str, fingerprint: dict[str, Any], storage: str = "fp16"
) -> Location:
    """Where the sidecars of the encoder ``name`` with this full fingerprint, stored in this code, lie."""
    code = "" if storage == "fp16" else f"-{storage}"
    return locate(root) / split / f"text-{name}-{fingerprint8(fingerprint)}{code}"


def stats_path(tar: Location) -> Location:
    """The file whose presence marks ``tar`` as whole: ``00000.tar`` -> ``00000_stats.json``."""
    return tar.with_name(f"{tar.stem}_stats.json")


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
    """Write a tar of (name, content), whole or not at all; the same members give the same bytes.

    It is a USTAR, but for names that are too long for one or not ASCII, which have a PAX header each.
    """
    with atomic_write(path) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o444
            tar.addfile(info, io.BytesIO(content))


@contextmanager
def open_tar(tar: str | Location) -> Iterator[tarfile.TarFile]:
    """A tar to read from, wherever it lies."""
    with locate(tar).open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
        yield archive


@dataclass(frozen=True)
class Member:
    """A plain file of a tar, met on a walk through it."""

    tar: str | Location
    info: tarfile.TarInfo
    file: Any  # opened to read bytes

    @property
    def name(self) -> str:
        return self.info.name

    def read(self) -> bytes | None:
        """Its content, None where it claims to be larger than any picture is. UserError if the tar ends before it."""
        if self.info.size > MAX_BYTES:
            return None
        with _damage(self.tar):
            self.file.seek(self.info.offset_data)
            content = self.file.read(self.info.size)
            if len(content) < self.info.size:
                raise EOFError("unexpected end of data")
            return content


def walk(tar: str | Location) -> Generator[Member, None, None]:
    """The plain files of a tar, by their headers alone; memory is that of one.

    Links, folders, sparse files and names of more than 1,000 characters are passed over. Raises: UserError where
    damage begins, whatever the headers claim.
    """
    with _damage(tar), open_tar(tar) as archive:
        assert archive.fileobj is not None
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # or it keeps every header
            if not 0 <= info.size < 2**62:
                raise tarfile.ReadError(f"a size of {info.size}")
            if info.isreg() and not info.issparse() and len(info.name) <= MAX_NAME:
                yield Member(tar, info, archive.fileobj)


@contextmanager
def _damage(tar: str | Location) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{tar} is damaged ({error}): remove it and write it again") from error


def read_members(tar: str | Location, suffix: str) -> Iterator[tuple[str, bytes]]:
    """(key, content) of the members that end in ``suffix``, in the tar's order, seeking over all others.

    UserError where the tar is damaged.
    """
    for member in walk(tar):
        if member.name.endswith(suffix) and member.name != ENCODER_MEMBER and (content := member.read()) is not None:
            yield member.name.removesuffix(suffix), content


def read_captions(tar: str | Location) -> dict[str, str]:
    """key -> caption of an image tar, in the tar's order; a caption that is not UTF-8 is read as far as it goes."""
    return {key: content.decode(errors="replace") for key, content in read_members(tar, ".txt")}


def read_encoder(tar: str | Location) -> dict[str, Any]:
    """The full fingerprint of the encoder that made a sidecar tar: its first member."""
    try:
        with closing(walk(tar)) as members:
            first = next(members, None)
            content = first.read() if first is not None and first.name == ENCODER_MEMBER else None
        if content is not None:
            return json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{tar} cannot be read as a tar of text embeddings ({error}): make it again") from error
    raise UserError(f"{tar} is no tar of text embeddings: its first member is not {ENCODER_MEMBER}")


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
