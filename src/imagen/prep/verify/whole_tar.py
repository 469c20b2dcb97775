"""A tar read once, from its first byte to its last: its members, whether it is whole, and its SHA-256."""

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

from imagen.files import Location

_CHUNK = 2**20
_END_MARK = 1024  # two blocks of zeros


class WholeTar:
    """The members of a tar in order; once they are through, ``damage`` (None where there is none) and ``sha256``.

    Python's tarfile takes a header that it cannot read for the end, and a tar cut between two members for a whole one:
    here the end is where the end mark is, and nothing but zeros follows.
    """

    def __init__(self, tar: Location, wanted: Callable[[str], bool]) -> None:
        self.tar, self.wanted = tar, wanted
        self.damage: str | None = None
        self.sha256 = ""

    def __iter__(self) -> Iterator[tuple[str, bytes | None]]:
        """Name and content of every file; the content is None where its name is not ``wanted``."""
        try:
            with self.tar.open("rb") as file:
                hashed = _Hashed(file)
                yield from self._members(hashed)
        except OSError as error:
            self.damage = f"cannot be read ({error})"

    def _members(self, file: "_Hashed") -> Iterator[tuple[str, bytes | None]]:
        end = 0
        try:
            with tarfile.open(fileobj=file, mode="r|", bufsize=_CHUNK) as archive:  # type: ignore[call-overload]
                while (info := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # or it keeps every header
                    if info.isreg() and not info.issparse():
                        yield info.name, self._content(archive, info) if self.wanted(info.name) else None
                end = archive.offset  # type: ignore[attr-defined]
        except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:  # of bytes that it did not expect
            self.damage = str(error) or type(error).__name__
        while file.read(_CHUNK):
            pass
        self.sha256 = file.sha256.hexdigest()
        if self.damage is None and file.last > end:
            self.damage = f"no header can be read at byte {end:,} of {file.size:,}"
        if self.damage is None and file.size < end + _END_MARK:
            self.damage = "cut: it ends without its end mark"

    @staticmethod
    def _content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
        content = archive.extractfile(info)
        assert content is not None
        return content.read()


class _Hashed:
    """A file that hashes what is read of it, counts it, and knows where its last byte that is not zero ends."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()
        self.size = self.last = 0

    def read(self, size: int) -> bytes:
        chunk = self.file.read(size)
        self.sha256.update(chunk)
        if used := len(chunk.rstrip(b"\0")):
            self.last = self.size + used
        self.size += len(chunk)
        return chunk
