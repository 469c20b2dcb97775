"""Captioned pictures from WebDataset shards, as img2dataset and data_prep/ write them, with their text sidecars."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imagen.data.module import StreamModule
from imagen.data.reader import Decode, ReadShards
from imagen.data.shards import SPLITS, find_text_folder, read_encoder, stats_path, whole_shards
from imagen.data.stream import Order, Shard, Shuffle
from imagen.errors import UserError
from imagen.ranges import Natural
from imagen.text_encoder import TextEncoder


class WebDatasetModule(StreamModule):
    """The folders ``root/{train,val}/images-<size>`` and ``text-<encoder>-<fp8>`` (see ``imagen.data.shards``).

    ``images`` and ``text`` name the folders to read; None takes the smallest pictures that are large enough, and the
    one sidecar folder that ``encoder`` could have made. ``shuffle_buffer`` counts encoded samples per worker,
    ``cache_mb`` is what each worker may keep of small sets, ``made_by`` the command named where shards are missing.
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
        num_workers: Natural,
        multiprocessing_context: str | None,
        flip: bool,
        random_crop: bool,
        shuffle_buffer: int,
        cache_mb: int,
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
            max_unfit=max_unfit,
        )
        if shuffle_buffer < 1:
            raise UserError(f"data.shuffle_buffer={shuffle_buffer} must be at least 1 (1 does not shuffle)")
        self.root, self.images, self.text, self.made_by = Path(root), images, text, made_by
        self.random_crop, self.shuffle_buffer, self.cache_bytes = random_crop, shuffle_buffer, cache_mb * 2**20

    def setup(self, stage: str | None = None) -> None:
        """Find both splits; UserError where shards or sidecars are missing or another encoder made them."""
        if self.shards:
            return
        images = {split: self._image_folder(split) for split in SPLITS}
        texts = {split: self._text_folder(split) for split in SPLITS}
        shards = {split: self._shards(images[split], texts[split]) for split in SPLITS}
        made_by = [read_encoder(shards[split][0].text) for split in SPLITS]
        if made_by[0] != made_by[1]:
            raise UserError(f"{texts['train']} and {texts['val']} were not made by the same encoder: {self._embed()}")
        self.shards, self.text_fingerprint = shards, made_by[0]

    def stages(self, split: str, order: Order) -> list[Callable[..., Any]]:
        training = split == "train"
        read = ReadShards(self.text_fingerprint, self.cache_bytes)
        crop = self.crop_of(split)
        decode = Decode(self.resolution, self.encoder.width, training and self.random_crop, self.seed, crop)
        return [read, Shuffle(self.shuffle_buffer, self.seed), order.skip, decode] if training else [read, decode]

    def _image_folder(self, split: str) -> Path:
        folder = self.root / split
        sizes = {path.name.removeprefix("images-"): path for path in folder.glob("images-*")}
        if self.images is not None:
            found = folder / self.images
        else:
            enough = [int(size) for size in sizes if size.isdecimal() and int(size) >= self.resolution]
            found = sizes[str(min(enough))] if enough else folder / f"images-{self.resolution}"
        if not any(found.glob("*.tar")):
            raise UserError(f"{found} has no shards (found: {', '.join(sorted(sizes)) or 'none'}): {self.made_by}")
        return found

    def _text_folder(self, split: str) -> Path:
        if self.text is None:
            return find_text_folder(self.root, split, self.encoder)
        folder = self.root / split / self.text
        first = next(iter(sorted(folder.glob("*.tar"))), None)
        if first is None:
            raise UserError(f"data.text={self.text}: {folder} has no sidecars: {self._embed()}")
        made_by = read_encoder(first)
        wrong = {key: made_by.get(key) for key, value in self.encoder.declared().items() if made_by.get(key) != value}
        if wrong:
            raise UserError(
                f"data.text={self.text} was made by another encoder than text_encoder={self.encoder.name} ({wrong}): "
                f"{self._embed()}"
            )
        return folder

    def _shards(self, images: Path, texts: Path) -> tuple[Shard, ...]:
        tars = whole_shards(images, skip_unfinished=False)
        missing = [tar.name for tar in tars if not (texts / tar.name).exists()]
        if missing:
            raise UserError(f"{texts} lacks {len(missing)} sidecar(s), the first {missing[0]}: {self._embed()}")
        shards = [Shard(tar, texts / tar.name, _count(tar)) for tar in tars]
        if not any(shard.count for shard in shards):
            raise UserError(f"{images} has shards, but no picture in them: {self.made_by}")
        return tuple(shard for shard in shards if shard.count)

    def _embed(self) -> str:
        return f"python data_prep/embed_text.py root={self.root} {self.encoder.picked_by}"


def _count(tar: Path) -> int:
    """How many samples a shard holds, from the file that img2dataset writes last."""
    stats = stats_path(tar)
    try:
        return int(json.loads(stats.read_text())["successes"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{stats} does not say how many samples ('successes') its shard has: make it again") from error
