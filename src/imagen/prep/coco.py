"""COCO's validation set: the prompts of the paper's FID, and the pictures that its samples are compared with.

Imagen draws 30,000 prompts at random from the validation set and compares with the whole of it at 256 x 256 (Saharia et
al. 2022, sections 3 and 4.2); it names neither year nor crop. Here, as in the field: 2014, and the pictures whole, for
pack.py to shrink and for whoever reads them to cut in the middle, as GLIDE does (Nichol et al. 2021, appendix A.2).
"""

import csv
import hashlib
import io
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from PIL import Image

from imagen.data.writer import (
    Entry,
    is_whole,
    remove_surplus,
    sample_row,
    shard_key,
    shard_names,
    whole_stats,
    write_shard,
)
from imagen.errors import UserError
from imagen.files import Location, atomic_write, locate, make_folder, names_in, write_json
from imagen.prep.gather import gather_done
from imagen.prep.work import Workers

FORMAT = 1  # raise it when what is written changes: old shards are then redone
LACKS, UNREADABLE = "picture is missing", "picture is no JPEG or PNG"


@dataclass(frozen=True)
class Caption:
    """One sentence of one picture; several have the same ``image_id``."""

    caption_id: int
    image_id: int
    text: str


@dataclass(frozen=True)
class Picture:
    """A picture of the annotations, with its captions by their ids."""

    image_id: int
    file_name: str
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Unit:
    """One shard to write."""

    tar: Location
    number: int
    pictures: tuple[Picture, ...]
    recipe: dict[str, Any]


def coco(cfg: DictConfig) -> None:
    """Write ``prompts.csv`` and the reference shards of a COCO folder.

    Raises: UserError where the folder is none of COCO's, or has too few captions.
    """
    if cfg.num_prompts < 1 or cfg.shard_size < 1:
        raise UserError(f"num_prompts={cfg.num_prompts} and shard_size={cfg.shard_size} must be at least 1")
    workers = Workers(cfg.num_workers, cfg.worker_index, cfg.worker_count)
    source = locate(cfg.input)
    annotations = source / "annotations" / f"captions_val{cfg.year}.json"
    captions, files, digest = read_annotations(annotations)
    chosen = draw(captions, cfg.num_prompts, cfg.seed)
    output = make_folder(cfg.output, "output")
    table = as_csv(chosen)
    said = {"prompts": len(chosen), "of": len(captions), "sha256": hashlib.sha256(table).hexdigest(), "seed": cfg.seed}
    with atomic_write(output / "prompts.csv") as temporary:
        temporary.write_bytes(table)
    print(f"{output / 'prompts.csv'}: {said['prompts']:,} of {said['of']:,} captions, SHA-256 {said['sha256']}")
    folder = source / f"val{cfg.year}"
    units = plan(pictures_of(files, captions), names_in(folder), output, cfg.shard_size, digest)
    if workers.worker_index == 0:
        remove_surplus(output, shard_names(len(units)), "coco")
    task = WriteShard(folder, len(units), cfg.shard_size)
    done = list(workers.map(task, workers.share(units), what="writing"))
    print(f"{output}: shards written now: {sum(done)}, there already: {len(done) - sum(done)}")
    stats = gather_done(lambda unit: whole_stats(unit.tar, unit.recipe) or None, units)
    if stats is None:
        return
    reasons = sum((Counter(one["status_dict"]) for one in stats), Counter())
    asked = OmegaConf.to_container(cfg, resolve=True)
    report = {"prompts": said, "annotations": digest, "pictures": dict(reasons), "asked": asked}
    write_json(output / "reports" / "coco.json", report)
    print(f"{reasons.pop('success', 0):,} pictures" + "".join(f"; {n:,} {why}" for why, n in reasons.items() if n))


def read_annotations(path: Location) -> tuple[list[Caption], dict[int, str], str]:
    """The captions by id (on one line, blank ones left out), each picture's file, the SHA-256 of the annotations."""
    try:
        content = path.read_bytes()
        said = json.loads(content)
        files = {int(image["id"]): str(image["file_name"]) for image in said["images"]}
        captions = [
            Caption(int(one["id"]), int(one["image_id"]), " ".join(str(one["caption"]).split()))
            for one in said["annotations"]
            if str(one["caption"]).strip()
        ]
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there: input=<folder> holds COCO's annotations/ and val<year>/") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not COCO's file of captions ({type(error).__name__}: {error})") from error
    return sorted(captions, key=lambda one: one.caption_id), files, hashlib.sha256(content).hexdigest()


