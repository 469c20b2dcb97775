"""The real pictures that drawn ones are measured against: a stage's own data set, or any folder."""

import dataclasses
import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial

import numpy as np
import torch
from jaxtyping import UInt8
from lightning import LightningDataModule
from torch import Tensor

from imagen.data.pixels import cover, open_picture
from imagen.data.reader import Decode, read_shard
from imagen.data.shards import SPLITS, stats_path, whole_shards
from imagen.data.stream import Crop, Fault, Sample, Shard
from imagen.data.webdataset import WebDatasetModule
from imagen.errors import UserError
from imagen.files import Location, locate, names_in
from imagen.metric.pictures import Pictures, PictureSet
from imagen.text_encoder import TextEncoder

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def read_set(data: LightningDataModule, encoder: TextEncoder, judge: TextEncoder) -> PictureSet:
    """Both splits' pictures at the resolution that ``data`` is for, decoded and passed over as its loader does.

    ``encoder`` and ``judge`` are as in ``PictureSet``.

    Raises: UserError if ``data`` has no shards.
    """
    if not isinstance(data, WebDatasetModule):
        raise UserError(f"data={type(data).__name__} is not read from shards: there is no set to measure against")
    data.setup()
    decode = dataclasses.replace(data.decode("val"), crop=Crop(None, False, data.seed))
    images: list[Tensor] = []
    captions: list[str] = []
    rows: dict[str, list[int]] = {}
    for split in SPLITS:
        first = len(captions)
        for raw in itertools.chain(*(read_shard(shard, data.text_fingerprint) for shard in data.shards[split])):
            try:
                sample = decode.sample(0, raw)
            except ValueError as error:
                log.warning("unfit sample %s of %s: %s", raw.key, raw.shard, error)
                continue
            images.append(_tensor(sample.image))
            captions.append(sample.caption)
        rows[split] = list(range(first, len(captions)))
    return PictureSet(torch.stack(images), captions, rows["train"], rows["val"], encoder, judge)


def read_folder(reference: str, side: int) -> "InFolder":
    """The pictures at ``reference``, at ``side`` pixels.

    A folder of shards as ``data_prep`` writes them, or of PNG, JPEG or WebP files, or a packed root, of which both
    splits are read at the smallest size that is large enough.

    Raises: UserError if there are none.
    """
    folder = locate(reference)
    names = sorted(names_in(folder))
    if any(name.endswith(".tar") for name in names):
        return InFolder(whole_shards(folder, skip_unfinished=False), side)
    if files := [folder / name for name in names if name.lower().endswith(SUFFIXES)]:
        return InFolder(files, side)
    packed = [tar for split in SPLITS for tar in _packed(folder / split, side)]
    if not packed:
        raise UserError(
            f"reference={reference} has neither shards nor pictures: give a folder of .tar shards or of PNG, JPEG or "
            f"WebP files, or a root with train/images-<size> of {side} px and more"
        )
    return InFolder(packed, side)


def _packed(folder: Location, side: int) -> list[Location]:
    sizes = [name.removeprefix("images-") for name in names_in(folder) if name.startswith("images-")]
    enough = [int(size) for size in sizes if size.isdecimal() and int(size) >= side]
    return whole_shards(folder / f"images-{min(enough)}", skip_unfinished=False) if enough else []


class InFolder(Pictures):
    """Pictures in shards or files, decoded anew each time they are asked for: COCO's 40,504 would take 8 GB.

    Each is the largest square in the middle, shrunk to ``side`` pixels by averaging, as the loader does it; smaller
    ones and broken ones are left out with a warning.
    """

    def __init__(self, sources: Sequence[Location], side: int) -> None:
        """Reads all of them once. Raises: UserError if no picture is of use."""
        self.sources, self.side = sources, side
        self.decode = Decode(side, None, False, 0, Crop(None, False, 0), False)
        whole, captions, unfit = hashlib.sha256(), list[str](), list[Fault]()
        for found in self._all():
            if isinstance(found, Fault):
                unfit.append(found)
                continue
            captions.append(found.caption)
            whole.update(_tensor(found.image).contiguous().numpy().tobytes())
        first = f", the first {unfit[0].key} of {unfit[0].shard}: {unfit[0].reason}" if unfit else ""
        if not captions:
            raise UserError(f"reference: {sources[0].parent} has no picture of {side} px that can be read{first}")
        if unfit:
            log.warning("reference: %d of %d pictures are left out%s", len(unfit), len(unfit) + len(captions), first)
        self.captions: Sequence[str] = captions
        self._digest = whole.hexdigest()

    @cached_property
    def digest(self) -> str:
        """As found when all were read."""
        return self._digest

    def batches(self, size: int) -> Iterator[UInt8[Tensor, "_ 3 h w"]]:
        images = (_tensor(found.image) for found in self._all() if isinstance(found, Sample))
        while batch := list(itertools.islice(images, size)):
            yield torch.stack(batch)

    def _all(self) -> Iterator[Sample | Fault]:
        for source in self.sources:
            if source.suffix != ".tar":
                yield self._attempt(source, source.name, partial(self._of_file, source))
                continue
            shard = Shard(source, None, int(json.loads(stats_path(source).read_text())["successes"]))
            for raw in read_shard(shard, None):
                yield self._attempt(source, raw.key, partial(self.decode.sample, 0, raw))

    def _attempt(self, source: Location, key: str, make: Callable[[], Sample]) -> Sample | Fault:
        try:
            return make()
        except ValueError as error:
            return Fault(source.parent.name, key, str(error))

    def _of_file(self, source: Location) -> Sample:
        return Sample(source.name, cover(open_picture(source.read_bytes()), self.side, self.side), None, "")


def _tensor(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[Tensor, "3 h w"]:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)
