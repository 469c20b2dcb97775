"""A user's own pictures into LAION-style shards.

Captions lie beside the pictures, ``cat.txt`` for ``cat.jpg``, in any folder below; or in one ``metadata.csv``, whose
other columns become fields of the json. The bytes of JPEG, PNG and WebP are kept as they are.
"""

import csv
import hashlib
import io
import json
import posixpath
import re
import shlex
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import PIL
from omegaconf import DictConfig
from PIL import Image, ImageOps

from imagen.data import pixels
from imagen.data.writer import (
    Entry,
    read_stats,
    remove_surplus,
    sample_row,
    say_shards,
    shard_key,
    shard_names,
    whole_stats,
    write_shard,
)
from imagen.errors import UserError
from imagen.files import Location, locate, make_folder, write_json
from imagen.prep.gather import gather_done
from imagen.prep.unfit import Unfit
from imagen.prep.work import Workers

FORMAT = 1  # raise it when what is written changes: old shards are then redone
METADATA = "metadata.csv"
CAPTION_COLUMNS = ("caption", "text")
KEPT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # MPO: a phone's JPEG with a second picture in it
REWRITTEN = ("BMP", "GIF", "TIFF")
SUFFIXES = frozenset([".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"])
_WHOLE, _DECIMAL = re.compile(r"-?(0|[1-9]\d{0,17})"), re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d{1,2})?")


@dataclass(frozen=True)
class Picture:
    """A file below the folder and what was said of it; ``text`` is the file of its caption if that is not known yet."""

    path: str
    captions: tuple[str, ...] = ()
    fields: tuple[tuple[str, Any], ...] = ()
    text: str | None = None


@dataclass(frozen=True)
class Unit:
    """One shard to write: the ``number``-th of ``shards``."""

    number: int
    shards: int
    pictures: tuple[Picture, ...]


def pack_folder(cfg: DictConfig) -> None:
    """Write the pictures of ``cfg.input`` as shards in ``cfg.output``, or this command's share of them."""
    workers = Workers(cfg.num_workers, cfg.worker_index, cfg.worker_count)
    if cfg.shard_size < 1:
        raise UserError(f"shard_size={cfg.shard_size} must be at least 1")
    source = locate(cfg.input)
    pictures = find_pictures(source)
    output = make_folder(cfg.output, "output")
    cut = [tuple(pictures[i : i + cfg.shard_size]) for i in range(0, len(pictures), cfg.shard_size)]
    units = [Unit(number, len(cut), part) for number, part in enumerate(cut)]
    task = WriteShard(source, output, cfg.shard_size)
    if workers.worker_index == 0:
        remove_surplus(output, shard_names(len(units)), "folder")
    done = list(workers.map(task, workers.share(units), what="writing"))
    written = [one for one, _ in done]
    print(f"{cfg.output}: shards written now: {sum(written)}, there already: {len(done) - sum(written)}")
    elsewhere = gather_done(task.counts, workers.others(units))
    if elsewhere is None:
        return
    counts = sum((*(own for _, own in done), *elsewhere), Counter())
    samples = counts.pop("success", 0)
    said = {"read": samples + sum(counts.values()), "written": samples, "left_out": dict(sorted(counts.items()))}
    config = {"input": str(cfg.input), "output": str(cfg.output), "shard_size": cfg.shard_size}
    versions = {"folder": str(FORMAT), "pillow": PIL.__version__}
    write_json(output / "reports" / "folder.json", said | {"config": config, "versions": versions})
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in said["left_out"].items())
    print(f"{samples:,} of {said['read']:,} pictures written{'; left out: ' if reasons else ''}{reasons}")
    if reasons:
        print("which they are: the rows with an error_message of the parquet files")
    if samples:
        source = shlex.quote(f"input={cfg.output}")
        print(f"next: python data_prep/pack.py {source} root=<folder>, or data_prep/filter.py before it")


