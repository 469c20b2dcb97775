"""What was kept and what went: counts and ten examples for each reason, summed from the stats of the shards.

The same however the work was spread, since each shard's stats tell of it alone.
"""

import itertools
import json
from collections import Counter
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from imagen.files import Location, write_json
from imagen.image_grid import image_grid, save_png
from imagen.prep.filter.picture import Unusable, open_upright
from imagen.prep.filter.samples import Sample, read_samples
from imagen.prep.filter.write import EXAMPLES
from imagen.safety import Safety

_CELL, _FONT, _GAP = 128, 16, 10
_MOSAIC = 6  # what is unsafe is shown by so many squares a side


def write_report(
    folder: Location, output: Location, stats: dict[str, dict[str, Any]], config: dict[str, Any], safety: Safety
) -> dict[str, Any]:
    """Write ``reports/filter.json`` and ``filter.png`` unless they say this already; ``stats`` has each shard's."""
    reasons: Counter[str] = Counter()
    examples: dict[str, list[tuple[str, int]]] = {}
    for shard, stat in stats.items():
        reasons.update(stat["status_dict"])
        for reason, places in stat["examples"].items():
            named = examples.setdefault(reason, [])
            named += [(shard, place) for place in places[: EXAMPLES - len(named)]]
    kept = reasons.pop("success", 0)
    report = {
        "shards": len(stats),
        "samples": sum(stat["count"] for stat in stats.values()),
        "kept": kept,
        "dropped": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        "lost": sum(stat["lost"] for stat in stats.values()),
        "damaged": [shard for shard, stat in stats.items() if stat["lost"]],
        **config,
    }
    path, sheet = output / "reports" / "filter.json", output / "reports" / "filter.png"
    if _says(path, report) and sheet.exists():
        return report
    save_sheet(sheet, folder, {reason: examples[reason] for reason in report["dropped"]}, report, safety)
    write_json(path, report)
    return report


def _says(path: Location, report: dict[str, Any]) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(report))
    except (FileNotFoundError, ValueError):
        return False


def save_sheet(
    path: Location,
    folder: Location,
    examples: dict[str, list[tuple[str, int]]],
    report: dict[str, Any],
    safety: Safety,
) -> None:
    """Draw for each reason a heading, and under it its examples, each with its key."""
    found = _samples(folder, {place for places in examples.values() for place in places})
    parts = [_heading(f"{report['kept']:,} of {report['samples']:,} samples kept")]
    for reason, places in examples.items():
        parts.append(_heading(f"{reason}: {report['dropped'][reason]:,}"))
        shown = [found[place] for place in places if place in found]
        if shown:
            pictures = [_thumbnail(sample, hidden=reason == "blocklist", safety=safety) for sample in shown]
            keys = [sample.key for sample in shown]
            parts.append(image_grid([pictures], keys, cell=_CELL, columns_per_band=EXAMPLES, font_size=11))
    size = (max(part.width for part in parts), sum(part.height for part in parts))
    whole, top = Image.new("RGB", size, "white"), 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    save_png(whole, path)


def _heading(text: str) -> Image.Image:
    font = ImageFont.load_default(_FONT)
    heading = Image.new("RGB", (int(font.getlength(text)) + 2 * _GAP, 2 * _FONT), "white")
    ImageDraw.Draw(heading).text((_GAP, _FONT // 2), text, fill="black", font=font)
    return heading


def _samples(folder: Location, places: set[tuple[str, int]]) -> dict[tuple[str, int], Sample]:
    """The samples at these places, each tar read no further than needed."""
    found = {}
    for shard, group in itertools.groupby(sorted(places), key=lambda place: place[0]):
        wanted = {place for _, place in group}
        samples = itertools.islice(read_samples(folder / f"{shard}.tar"), max(wanted) + 1)
        found |= {(shard, place): sample for place, sample in enumerate(samples) if place in wanted}
    return found


def _thumbnail(sample: Sample, *, hidden: bool, safety: Safety) -> UInt8[Tensor, "3 h w"]:
    """The picture made small; grey where there is none or it must not be shown, a mosaic where it is not safe."""
    try:
        if hidden:
            raise Unusable("hidden")
        picture = open_upright(sample.picture, sample.orientation).picture
    except Unusable:
        picture = Image.new("RGB", (_CELL, _CELL), (200, 200, 200))
    if not safety.safe(sample.info):
        picture = picture.resize((_MOSAIC, _MOSAIC), Image.Resampling.BOX)
    picture.thumbnail((_CELL, _CELL))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def told(report: dict[str, Any], output: Location) -> str:
    """The report in a line or three."""
    went = ", ".join(f"{reason} {count:,}" for reason, count in report["dropped"].items()) or "nothing"
    lines = [f"{output}: {report['kept']:,} of {report['samples']:,} samples kept; dropped: {went}"]
    if report["samples"] and report["dropped"].get("unsafe") == report["samples"]:
        lines.append("every sample counts as unsafe, as do all without the score: does safety.field name theirs?")
    if report["lost"]:
        lines.append(f"{report['lost']:,} more are lost in damaged tars: {_first(report['damaged'])}")
    if report["unfinished"]:
        lines.append(f"passed over, without _stats.json: {_first(report['unfinished'])}")
    return "\n".join([*lines, f"see {output / 'reports' / 'filter.png'} and filter.json beside it"])


def _first(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
