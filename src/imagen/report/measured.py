"""One point's run folder read: its rows, and what makes their figures comparable."""

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from imagen.ablation.study import Point, Study
from imagen.ablation.table import Row
from imagen.errors import UserError
from imagen.runs import RunFolder


@dataclass(frozen=True)
class Measured:
    """A point with its rows, and of each row what ``evaluate.py`` says of its figures."""

    point: Point
    rows: list[Row]
    told: list[dict[str, Any]]
    """The rows of ``report.json``, in the order of ``rows``."""
    common: dict[str, str]
    """What decides all its figures beside what a row says: the real pictures and the prompts, by their hashes."""

    def folder(self, row: Row) -> Path:
        """Where the pictures of a row lie."""
        return self.point.evaluation / self.told[self.rows.index(row)]["name"]


def read_measured(study: Study, point: Point) -> Measured | str:
    """What was measured at a point, or why that cannot be told."""
    path = point.evaluation / "report.json"
    if not point.run.done.is_file():
        begun = point.run.config.is_file()
        return "its training was stopped, or is still going on" if begun else "it is not trained yet"
    if not path.is_file():
        return "it is trained, and not measured yet"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        told = report["points"]
        done = point.run.summary()
        cost = {
            "parameters": parameters_of(point.run),
            "seconds": float(done["seconds"]),
            "seconds_per_step": float(done["seconds_per_step"]),
            "steps": int(done["step"]),
            "machine": done.get("machine"),  # runs of before it was noted have none
        }
        by_point = {json.dumps(one["point"], sort_keys=True): one for one in told}
        wanted = [json.dumps(one, sort_keys=True) for one in _sampling_points(study)]
        if lacking := [one for one in wanted if one not in by_point]:
            return f"{path} is of other axes, and lacks {lacking[0]}"
        chosen = [by_point[one] for one in wanted]
        hashes = {"reference": report.get("reference", {}).get("sha256"), "prompts": report.get("prompts_sha256")}
        common = {name: str(value) for name, value in hashes.items() if value is not None}
        return Measured(point, [_row(study, point, cost, one) for one in chosen], chosen, common)
    except UserError as error:
        return str(error)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{path} or what lies beside it is damaged or of another version ({error!r}): delete it"


def parameters_of(run: RunFolder) -> int | None:
    """How many numbers the exported network holds; None where it is not kept. Raises: ValueError if it is damaged."""
    if not run.weights.is_file():
        return None
    try:
        with safe_open(run.weights, framework="pt") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{run.weights.name}: {error}") from error


def _sampling_points(study: Study) -> list[dict[str, Any]]:
    crossed = itertools.product(*study.axes.values())
    return [dict(zip(study.axes, values, strict=True)) for values in crossed]


def _row(study: Study, point: Point, cost: dict[str, Any], told: dict[str, Any]) -> Row:
    return {
        "ablation": study.name,
        "scale": study.scale,
        "variant": point.variant,
        "seed": point.seed,
        "run": point.run.path.name,
        "evaluation": point.evaluation.name,
        **told["point"],
        **{name: value for name, value in cost.items() if value is not None},
        "drawn": int(told["drawn"]),
        "real": int(told["real"]),
        "sampling_seed": int(told["seed"]),
        **{name: _finite(float(value)) for name, value in told["metrics"].items()},
    }


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"a figure is {value}")
    return value
