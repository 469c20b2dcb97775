"""What must be the same of points whose figures are compared: how they were drawn, measured and, of seconds, where."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from imagen.ablation.study import Study
from imagen.ablation.table import MACHINE, MEASURED, SAMPLING_SEED, TIMES, Place, Row, place_of
from imagen.report.measured import Measured

FULL = {"weight": "guidance.weight", "steps": "sampler.num_steps"}
"""Keys of a stage's sampling that a report calls by a shorter name than the config."""

Conditions = dict[str, str]
"""What a figure was made under, by what it is called; what is not known has no key."""


def drawing_of(study: Study, told: Mapping[str, Any]) -> Conditions:
    """How a point's pictures were drawn, by full keys; without what variants and axes set, which is to differ."""
    own = {*study.axes, *(f"{study.stage}.{key}" for settings in study.variants.values() for key in settings)}
    known = {
        f"{slot}.{FULL.get(key, key)}": str(value)
        for slot, said in told.get("sampling", {}).items()
        for key, value in said.items()
        if value is not None
    }
    return {key: value for key, value in known.items() if not any(f"{key}.".startswith(f"{one}.") for one in own)}


def conditions_of(study: Study, rows: Iterable[Row], measured: Sequence[Measured], metric: str) -> list[Conditions]:
    """What each row's ``metric`` was made under; of rows whose runs are elsewhere, what their table says."""
    if metric in TIMES:  # they are the machine's, whatever is drawn
        return [{MACHINE: row.get(MACHINE, "unknown")} for row in rows]
    told = {
        (one.point.seed, *place_of(study, row)): (one, said)
        for one in measured
        for row, said in zip(one.rows, one.told, strict=True)
    }
    found = []
    for row in rows:
        # points of one seed are compared with each other, and each seed may draw with a seed of its own
        names = {name: f"{name} of seed {row['seed']}" if name == SAMPLING_SEED else name for name in MEASURED}
        conditions = {said: str(row[name]) for name, said in names.items() if name in row and name != MACHINE}
        one, said = told.get((row["seed"], *place_of(study, row)), (None, None))
        if one is not None and said is not None:
            known = said["provenance"].get(said["metric_of"].get(metric), {})
            conditions |= {f"{metric}'s {key}": str(value) for key, value in known.items()}
            conditions |= {f"n of {metric}": str(said["n"].get(metric))}
            conditions |= drawing_of(study, said) | one.common
        found.append(conditions)
    return found


def unlike(conditions: Sequence[Conditions]) -> list[str]:
    """The names of what is known of several and not the same."""
    names = dict.fromkeys(name for one in conditions for name in one)
    return [name for name in names if len({one[name] for one in conditions if name in one}) > 1]


def compared(study: Study, rows: Sequence[Row], places: Iterable[Place], seeds: Iterable[int]) -> list[Row]:
    """The rows at these places, of these seeds."""
    wanted, asked = set(places), set(seeds)
    return [row for row in rows if row["seed"] in asked and place_of(study, row) in wanted]
