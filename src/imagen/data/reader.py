"""Shards into samples: two tars joined by key, and the few known fields decoded by hand.

A picture, its caption and its json are the only members of a tar that are ever looked into, and safetensors those of
its sidecar; a pickle beside them is passed over.
"""

import itertools
import json
import logging
import random
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imagen.data import pixels
from imagen.data.shards import ENCODER_MEMBER, TOKENS_SUFFIX, caption_hash, load_tokens
from imagen.data.stream import Crop, Fault, Piece, Sample, Shard
from imagen.randomness import seed_of

log = logging.getLogger(__name__)

_FIELDS = {"png": "picture", "jpg": "picture", "jpeg": "picture", "webp": "picture", "txt": "caption", "json": "info"}


@dataclass(slots=True)
class Raw:
    """One sample as bytes; None where the tars lack it."""

    shard: str
    key: str
    picture: bytes | None = None
    caption: bytes | None = None
    info: bytes | None = None
    tokens: bytes | None = None

    def __len__(self) -> int:
        return sum(len(part) for part in (self.picture, self.caption, self.info, self.tokens) if part)


@dataclass
class ReadShards:
    """Pieces into (epoch, raw sample) pairs; shards stay in memory until ``cache_bytes`` of them do.

    Each shard gives exactly the ``count`` samples that its stats promise: what a damaged tar lost comes as empty
    ones, to be counted, and keeps the places of the others.
    """

    fingerprint: dict[str, Any]
    cache_bytes: int
    _cache: dict[Shard, list[Raw]] = field(default_factory=dict, init=False)
    _cached: int = field(default=0, init=False)

    def __call__(self, pieces: Iterable[Piece]) -> Iterator[tuple[int, Raw]]:
        for piece in pieces:
            raws = self._cache.get(piece.shard) or self._remembered(piece.shard)
            for raw in itertools.islice(raws, piece.first, None, piece.step):
                yield piece.epoch, raw

    def _remembered(self, shard: Shard) -> Iterator[Raw]:
        kept: list[Raw] | None = []
        size = 0
        for raw in read_shard(shard, self.fingerprint):
            if kept is not None:
                kept.append(raw)
                size += len(raw)
                if self._cached + size > self.cache_bytes:
                    kept = None
            yield raw
        if kept is not None:
            self._cache[shard] = kept
            self._cached += size


def read_shard(shard: Shard, fingerprint: dict[str, Any]) -> Iterator[Raw]:
    """``shard.count`` samples in the order in which both halves of each were met, those without text last."""
    found = 0
    for raw in join(_pictures(shard.images), _texts(shard.text, fingerprint)):
        if found == shard.count:
            log.warning("%s holds more than its _stats.json says (%d): the rest is not read", shard.images, shard.count)
            return
        found += 1
        yield raw
    if found < shard.count:
        log.warning("%s is damaged: it gave %d of its %d samples", shard.images, found, shard.count)
    for missing in range(found, shard.count):
        yield Raw(str(shard.images), f"#{missing}")


def join(pictures: Iterable[Raw], texts: Iterable[tuple[str, bytes]]) -> Iterator[Raw]:
    """Give each picture the tokens of its key, whatever the order of either; what has no partner yet waits.

    Both are read in step, so that tars in the same order never hold more than a few.
    """
    lonely_pictures: dict[str, Raw] = {}
    lonely_texts: dict[str, bytes] = {}
    for picture, text in itertools.zip_longest(pictures, texts):
        if picture is not None:
            lonely_pictures[picture.key] = picture
        if text is not None:
            lonely_texts[text[0]] = text[1]
        # what was read just now may complete one pair, or two
        for key in (picture.key if picture is not None else None, text[0] if text is not None else None):
            if key in lonely_pictures and key in lonely_texts:
                raw = lonely_pictures.pop(key)
                raw.tokens = lonely_texts.pop(key)
                yield raw
    yield from lonely_pictures.values()


