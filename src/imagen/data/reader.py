"""Shards from end to end: two tars joined by key, and the few known fields decoded by hand.

A picture, its caption and its json are the only members of a tar that are ever looked into, and safetensors those of
its sidecar; a pickle beside them is passed over.
"""

import itertools
import logging
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from imagen.data import pixels
from imagen.data.index import PICTURE_FIELDS, TEXT_FIELDS
from imagen.data.shards import read_encoder, read_samples
from imagen.data.stream import Crop, Sample, Shard
from imagen.data.tokens import caption_hash, load_tokens
from imagen.errors import UserError
from imagen.files import Location
from imagen.randomness import seed_of

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Raw:
    """One sample as bytes, None where the tars lack it; ``fault`` says so where they could not even be read.

    ``shape`` is its shard's.
    """

    shard: str
    key: str
    picture: bytes | None = None
    caption: bytes | None = None
    info: bytes | None = None
    tokens: bytes | None = None
    fault: str | None = None
    shape: tuple[int, int] | None = None


def read_shard(shard: Shard, fingerprint: dict[str, Any] | None) -> Iterator[Raw]:
    """``shard.count`` samples in the order in which both halves of each were met, those without text last.

    Of a shard without a sidecar the pictures in their order; ``fingerprint`` is the encoder's whose tokens are read.
    What a damaged tar lost comes as empty samples, to be counted.
    """
    found = 0
    texts = [] if shard.text is None else _texts(shard.text, fingerprint)
    for raw in join(_pictures(shard), texts):
        if found == shard.count:
            log.warning("%s holds more than its _stats.json says (%d): the rest is not read", shard.images, shard.count)
            return
        found += 1
        yield raw
    if found < shard.count:
        log.warning("%s is damaged: it gave %d of its %d samples", shard.images, found, shard.count)
    for missing in range(found, shard.count):
        yield Raw(str(shard.images), f"#{missing}", fault="the tar is damaged")


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


def _pictures(shard: Shard) -> Iterator[Raw]:
    """Only what has a picture is a sample."""
    for key, content in _undamaged(shard.images, PICTURE_FIELDS):
        if content.get("picture") is not None:
            raw = Raw(str(shard.images), key, shape=shard.shape)
            raw.picture, raw.caption, raw.info = (content.get(field) for field in ("picture", "caption", "info"))
            yield raw


def _texts(tar: Location, fingerprint: dict[str, Any] | None) -> Iterator[tuple[str, bytes]]:
    try:
        made_by = read_encoder(tar)
    except (UserError, OSError) as error:
        log.warning("%s", error)
        return
    if made_by != fingerprint:
        log.warning("%s was made by another encoder than the first of its folder: it is not read", tar)
        return
    for key, content in _undamaged(tar, TEXT_FIELDS):
        if (tokens := content["tokens"]) is not None:
            yield key, tokens


def _undamaged(tar: Location, fields: dict[str, str]) -> Iterator[tuple[str, dict[str, bytes | None]]]:
    """The samples of a tar; a damaged one ends where the damage begins."""
    try:
        yield from read_samples(tar, fields)
    except (UserError, OSError) as error:
        log.warning("%s", error)


@dataclass(frozen=True)
class Decode:
    """One raw sample into a picture and its tokens.

    The picture is the square of ``resolution`` pixels, cut anywhere along the long side where ``random_crop``
    (addressed by seed, epoch and key), else in the middle; or of its shard's ``shape``. ``crop`` is what is then taken
    of it. ``width`` is that of the tokens; None: none are stored. ``jpeg_draft`` lets the codec shrink JPEGs on the
    way, which is faster and changes pixels slightly.
    """

    resolution: int
    width: int | None
    random_crop: bool
    seed: int
    crop: Crop
    jpeg_draft: bool

    def sample(self, epoch: int, raw: Raw) -> Sample:
        """Decode one; ValueError says in a few words why it cannot be used."""
        if raw.fault is not None:
            raise ValueError(raw.fault)
        if raw.picture is None:
            raise ValueError("no picture")
        if raw.caption is None:
            raise ValueError("no caption")
        caption = raw.caption.decode(errors="replace")  # as read_captions does before the encoder sees it
        tokens = None if self.width is None else self._tokens(raw.tokens, caption, self.width)
        return Sample(raw.key, self._image(epoch, raw, raw.picture), tokens, caption)

    def _tokens(self, member: bytes | None, caption: str, width: int) -> Float[Tensor, "n {width}"]:
        if member is None:
            raise ValueError("no text embedding")
        tokens, made_from = load_tokens(member)
        if made_from != caption_hash(caption):
            raise ValueError("text embedding of another caption")
        if tokens.ndim != 2 or tokens.shape[1] != width or not len(tokens):
            raise ValueError(f"text embedding of shape {tuple(tokens.shape)} instead of (tokens, {width})")
        tokens = tokens.float()
        if not tokens.abs().amax().isfinite():  # a NaN is the largest of all
            raise ValueError("text embedding is not finite")
        return tokens

    def _image(self, epoch: int, raw: Raw, content: bytes) -> UInt8[np.ndarray, "h w 3"]:
        shape = raw.shape or (self.resolution, self.resolution)
        orientation, along = pixels.orientation_in(raw.info), self._along(epoch, raw.key)
        window = self.crop.window(*shape, epoch, raw.key)
        if (part := pixels.open_window(content, shape, orientation, along, window)) is not None:
            return part
        least = max(shape) if self.jpeg_draft else None
        return pixels.cover(pixels.open_picture(content, orientation, least), *shape, along)[window]

    def _along(self, epoch: int, key: str) -> float:
        if not self.random_crop:
            return 0.5
        return random.Random(seed_of(self.seed, "crop", epoch, key)).random()
