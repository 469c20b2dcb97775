"""Runs that were measured for a study and are none of its points: of other settings, or of another version."""

from collections.abc import Iterator, Sequence

from imagen.ablation.study import Point, Study
from imagen.build import run_config
from imagen.launching import flattened
from imagen.runs import RunFolder, identity, read_config

MOST = 3
"""Keys that are named."""


def strays_of(study: Study, points: Sequence[Point]) -> Iterator[str]:
    """A sentence for each, with the keys in which it differs from the nearest point; other seeds are none."""
    expected = {point.run.path.resolve() for point in points}
    configs = {point.name: flattened(identity(run_config(point.cfg))) for point in points}
    parents = dict.fromkeys(point.run.path.parent for point in points)
    reports = f"*/evaluations/{points[0].evaluation.name}/report.json"
    for report in sorted(path for parent in parents for path in parent.glob(reports)):
        run = RunFolder(report.parents[2])
        if run.path.resolve() in expected:
            continue
        try:
            own = flattened(identity(read_config(run.path)))
        except (ValueError, KeyError):  # a UserError is one
            yield f"{run.path} has no config.yaml that can be read"
            continue
        keys = {name: _differing(own, config) for name, config in configs.items()}
        nearest = min(keys, key=lambda name: len(keys[name]))
        if any(key.rpartition(".")[2] != "seed" for key in keys[nearest]):
            more = f" and {len(keys[nearest]) - MOST} more" if len(keys[nearest]) > MOST else ""
            said = ", ".join(keys[nearest][:MOST]) + more
            yield f"{run.path} is of other settings or another version: {said} differ from {nearest}"


def _differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
