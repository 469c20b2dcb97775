"""The real pictures that drawn ones are measured against."""

import dataclasses
import itertools
import logging

import torch
from lightning import LightningDataModule
from torch import Tensor

from imagen.data.reader import read_shard
from imagen.data.shards import SPLITS
from imagen.data.stream import Crop
from imagen.data.webdataset import WebDatasetModule
from imagen.errors import UserError
from imagen.metric.pictures import PictureSet
from imagen.text_encoder import TextEncoder

log = logging.getLogger(__name__)


def read_set(data: LightningDataModule, encoder: TextEncoder) -> PictureSet:
    """Both splits' pictures at the resolution that ``data`` is for, decoded and passed over as its loader does.

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
            images.append(torch.from_numpy(sample.image.copy()).permute(2, 0, 1))
            captions.append(sample.caption)
        rows[split] = list(range(first, len(captions)))
    return PictureSet(torch.stack(images), captions, rows["train"], rows["val"], encoder)
