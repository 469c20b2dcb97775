"""One shard of packed pictures, written at every size from one decoding."""

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from imagen.data import pixels
from imagen.data.shards import stats_path
from imagen.data.writer import Entry, sample_row, say_shards, shard_key, whole_stats, write_shard
from imagen.errors import UserError
from imagen.files import Location, naming
from imagen.prep.pack.buckets import Shape
from imagen.prep.pack.codecs import Codec
from imagen.prep.pack.plan import Part, Rules, Unit, place
from imagen.prep.pack.sources import Raw, is_size, orientation_of, parse_info, read_promised, read_samples, turned
from imagen.prep.unfit import Unfit

FORMAT = 1  # raise it when what is written changes: old shards are then redone
SPOOL = 2**26  # bytes of one size that wait in memory rather than on the disk while the largest is written

Pictures = dict[int, UInt8[np.ndarray, "_ _ 3"]]
"""One picture at every size."""


@dataclass(frozen=True)
class PackShard:
    """Write one shard at every size, or find that it is whole; returns what its files say of it."""

    root: Location
    sizes: tuple[int, ...]  # ascending
    rules: Rules
    codec: Codec
    shard_size: int

    def folder(self, split: str, size: int) -> Location:
        """Where the shards of a split lie at one size."""
        return self.root / split / (f"images-{size}-buckets" if self.rules.shapes else f"images-{size}")

    def tars(self, unit: Unit) -> dict[int, Location]:
        """Where the shard lies, for each size."""
        return {size: self.folder(unit.split, size) / f"{unit.number:05}.tar" for size in self.sizes}

    def recipe(self, unit: Unit) -> dict[str, Any]:
        """All that decides what is written."""
        said = {"rules": asdict(self.rules), "shape": unit.shape, "codec": asdict(self.codec)}
        own = {"script": "pack", "format": FORMAT, "sizes": self.sizes, "shard_size": self.shard_size}
        unit_of = {"split": unit.split, "sources": unit.digest}
        return json.loads(json.dumps(own | said | unit_of))  # as it is read back

    def __call__(self, unit: Unit) -> dict[str, Any]:
        tars, recipe = self.tars(unit), self.recipe(unit)
        stats = {tar: whole_stats(tar, recipe) for tar in tars.values()}
        whole = all(stats.values())
        if whole:
            for tar, said in stats.items():
                say_shards(tar, said, unit.shards)
        else:
            self._write(unit, tars, recipe)
        summary = self.summary(unit)
        assert summary is not None
        return summary | {"written": not whole}

    def summary(self, unit: Unit) -> dict[str, Any] | None:
        """Counts and bytes of a shard, None while it is not there at every size, or of another making."""
        tars, recipe = self.tars(unit), self.recipe(unit)
        stats = [whole_stats(tar, recipe) for tar in tars.values()]
        if not all(one.get("shards") == unit.shards for one in stats):
            return None
        reasons = dict(stats[-1]["status_dict"])
        samples = reasons.pop("success")
        sizes = {size: tar.stat().st_size for size, tar in tars.items()}
        return {"split": unit.split, "shape": unit.shape, "samples": samples, "reasons": reasons, "bytes": sizes}

    def _write(self, unit: Unit, tars: dict[int, Location], recipe: dict[str, Any]) -> None:
        started = time.time()
        for tar in tars.values():  # or a stop in between would leave sizes of two makings, each with its mark
            stats_path(tar).unlink(missing_ok=True)
        dropped: list[dict[str, Any]] = []
        *others, largest = self.sizes
        with ExitStack() as stack:
            spools = {size: stack.enter_context(Spool(self.codec.suffix)) for size in others}
            for size in (largest, *others):  # writing the largest fills the spools of the others
                write_shard(
                    tars[size],
                    self._entries(unit, spools, dropped) if size == largest else spools[size].entries(),
                    started=started,
                    recipe=recipe,
                    shards=unit.shards,
                    dropped=dropped,
                    more={"shape": list(_scaled(unit.shape, size, largest))} if unit.shape else {},
                )

    def _entries(self, unit: Unit, spools: dict[int, "Spool"], dropped: list[dict[str, Any]]) -> Iterator[Entry]:
        """The samples at the largest size, while the others go into their spools."""
        samples = ((part, raw) for part in unit.parts for raw in _of(part, unit.group, self.rules))
        for index, (part, raw) in enumerate(samples):
            key = shard_key(unit.number, index, self.shard_size)
            source = {"source_shard": part.tar.stem, "source_key": raw.key}
            try:
                row, pictures = self._sample(raw, key, unit.shape)
                encoded = {size: self.codec.encode(picture) for size, picture in pictures.items()}
            except Unfit as unfit:
                dropped.append(unfit.row(key, source))
                continue
            rows = {size: row | source | _size(picture) for size, picture in pictures.items()}
            for size, spool in spools.items():
                spool.add(rows[size], encoded[size])
            yield Entry(rows[self.sizes[-1]], encoded[self.sizes[-1]], self.codec.suffix)

    def _sample(self, raw: Raw, key: str, shape: Shape | None) -> tuple[dict[str, Any], Pictures]:
        if raw.picture is None:
            raise Unfit("missing from the tar")
        info = parse_info(raw.info)
        if info is None:
            raise Unfit("json cannot be read")
        caption = info.get("caption") if raw.caption is None else raw.caption.decode(errors="replace")
        if not isinstance(caption, str) or not caption.strip():
            raise Unfit("no caption")
        orientation = orientation_of(info.get("exif"))
        try:
            picture = pixels.open_picture(raw.picture, orientation)
        except ValueError as error:
            raise Unfit("undecodable", str(error)) from error
        original = _original(info, picture, orientation)
        ours = sample_row(key, caption, (0, 0), original, "") | {name: info.get(name) for name in ("url", "sha256")}
        return info | ours | {"exif": _upright_exif(info.get("exif"))}, self._pictures(picture, shape)

    def _pictures(self, picture: Image.Image, shape: Shape | None) -> Pictures:
        """The picture at every size, by way of the largest."""
        *others, largest = self.sizes
        try:
            made = {largest: pixels.cover(picture, *shape) if shape else pixels.shrink(picture, largest)}
        except ValueError as error:  # it is not of the size that its json says
            raise Unfit("too small", str(error)) from error
        picture = Image.fromarray(made[largest])
        for size in others:
            made[size] = (
                pixels.cover(picture, *_scaled(shape, size, largest)) if shape else pixels.shrink(picture, size)
            )
        return made


