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
from imagen.data.synthetic import Draw, SyntheticModule
from imagen.data.webdataset import WebDatasetModule
from imagen.errors import UserError
from imagen.files import Location, locate, names_in
from imagen.metric.pictures import MOST_IN_MEMORY, Pictures, PictureSet
from imagen.text_encoder import TextEncoder

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def read_set(data: LightningDataModule, encoder: TextEncoder, judge: TextEncoder) -> PictureSet:
    """The pictures at the resolution that ``data`` is for, each whole, decoded and passed over as its loader does.

    ``encoder`` and ``judge`` are as in ``PictureSet``.

    Raises: UserError if ``data`` is of another kind than those of ``conf/data``, or misses files.
    """
    if not isinstance(data, WebDatasetModule | SyntheticModule):
        raise UserError(f"data={type(data).__name__} is not of conf/data: there is no set to measure against")
    data.setup()
    return PictureSet(lambda split: Decoded(partial(_of_split, data, split), f"data: split {split}"), encoder, judge)


def _of_split(data: WebDatasetModule | SyntheticModule, split: str) -> Iterator[Sample | Fault]:
    whole = Crop(None, False, data.seed)
    if isinstance(data, SyntheticModule):
        draw = Draw(data.resolution, whole)
        yield from (draw.sample(0, raw) for raw in data.captioned[split])
        return
    decode = dataclasses.replace(data.decode("val"), crop=whole)
    for shard in data.shards[split]:
        for raw in read_shard(dataclasses.replace(shard, shape=None), data.text_fingerprint):
            yield _attempt(raw.shard, raw.key, partial(decode.sample, 0, raw))


def read_folder(reference: str, side: int) -> "Decoded":
    """The pictures at ``reference``, at ``side`` pixels.

    A folder of shards as ``data_prep`` writes them, or of PNG, JPEG or WebP files, or a packed root, of which both
    splits are read at the smallest size that is large enough.

    Raises: UserError if there are none.
    """
    folder = locate(reference)
    names = sorted(names_in(folder))
    if any(name.endswith(".tar") for name in names):
        return _decoded(whole_shards(folder, skip_unfinished=False), side)
    if files := [folder / name for name in names if name.lower().endswith(SUFFIXES)]:
        return _decoded(files, side)
    packed = [tar for split in SPLITS for tar in _packed(folder / split, side)]
    if not packed:
        raise UserError(
            f"reference={reference} has neither shards nor pictures: give a folder of .tar shards or of PNG, JPEG or "
            f"WebP files, or a root with train/images-<size> of {side} px and more"
        )
    return _decoded(packed, side)


def _packed(folder: Location, side: int) -> list[Location]:
    sizes = [name.removeprefix("images-") for name in names_in(folder) if name.startswith("images-")]
    enough = [int(size) for size in sizes if size.isdecimal() and int(size) >= side]
    return whole_shards(folder / f"images-{min(enough)}", skip_unfinished=False) if enough else []


def _decoded(sources: Sequence[Location], side: int) -> "Decoded":
    return Decoded(partial(_of_files, sources, side), f"reference: {sources[0].parent}", f" of {side} px")


def _of_files(sources: Sequence[Location], side: int) -> Iterator[Sample | Fault]:
    """Each picture's largest square in the middle, shrunk by averaging, as the loader does it."""
    decode = Decode(side, None, False, 0, Crop(None, False, 0), False)

    def of_file(source: Location) -> Sample:
        return Sample(source.name, cover(open_picture(source.read_bytes()), side, side), None, "")

    for source in sources:
        if source.suffix != ".tar":
            yield _attempt(source.parent.name, source.name, partial(of_file, source))
            continue
        shard = Shard(source, None, int(json.loads(stats_path(source).read_text())["successes"]))
        for raw in read_shard(shard, None):
            yield _attempt(source.parent.name, raw.key, partial(decode.sample, 0, raw))


def _attempt(shard: str, key: str, make: Callable[[], Sample]) -> Sample | Fault:
    try:
        return make()
    except ValueError as error:
        return Fault(shard, key, str(error))


class Decoded(Pictures):
    """The pictures among ``samples``, called anew each time they are asked for unless they are few.

    COCO's 40,504 at 256 px would take 8 GB. What cannot be used is left out with a warning.
    """

    def __init__(self, samples: Callable[[], Iterator[Sample | Fault]], where: str, size: str = "") -> None:
        """Reads all of them once. Raises: UserError, which begins with ``where``, if no picture is of use."""
        self.samples = samples
        whole, captions, unfit = hashlib.sha256(), list[str](), list[Fault]()
        self._kept: list[UInt8[Tensor, "3 h w"]] = []
        room = MOST_IN_MEMORY
        for found in samples():
            if isinstance(found, Fault):
                unfit.append(found)
                continue
            image = _tensor(found.image)
            captions.append(found.caption)
            whole.update(image.contiguous().numpy().tobytes())
            room -= image.numel()
            if room >= 0:
                self._kept.append(image)
            else:
                self._kept.clear()
        first = f", the first {unfit[0].key} of {unfit[0].shard}: {unfit[0].reason}" if unfit else ""
        if not captions:
            raise UserError(f"{where} has no picture{size} that can be read{first}")
        if unfit:
            log.warning("%s: %d of %d pictures are left out%s", where, len(unfit), len(unfit) + len(captions), first)
        self.captions: Sequence[str] = captions
        self._digest = whole.hexdigest()

    @cached_property
    def digest(self) -> str:
        """As found when all were read."""
        return self._digest

    def batches(self, size: int) -> Iterator[UInt8[Tensor, "_ 3 h w"]]:
        images = iter(self._kept) if self._kept else self._anew()
        while batch := list(itertools.islice(images, size)):
            yield torch.stack(batch)

    def _anew(self) -> Iterator[UInt8[Tensor, "3 h w"]]:
        return (_tensor(found.image) for found in self.samples() if isinstance(found, Sample))


def _tensor(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[Tensor, "3 h w"]:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)