def draw(captions: list[Caption], count: int, seed: int) -> list[Caption]:
    """``count`` captions at random from all (not one a picture), in an order that is random too.

    The order is that of the SHA-256 of seed and caption id: the same with any version of anything, and the first
    10,000 of 30,000 are the draw of 10,000. Raises: UserError where there are not so many.
    """
    if len(captions) < count:
        raise UserError(f"num_prompts={count}, but there are only {len(captions)} captions: ask for fewer")
    return sorted(captions, key=lambda one: hashlib.sha256(f"{seed} {one.caption_id}".encode()).digest())[:count]


def as_csv(captions: list[Caption]) -> bytes:
    """What ``prompts=prompts.csv`` reads: a row a prompt, with the ids of the caption and of its picture."""
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["prompt", "image_id", "caption_id"])
    writer.writerows((one.text, one.image_id, one.caption_id) for one in captions)
    return table.getvalue().encode()


def pictures_of(files: dict[int, str], captions: list[Caption]) -> list[Picture]:
    """Every picture of the annotations in the order of ids, with all its captions."""
    texts: dict[int, list[str]] = defaultdict(list)
    for caption in captions:
        texts[caption.image_id].append(caption.text)
    return [Picture(image_id, files[image_id], tuple(texts[image_id])) for image_id in sorted(files)]


def plan(pictures: list[Picture], there: set[str], output: Location, shard_size: int, digest: str) -> list[Unit]:
    """The shards to write; one is written anew when its pictures arrive after it was."""
    units = []
    for first in range(0, len(pictures), shard_size):
        part, number = tuple(pictures[first : first + shard_size]), first // shard_size
        lacking = [picture.image_id for picture in part if picture.file_name not in there]
        asked = {"script": "coco", "format": FORMAT, "annotations": digest, "shard_size": shard_size, "number": number}
        units.append(Unit(output / f"{number:05}.tar", number, part, asked | {"lacking": lacking}))
    return units


@dataclass(frozen=True)
class WriteShard:
    """Write one shard, or find that it is whole; returns whether it was written. Pictures keep their bytes."""

    folder: Location
    shards: int
    shard_size: int

    def __call__(self, unit: Unit) -> bool:
        if is_whole(unit.tar, unit.recipe):
            return False
        dropped: list[dict[str, Any]] = []
        entries = self._entries(unit, dropped)
        write_shard(unit.tar, entries, started=time.time(), recipe=unit.recipe, shards=self.shards, dropped=dropped)
        return True

    def _entries(self, unit: Unit, dropped: list[dict[str, Any]]) -> Iterator[Entry]:
        lacking = set(unit.recipe["lacking"])
        for index, picture in enumerate(unit.pictures):
            key = shard_key(unit.number, index, self.shard_size)
            ours = {"image_id": picture.image_id, "file_name": picture.file_name, "captions": list(picture.captions)}
            content = None if picture.image_id in lacking else _read(self.folder / picture.file_name)
            opened = _opened(content or b"")
            size, suffix = opened or ((0, 0), "")
            row = ours | sample_row(key, next(iter(picture.captions), None), size, size, _sha256(content or b""))
            if content is None or opened is None:
                why = LACKS if content is None else UNREADABLE
                none = dict.fromkeys(("width", "height", "original_width", "original_height", "sha256"))
                dropped.append(row | none | {"status": "failed", "error_message": why})
            else:
                yield Entry(row, content, suffix)


def _read(file: Location) -> bytes | None:
    """None where it is no longer there; of a disk that fails nothing is said of the picture."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _opened(content: bytes) -> tuple[tuple[int, int], str] | None:
    """Size (width, height) and suffix of a picture by its header; None where it is none."""
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as picture:
            return picture.size, "jpg" if picture.format == "JPEG" else "png"
    except Exception:  # Pillow raises nearly anything on bytes that it did not expect
        return None
