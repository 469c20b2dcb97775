"""The third phase: what is kept of a shard becomes a shard, what is not a row of its parquet with the reason."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from imagen.data.shards import stats_path
from imagen.data.writer import Entry, sample_row, whole_stats, write_shard
from imagen.errors import UserError
from imagen.files import Location
from imagen.prep.filter.duplicates import REASONS
from imagen.prep.filter.look import read_rows, table_path
from imagen.prep.filter.picture import encode, open_upright
from imagen.prep.filter.samples import Sample, read_samples

EXAMPLES = 10
"""Of each reason, what a shard's stats name for the report: by their place in the shard."""

_FILTERED = "filtered"  # beside img2dataset's success, failed_to_download and failed_to_resize


@dataclass(frozen=True)
class Part:
    """One shard's work: ``verdicts`` is a byte a sample, ``recipe`` what the shard written is known by."""

    shard: str
    verdicts: bytes
    recipe: dict[str, Any]


@dataclass(frozen=True)
class Write:
    """A part into a shard of ``output``; called in the workers."""

    folder: Location
    reports: Location
    output: Location
    shards: int
    quality: int

    def stats(self, part: Part) -> dict[str, Any] | None:
        """The stats of the part's shard, None where it is not written or was by another recipe.

        Raises: UserError where something else lies there.
        """
        return whole_stats(self.output / f"{part.shard}.tar", part.recipe) or None

    def __call__(self, part: Part) -> None:
        started = time.time()
        tar = self.folder / f"{part.shard}.tar"
        rows = read_rows(table_path(self.reports, part.shard), ["key", "reason", "suffix", "fixed", "width", "height"])
        lost = max(0, json.loads(stats_path(tar).read_text()).get("successes", 0) - len(rows))
        gone = _Gone()
        write_shard(
            self.output / tar.name,
            self._entries(tar, rows, part.verdicts, gone),
            started=started,
            recipe=part.recipe,
            shards=self.shards,
            dropped=gone.rows,
            more={"lost": lost, "examples": gone.examples},
        )

    def _entries(
        self, tar: Location, rows: Sequence[dict[str, Any]], verdicts: bytes, gone: "_Gone"
    ) -> Iterator[Entry]:
        changed = UserError(f"{tar} changed while it was filtered: run the same command again")
        seen = 0
        for place, sample in enumerate(read_samples(tar)):
            if place >= len(rows):
                raise changed
            row, seen = rows[place], place + 1
            reason = row["reason"] or REASONS.get(verdicts[place])
            if reason is not None:
                gone.add(place, reason, row_of(sample, row) | {"status": _FILTERED, "error_message": reason})
                continue
            yield self._entry(sample, row)
        if seen < len(rows):
            raise changed

    def _entry(self, sample: Sample, row: dict[str, Any]) -> Entry:
        info = row_of(sample, row)
        if not row["fixed"]:
            return Entry(info, sample.picture, row["suffix"])
        opened = open_upright(sample.picture, sample.orientation)
        if opened.turned and {"original_width", "original_height"} <= info.keys():
            info["original_width"], info["original_height"] = info["original_height"], info["original_width"]
        return Entry(info, encode(opened, self.quality), opened.suffix)


@dataclass
class _Gone:
    rows: list[dict[str, Any]] = field(default_factory=list)
    examples: dict[str, list[int]] = field(default_factory=dict)

    def add(self, place: int, reason: str, row: dict[str, Any]) -> None:
        self.rows.append(row)
        named = self.examples.setdefault(reason, [])
        if len(named) < EXAMPLES:
            named.append(place)


def row_of(sample: Sample, seen: dict[str, Any]) -> dict[str, Any]:
    """The json of a sample: its own, with the key and caption of the tar and the size of the upright picture.

    The orientation is no longer in it: the picture stands, and a reader would turn it once more.
    """
    info = sample.info | {"key": seen["key"], "caption": sample.caption}
    if seen["width"] is None:  # never opened
        return info
    size = (seen["width"], seen["height"])
    blank = sample_row(seen["key"], sample.caption, size, size, hashlib.sha256(sample.picture).hexdigest())
    info |= {name: value for name, value in blank.items() if name not in info}
    info |= {"width": size[0], "height": size[1]}
    if sample.orientation is not None:
        exif = json.loads(info["exif"])
        del exif["Image Orientation"]
        info["exif"] = json.dumps(exif, ensure_ascii=False)
    return info