class Spool:
    """Samples that wait, in memory or beyond it on the disk, until their own tar is written."""

    def __init__(self, suffix: str) -> None:
        self.suffix = suffix
        self.rows: list[tuple[dict[str, Any], int]] = []
        self.file = tempfile.SpooledTemporaryFile(SPOOL)  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def add(self, row: dict[str, Any], picture: bytes) -> None:
        """Keep one sample."""
        with naming(tempfile.gettempdir()):
            self.file.write(picture)
        self.rows.append((row, len(picture)))

    def entries(self) -> Iterator[Entry]:
        """All of them, in order."""
        self.file.seek(0)
        for row, size in self.rows:
            yield Entry(row, self.file.read(size), self.suffix)


def _of(part: Part, group: int, rules: Rules) -> Iterator[Raw]:
    """The samples of a part."""
    promised = read_promised(part.tar)
    groups, _ = place(promised, rules)
    own = np.flatnonzero(groups == group)[part.first : part.last]
    if len(own) != part.last - part.first:
        raise UserError(f"{part.tar} was changed while it was packed: run the command again")
    return read_samples(part.tar, [promised.keys[i] for i in own])


def _scaled(shape: Shape, size: int, largest: int) -> Shape:
    """A bucket's shape, given at the largest size, at another."""
    return shape[0] * size // largest, shape[1] * size // largest


def _size(picture: UInt8[np.ndarray, "_ _ 3"]) -> dict[str, int]:
    return {"width": picture.shape[1], "height": picture.shape[0]}


def _original(info: dict[str, Any], picture: Image.Image, orientation: str | None) -> tuple[int, int]:
    """(width, height) upright of what was downloaded, as its json says, else of what the shard held."""
    width, height = info.get("original_width"), info.get("original_height")
    if not (is_size(width) and is_size(height)):
        return picture.size
    return turned(width, height, pixels.lies_sideways(orientation))


def _upright_exif(exif: object) -> str:
    """The camera's words without those on how it was held, since the picture is upright now."""
    with suppress(ValueError, TypeError, RecursionError):
        words = json.loads(exif)  # type: ignore[arg-type]
        if isinstance(words, dict):
            return json.dumps({name: value for name, value in words.items() if name != "Image Orientation"})
    return "{}"
