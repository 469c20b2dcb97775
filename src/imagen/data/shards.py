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

import errno
import hashlib
import itertools
import json
import re
import tarfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

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


class Span(NamedTuple):
    """Where the bytes of a tar's member begin, and how many they are."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Written:
    """What a tar is that was just written: nothing of it need be read again."""

    size: int
    sha256: str
    members: list[Span]


def write_tar(path: str | Location, members: Iterable[tuple[str, bytes]]) -> Written:
    """Write a tar of (name, content), whole or not at all; the same members give the same bytes.

    It is a USTAR, but for names that are too long for one or not ASCII, which have a PAX header each.
    """
    hashed, spans, size = hashlib.sha256(), [], 0
    with atomic_write(path) as temporary, temporary.open("wb") as file:

        def write(*parts: bytes) -> None:
            for part in parts:
                hashed.update(part)
                file.write(part)

        for name, content in members:
            header = _header(name, len(content))
            spans.append(Span(name, size + len(header), len(content)))
            padding = -len(content) % tarfile.BLOCKSIZE
            write(header, content, bytes(padding))
            size += len(header) + len(content) + padding
        end = 2 * tarfile.BLOCKSIZE
        end += -(size + end) % tarfile.RECORDSIZE
        write(bytes(end))
    return Written(size + end, hashed.hexdigest(), spans)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o444
    return info.tobuf(tarfile.PAX_FORMAT)


@contextmanager
def open_tar(tar: str | Location) -> Iterator[tarfile.TarFile]:
    """A tar to read from, wherever it lies."""
    with locate(tar).open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
        yield archive


@dataclass(frozen=True)
class Member:
    """A plain file of a tar, met on a walk through it."""

    tar: str | Location
    span: Span
    file: Any  # opened to read bytes

    @property
    def name(self) -> str:
        return self.span.name

    def read(self, most: int = MAX_BYTES) -> bytes | None:
        """Its content, None where it claims to be more than ``most`` bytes. UserError if the tar ends before it."""
        _, offset, size = self.span
        if size > most:
            return None
        with _damage(self.tar):
            self.file.seek(offset)
            content = self.file.read(size)
            if len(content) < size:
                raise EOFError("unexpected end of data")
            return content


def walk(tar: str | Location) -> Generator[Member, None, None]:
    """The plain files of a tar, by their headers alone; memory is that of one.

    Links, folders, sparse files and names of more than 1,000 characters are passed over. Raises: UserError where
    damage begins, whatever the headers claim; OSError where the disk or the bucket fails, which is no damage.
    """
    with _damage(tar), open_tar(tar) as archive:
        assert archive.fileobj is not None
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # or it keeps every header
            if not 0 <= info.size < 2**62:
                raise tarfile.ReadError(f"a size of {info.size}")
            if info.isreg() and not info.issparse() and len(info.name) <= MAX_NAME:
                yield Member(tar, Span(info.name, info.offset_data, info.size), archive.fileobj)


@contextmanager
def _damage(tar: str | Location) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which is a seek to where no file reaches
            error.filename = error.filename or str(tar)
            raise
        raise UserError(f"{tar} is damaged ({error}): remove it and write it again") from error


Named = TypeVar("Named", Span, Member)


def by_key(members: Iterable[Named], fields: dict[str, str]) -> Iterator[tuple[str, Iterator[tuple[str, Named]]]]:
    """The samples of a tar, each its key and its (field, member) pairs: neighbours of one key.

    ``fields`` gives each suffix its field; members of other suffixes are passed over.
    """
    known = ((field, member) for member in members if (field := fields.get(member.name.rpartition(".")[2].lower())))
    return itertools.groupby(known, key=lambda pair: pair[1].name.rpartition(".")[0])


def read_samples(
    tar: str | Location, fields: dict[str, str], most: int = MAX_BYTES
) -> Iterator[tuple[str, dict[str, bytes | None]]]:
    """Key and fields of every sample in the tar's order; None for what is more than ``most`` bytes.

    Of two members of one field the last counts, as for a tar unpacked on a disk. Raises: as ``walk`` does; a sample
    that the damage has cut is lost whole.
    """
    for key, members in by_key(walk(tar), fields):
        yield key, {field: member.read(most) for field, member in members}


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