def _pictures(tar: Path) -> Iterator[Raw]:
    """Group neighbours of one key; only what has a picture is a sample."""
    shard = str(tar)
    for key, members in itertools.groupby(_members(tar), key=lambda member: member[0].rpartition(".")[0]):
        raw = Raw(shard, key)
        for name, content in members:
            known = _FIELDS.get(name.rpartition(".")[2].lower())
            if known is not None:
                setattr(raw, known, content)
        if raw.picture is not None:
            yield raw


def _texts(tar: Path, fingerprint: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    for name, content in _members(tar):
        if name == ENCODER_MEMBER:
            if not _says(content, fingerprint):
                log.warning("%s was made by another encoder than the first of its folder: it is not read", tar)
                return
        elif name.endswith(TOKENS_SUFFIX):
            yield name.removesuffix(TOKENS_SUFFIX), content


def _says(content: bytes, fingerprint: dict[str, Any]) -> bool:
    try:
        return json.loads(content) == fingerprint
    except ValueError:
        return False


def _members(tar: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file, in order; a damaged tar ends where the damage begins."""
    try:
        with tarfile.open(tar, "r:") as archive:
            while (info := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # or it keeps every header of the shard
                if not info.isreg() or info.issparse():
                    continue
                assert archive.fileobj is not None
                archive.fileobj.seek(info.offset_data)
                content = archive.fileobj.read(info.size)
                if len(content) < info.size:
                    raise tarfile.ReadError("unexpected end of data")
                yield info.name, content
    except (tarfile.TarError, OSError) as error:
        log.warning("%s cannot be read on (%s)", tar, error)


@dataclass(frozen=True)
class Decode:
    """(epoch, raw sample) into a picture of ``resolution`` and its tokens, or into the fault that forbids it.

    ``random_crop`` cuts the square anywhere along the long side, addressed by (seed, epoch, key); else in the middle.
    ``crop`` is what is then taken of the square.
    """

    resolution: int
    width: int
    random_crop: bool
    seed: int
    crop: Crop

    def __call__(self, source: Iterable[tuple[int, Raw]]) -> Iterator[Sample | Fault]:
        for epoch, raw in source:
            try:
                yield self.sample(epoch, raw)
            except ValueError as error:
                yield Fault(raw.shard, raw.key, str(error))

    def sample(self, epoch: int, raw: Raw) -> Sample:
        """Decode one; ValueError says in a few words why it cannot be used."""
        if raw.picture is None:
            raise ValueError("no picture: the tar is damaged")
        if raw.caption is None:
            raise ValueError("no caption")
        if raw.tokens is None:
            raise ValueError("no text embedding")
        caption = raw.caption.decode(errors="replace")  # as read_captions does before the encoder sees it
        tokens, made_from = load_tokens(raw.tokens)
        if made_from != caption_hash(caption):
            raise ValueError("text embedding of another caption")
        if tokens.ndim != 2 or len(tokens) == 0 or tokens.shape[1] != self.width:
            raise ValueError(f"text embedding of shape {tuple(tokens.shape)}")
        if not tokens.isfinite().all():
            raise ValueError("text embedding is not finite")
        picture = pixels.open_picture(raw.picture, _orientation(raw.info))
        image = pixels.square(picture, self.resolution, self._along(epoch, raw.key))
        return Sample(raw.key, self.crop(image, epoch, raw.key), tokens, caption)

    def _along(self, epoch: int, key: str) -> float:
        if not self.random_crop:
            return 0.5
        return random.Random(seed_of(self.seed, "crop", epoch, key)).random()


def _orientation(info: bytes | None) -> str | None:
    """What the json of img2dataset says of the camera; the rest of the json is not needed, so it is rarely parsed."""
    if info is None or b"Image Orientation" not in info:
        return None
    try:
        return json.loads(json.loads(info)["exif"])["Image Orientation"]
    except (ValueError, KeyError, TypeError):
        return None