def find_pictures(folder: Location) -> list[Picture]:
    """Every picture below ``folder`` in natural order (``2.jpg`` before ``10.jpg``), hidden ones left out.

    Raises: UserError where there is none, or ``metadata.csv`` cannot be understood.
    """
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}  # type: ignore[arg-type]
    files = {file for file in files if not any(part.startswith(".") for part in PurePosixPath(file).parts)}
    found = {file for file in files if PurePosixPath(file).suffix.lower() in SUFFIXES}
    if METADATA in files:
        said = read_metadata(folder / METADATA)
        pictures = [said.get(file, Picture(file)) for file in found | set(said)]
    else:
        texts = {file: str(PurePosixPath(file).with_suffix(".txt")) for file in found}
        pictures = [Picture(file, text=text if text in files else None) for file, text in texts.items()]
    if not pictures:
        kinds = ", ".join(sorted(SUFFIXES))
        raise UserError(f"input={folder} holds no picture ({kinds}): check the path")
    return sorted(pictures, key=lambda picture: (_natural(picture.path), picture.path))


def read_metadata(file: Location) -> dict[str, Picture]:
    """The rows of a ``metadata.csv`` by the picture that they are of; several rows of one are several captions of it.

    Columns of numbers become numbers; an empty cell is null. Raises: UserError where columns are missing.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    usual = csv.field_size_limit(2**24)  # of the whole process
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", restval="")
        rows = list(reader)
    except csv.Error as error:
        raise UserError(f"{file} cannot be read as CSV ({error})") from error
    finally:
        csv.field_size_limit(usual)
    columns = list(reader.fieldnames or [])
    caption = next((name for name in CAPTION_COLUMNS if name in columns), None)
    if caption is None or "file_name" not in columns:
        raise UserError(f"{file} has the columns {columns}: it needs file_name, and caption or text")
    others = {name: _values([row[name] for row in rows]) for name in columns if name not in ("", "file_name", caption)}
    said: dict[str, Picture] = {}
    for i, row in enumerate(rows):
        path = posixpath.normpath(row["file_name"].replace("\\", "/"))
        before = said.get(path) or Picture(path, fields=tuple((name, values[i]) for name, values in others.items()))
        captions = (*before.captions, *([row[caption].strip()] if row[caption].strip() else []))
        said[path] = Picture(path, captions, before.fields)
    return said


@dataclass(frozen=True)
class WriteShard:
    """Write one shard, or find that it is whole; returns whether it was written, and its counts."""

    folder: Location
    output: Location
    shard_size: int

    def tar(self, unit: Unit) -> Location:
        """Where the shard lies."""
        return self.output / f"{unit.number:05}.tar"

    def __call__(self, unit: Unit) -> tuple[bool, Counter[str]]:
        tar, recipe = self.tar(unit), self.recipe(unit)
        if stats := whole_stats(tar, recipe):
            say_shards(tar, stats, unit.shards)
            return False, Counter(stats["status_dict"])
        dropped: list[dict[str, Any]] = []
        entries = self._entries(unit, dropped)
        write_shard(tar, entries, started=time.time(), recipe=recipe, shards=unit.shards, dropped=dropped)
        return True, Counter(read_stats(tar)["status_dict"])

    def counts(self, unit: Unit) -> Counter[str] | None:
        """The counts of a shard, None where it is not there as it would be written now."""
        stats = whole_stats(self.tar(unit), self.recipe(unit))
        return Counter(stats["status_dict"]) if stats.get("shards") == unit.shards else None

    def recipe(self, unit: Unit) -> dict[str, Any]:
        """All that decides what is written; a file is known by its size and the time of its last change."""
        said = [
            [
                one.path,
                one.captions,
                one.fields,
                one.text,
                *(self._stamp(file) for file in (one.path, one.text) if file),
            ]
            for one in unit.pictures
        ]
        sources = hashlib.sha256(json.dumps(said).encode()).hexdigest()
        own = {"script": "folder", "format": FORMAT, "shard_size": self.shard_size}
        return own | {"sources": sources}

    def _stamp(self, file: str) -> list[Any]:
        try:
            stat = (self.folder / file).stat()
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return []
        info = getattr(stat, "info", None) or {}  # what a bucket says, which names the time as it likes
        times = [str(info[name]) for name in ("etag", "ETag", "LastModified", "updated", "created") if name in info]
        return [stat.st_size, stat.st_mtime, *times]

    def _entries(self, unit: Unit, dropped: list[dict[str, Any]]) -> Iterator[Entry]:
        for index, picture in enumerate(unit.pictures):
            key = shard_key(unit.number, index, self.shard_size)
            try:
                yield self._entry(picture, key)
            except Unfit as unfit:
                dropped.append(unfit.row(key, _source(picture)))

    def _entry(self, picture: Picture, key: str) -> Entry:
        captions = list(picture.captions or self._caption(picture))
        if not captions:
            raise Unfit("no caption")
        if picture.path.startswith(("/", "../")) or picture.path in ("..", "."):
            raise Unfit("not below the folder")
        try:
            content = (self.folder / picture.path).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError) as error:
            raise Unfit("no such file") from error
        try:
            suffix, kept = as_stored(content)
            opened = pixels.open_picture(kept)
        except ValueError as error:
            raise Unfit("undecodable", str(error)) from error
        said = dict(picture.fields) | _source(picture)
        said |= {"captions": captions} if len(captions) > 1 else {}
        row = sample_row(key, captions[0], opened.size, opened.size, hashlib.sha256(content).hexdigest())
        return Entry({**said, **row, "url": said.get("url")}, kept, suffix)

    def _caption(self, picture: Picture) -> tuple[str, ...]:
        if picture.text is None:
            return ()
        try:
            text = (self.folder / picture.text).read_bytes().decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise Unfit("bad caption", "not UTF-8") from error
        return (text,) if text else ()


def as_stored(content: bytes) -> tuple[str, bytes]:
    """The suffix and the bytes under which a picture is stored: its own, or those of a PNG for the rarer formats.

    ValueError if it cannot be opened. What kind it is is read from its bytes, not from its name.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP", *REWRITTEN)) as opened:
            if getattr(opened, "is_animated", False):
                raise Unfit("animated")
            if opened.format in KEPT:
                return KEPT[opened.format], content
            if opened.width * opened.height > pixels.MAX_PIXELS:
                raise ValueError(f"picture of {opened.width} x {opened.height} pixels is too large")
            upright = pixels.over_white(ImageOps.exif_transpose(opened))
            buffer = io.BytesIO()
            upright.save(buffer, "PNG", exif=b"")
            return "png", buffer.getvalue()
    except (ValueError, Unfit):
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on bytes they did not expect
        raise ValueError(f"picture cannot be decoded ({type(error).__name__})") from error


def _source(picture: Picture) -> dict[str, str]:
    """Where a picture came from; a name that is not UTF-8 is told as far as it is."""
    return {"path": picture.path.encode(errors="surrogateescape").decode(errors="replace")}


def _natural(path: str) -> list[tuple[int, int, str]]:
    """Digits count as the number that they are; folders come with what is in them."""
    pieces = re.findall(r"/|[0-9]+|[^0-9/]+", path)
    return [(0, 0, "") if p == "/" else (1, int(p), "") if p.isascii() and p.isdigit() else (2, 0, p) for p in pieces]


def _values(cells: list[str]) -> list[Any]:
    """A column: whole numbers, decimal numbers or text, whichever every cell can be."""
    filled = [cell for cell in cells if cell]
    if all(_WHOLE.fullmatch(cell) for cell in filled):
        return [int(cell) if cell else None for cell in cells]
    if all(_DECIMAL.fullmatch(cell) for cell in filled):
        return [float(cell) if cell else None for cell in cells]
    return [cell or None for cell in cells]
