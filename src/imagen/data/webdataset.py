"""Captioned pictures from WebDataset shards, as img2dataset and data_prep/ write them, with their text sidecars."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from imagen.data import parts
from imagen.data.access import ReadSamples
from imagen.data.draws import Draws
from imagen.data.module import StreamModule
from imagen.data.parts import Read
from imagen.data.reader import Decode
from imagen.data.shards import SPLITS, find_text_folder, read_encoder, stats_path, whole_shards
from imagen.data.stream import Shard
from imagen.errors import UserError
from imagen.files import Location, locate, names_in
from imagen.ranges import Natural
from imagen.text_encoder import TextEncoder
from imagen.types import Batch

ONLINE = "online"
"""``data.text=online``: captions are encoded as their batches arrive, and no sidecar is read."""


class WebDatasetModule(StreamModule):
    """The folders ``root/{train,val}/images-<size>`` and ``text-<encoder>-<fp8>`` (see ``imagen.data.shards``).

    ``images`` and ``text`` name the folders to read; None takes the smallest pictures that are large enough, and the
    one sidecar folder that ``encoder`` could have made; ``text`` "online" encodes each batch on the trainer's device.
    ``window`` counts the shards that are shuffled together, ``made_by`` is the command named where shards are missing.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        *,
        root: str,
        images: str | None,
        text: str | None,
        made_by: str,
        resolution: int,
        crop: int | None,
        batch_size: int,
        seed: int,
        num_workers: Natural | None,
        multiprocessing_context: str | None,
        flip: bool,
        random_crop: bool,
        jpeg_draft: bool,
        window: int,
        max_unfit: float,
    ) -> None:
        super().__init__(
            encoder,
            resolution=resolution,
            crop=crop,
            batch_size=batch_size,
            seed=seed,
            num_workers=num_workers,
            multiprocessing_context=multiprocessing_context,
            flip=flip,
            window=window,
            max_unfit=max_unfit,
        )
        self.root, self.images, self.text, self.made_by = locate(root), images, text, made_by
        self.random_crop, self.jpeg_draft = random_crop, jpeg_draft

    def setup(self, stage: str | None = None) -> None:
        """Find both splits; UserError where shards or sidecars are missing or another encoder made them."""
        if self.shards:
            return
        images = {split: self._image_folder(split) for split in SPLITS}
        if self.text == ONLINE:
            self.shards = {split: self._shards(images[split]) for split in SPLITS}
            self.text_fingerprint = self.encoder.fingerprint()
            return
        texts = {split: self._text_folder(split) for split in SPLITS}
        shards = {split: self._with_texts(self._shards(images[split]), texts[split]) for split in SPLITS}
        made_by = [read_encoder(texts[split] / shards[split][0].images.name) for split in SPLITS]
        if made_by[0] != made_by[1]:
            raise UserError(f"{texts['train']} and {texts['val']} were not made by the same encoder: {self._embed()}")
        self.shards, self.text_fingerprint = shards, made_by[0]

    def reading(self, split: str) -> tuple[Read, parts.Decode]:
        return ReadSamples(self._fingerprint()), self.decode(split).sample

    def decode(self, split: str) -> Decode:
        """How the pictures of a split are decoded."""
        random_crop = split == "train" and self.random_crop
        width = None if self.text == ONLINE else self.encoder.width
        return Decode(self.resolution, width, random_crop, self.seed, self.crop_of(split), self.jpeg_draft)

    def complete(self, batch: Batch) -> Batch:
        """The batch with its captions encoded, where no sidecar holds them."""
        if self.text != ONLINE:
            return batch
        if self.trainer is not None:
            self.encoder.to(self.trainer.strategy.root_device)
        return replace(batch, text=self.encoder.encode(batch.caption))

    def _fingerprint(self) -> dict[str, Any] | None:
        return None if self.text == ONLINE else self.text_fingerprint

    def _image_folder(self, split: str) -> Location:
        folder = self.root / split
        found = names_in(folder)
        sizes = {name.removeprefix("images-") for name in found if name.startswith("images-")}
        enough = [int(size) for size in sizes if size.isdecimal() and int(size) >= self.resolution]
        chosen = folder / (self.images or f"images-{min(enough, default=self.resolution)}")
        if not any(name.endswith(".tar") for name in names_in(chosen)):
            others = ", ".join(f"images-{size}" for size in sorted(sizes)) or "none"
            buckets = next((size for size in sorted(sizes) if not size.isdecimal()), None)
            remedy = self.made_by if buckets is None else f"take another, data.images=images-{buckets}"
            if split == "val" and not found and names_in(self.root / "train"):
                remedy = f"training validates on pictures that it never saw: {self.made_by} validation=<how many>"
            raise UserError(f"{chosen} has no shards (found: {others}): {remedy}")
        return chosen

    def _text_folder(self, split: str) -> Location:
        if self.text is None:
            return find_text_folder(self.root, split, self.encoder)
        folder = self.root / split / self.text
        first = min((name for name in names_in(folder) if name.endswith(".tar")), default=None)
        if first is None:
            raise UserError(f"data.text={self.text}: {folder} has no sidecars: {self._embed()}")
        made_by = read_encoder(folder / first)
        wrong = {key: made_by.get(key) for key, value in self.encoder.declared().items() if made_by.get(key) != value}
        if wrong:
            raise UserError(
                f"data.text={self.text} was made by another encoder than text_encoder={self.encoder.name} ({wrong}): "
                f"{self._embed()}"
            )
        return folder

    def _shards(self, images: Location) -> tuple[Shard, ...]:
        tars = whole_shards(images, skip_unfinished=False)
        with ThreadPoolExecutor(16) as pool:  # of a bucket, one after the other would take minutes
            shards = list(pool.map(self._shard, tars))
        if not any(shard.count for shard in shards):
            raise UserError(f"{images} has shards, but no picture in them: {self.made_by}")
        return tuple(shard for shard in shards if shard.count)

    def _shard(self, tar: Location) -> Shard:
        """A shard as its stats say: how many samples it holds, and of which shape if it is a bucket's."""
        stats = stats_path(tar)
        try:
            said = json.loads(stats.read_text())
            count, shape = int(said["successes"]), said.get("shape")
            if shape is None:
                return Shard(tar, None, count)
            height, width = (int(length) for length in shape)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{stats} does not say how many samples ('successes') its shard has: make it again"
            ) from error
        packed = int("".join(filter(str.isdecimal, tar.parent.name)) or 0)
        if not packed or height * self.resolution % packed or width * self.resolution % packed:
            raise UserError(
                f"data.resolution={self.resolution}: pictures of {width} x {height} in {tar.parent} do not shrink to "
                "whole pixels: pack the buckets at this size"
            )
        return Shard(tar, None, count, (height * self.resolution // packed, width * self.resolution // packed))

    def _with_texts(self, shards: tuple[Shard, ...], texts: Location) -> tuple[Shard, ...]:
        there = names_in(texts)
        missing = [shard.images.name for shard in shards if shard.images.name not in there]
        if missing:
            raise UserError(f"{texts} lacks {len(missing)} sidecar(s), the first {missing[0]}: {self._embed()}")
        return tuple(replace(shard, text=texts / shard.images.name) for shard in shards)

    def _embed(self) -> str:
        return f"python data_prep/embed_text.py root={self.root} {self.encoder.picked_by}"


class ResampledWebDataset(WebDatasetModule):
    """The same, trained on by drawing shards with replacement and reading them from end to end.

    For sets that are too large, or too far away, to seek in. A worker shuffles through ``shuffle_buffer`` encoded
    samples; a resumed training draws anew. Validation is that of its parent.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        *,
        root: str,
        images: str | None,
        text: str | None,
        made_by: str,
        resolution: int,
        crop: int | None,
        batch_size: int,
        seed: int,
        num_workers: Natural | None,
        multiprocessing_context: str | None,
        flip: bool,
        random_crop: bool,
        jpeg_draft: bool,
        window: int,
        max_unfit: float,
        shuffle_buffer: int,
    ) -> None:
        super().__init__(
            encoder,
            root=root,
            images=images,
            text=text,
            made_by=made_by,
            resolution=resolution,
            crop=crop,
            batch_size=batch_size,
            seed=seed,
            num_workers=num_workers,
            multiprocessing_context=multiprocessing_context,
            flip=flip,
            random_crop=random_crop,
            jpeg_draft=jpeg_draft,
            window=window,
            max_unfit=max_unfit,
        )
        if shuffle_buffer < 1:
            raise UserError(f"data.shuffle_buffer={shuffle_buffer} must be at least 1 (1 does not shuffle)")
        self.shuffle_buffer = shuffle_buffer

    def training_stages(self, start: int) -> list[Callable[..., Any]]:
        reading = (self.shards["train"], self._fingerprint(), self.decode("train"), self.seed)
        (rank, world), accumulated = self._ranks(), self._accumulated()
        local, rest = divmod(self.batch_size, world * accumulated)
        if rest:
            raise UserError(
                f"batch_size={self.batch_size} must be a multiple of {world} process(es) x {accumulated} "
                "micro-batch(es) with data=webdataset_resampled, of which each draws its own: change one of them"
            )
        return [Draws(*reading, rank, world, accumulated, start, local, self.shuffle_buffer, self.flip)]

    def _order(self) -> dict[str, int]:
        return {}  # drawn anew whatever has changed
