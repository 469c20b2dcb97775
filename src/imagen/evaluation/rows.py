"""A point's row: every metric's figures, and beside each what makes it comparable."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from imagen import build
from imagen.errors import UserError
from imagen.evaluation.gallery import Gallery
from imagen.evaluation.points import Point
from imagen.files import atomic_write, write_json
from imagen.metric.base import Metric, Subject
from imagen.runs import plain

DAMAGED = (ValueError, EOFError, BadZipFile)
"""What ``read_values`` and json raise of a file that is not whole."""

FORMAT = 3  # raise it when what a row holds changes: kept ones are then measured again


@dataclass
class Told:
    """What one metric says: figures, what they are means of, how many are behind each, and what else decides them.

    ``asked`` are its settings, ``depends`` what of the data it was asked of beside pictures and reference.
    """

    figures: dict[str, float]
    values: dict[str, Float[Tensor, " _"]]
    counts: dict[str, int]
    provenance: dict[str, str | int | float]
    directions: dict[str, str]
    by_prompt: bool
    asked: dict[str, Any]
    depends: dict[str, Any]


@dataclass
class Measuring:
    """Measures points one after the other; what does not depend on sampling is measured once for all of them.

    ``kinds`` are those of the pictures drawn, '' where prompts have none.
    """

    device: torch.device
    kinds: Sequence[str]
    once: dict[str, Told] = field(default_factory=dict)

    def row(
        self, point: Point, folder: Path, galleries: Sequence[Gallery], subject: Subject, settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """One point's row: what was set, every metric's figures, and why a metric gives none.

        It is kept as ``metrics.json`` in ``folder``, with ``values.npz``, what figures are means of; and what a metric
        said is taken from there where pictures, reference and its settings are still the same. ``settings`` is how the
        pictures were drawn.
        """
        path = folder / "metrics.json"
        asked = {
            "format": FORMAT,
            "pictures": [hashlib.sha256(json.dumps(one.plan).encode()).hexdigest() for one in galleries],
            "kinds": hashlib.sha256("\n".join(self.kinds).encode()).hexdigest(),
            "metric": plain(point.cfg.metric),
            "reference": subject.reference.captioned_digest,
        }
        kept = _kept(path, asked)
        told: dict[str, Told] = {}
        skipped: dict[str, str] = {}
        for name, node in point.cfg.metric.items():
            try:
                told[str(name)] = self._told(node, subject, kept.get(str(name)))
            except UserError as error:  # one metric's weights may be missing: the others are of use without it
                skipped[str(name)] = str(error)
                print(f"metric {name} gives no figure: {error}")
        for name, one in list(told.items()):
            if wrong := {figure: value for figure, value in one.figures.items() if not math.isfinite(value)}:
                told[name] = replace(one, figures={key: said for key, said in one.figures.items() if key not in wrong})
                skipped[name] = ", ".join(f"{figure} is {value}" for figure, value in wrong.items())
                print(f"metric {name} leaves out what is not finite: {skipped[name]}")
        figures = {figure: value for one in told.values() for figure, value in one.figures.items()}
        row = {
            "point": point.settings,
            "name": point.name,
            "drawn": len(subject.drawn),
            "real": len(subject.reference),
            "metrics": figures,
            "n": {
                figure: one.counts.get(figure, len(subject.drawn)) for one in told.values() for figure in one.figures
            },
            "directions": {
                figure: way for one in told.values() for figure, way in one.directions.items() if figure in figures
            },
            "kinds": self._by_kind(told),
            "by_prompt": [name for name, one in told.items() if one.by_prompt],
            "values": {name: list(one.values) for name, one in told.items()},
            "metric_of": {figure: name for name, one in told.items() for figure in one.figures},
            "provenance": {name: one.provenance for name, one in told.items()},
            "skipped": skipped,
            "seed": galleries[0].seed,
            "sampling": dict(settings),
            "slots": galleries[0].settings["slots"],
            "asked": asked,
            "depends": {name: one.depends for name, one in told.items()},
        }
        values: dict[str, Any] = {name: array.numpy() for one in told.values() for name, array in one.values.items()}
        with atomic_write(folder / "values.npz") as temporary:
            with temporary.open("wb") as file:
                np.savez(file, **values)
            path.unlink(missing_ok=True)  # figures never lie beside the values of others
        write_json(path, row, allow_nan=False)
        return row

    def _told(self, node: Any, subject: Subject, kept: Told | None) -> Told:
        key = json.dumps(plain(node))
        if key in self.once:
            return self.once[key]
        metric: Metric = build.instantiate(node)
        metric.device = self.device
        depends = metric.depends(subject)
        if kept is not None and (kept.asked, kept.depends) == (plain(node), depends):
            return kept
        told = Told(
            metric.measure(subject),
            metric.values(),
            metric.counts(),
            metric.provenance(),
            dict(metric.directions()),
            bool(metric.by_prompt),
            plain(node),
            depends,
        )
        if not metric.of_sampling:
            self.once[key] = told
        return told

    def _by_kind(self, told: Mapping[str, Told]) -> dict[str, dict[str, dict[str, float | int]]]:
        """Of each kind of prompts the figures that are means over pictures, each with its n; nothing without kinds."""
        values = {name: array for one in told.values() if one.by_prompt for name, array in one.values.items()}
        found: dict[str, dict[str, dict[str, float | int]]] = {}
        for kind in sorted(set(self.kinds) - {""}):
            own = torch.tensor([kind == one for one in self.kinds])
            asked = {name: array[own & array.isfinite()].double() for name, array in values.items()}
            found[kind] = {
                name: {"value": some.mean().item(), "n": len(some)} for name, some in asked.items() if len(some)
            }
        return {kind: figures for kind, figures in found.items() if figures}


def _kept(path: Path, asked: dict[str, Any]) -> dict[str, Told]:
    """What metrics said of the same pictures and reference before; nothing of one that left a figure out.

    What is damaged is as if it were not there: it is measured again.
    """
    try:
        return _read_kept(path, asked)
    except (*DAMAGED, KeyError, TypeError, AttributeError):
        return {}


def read_values(folder: Path) -> dict[str, Float[np.ndarray, " _"]]:
    """What the figures of a point's folder are means of. Raises: OSError if it is not there, or of ``DAMAGED``."""
    with (folder / "values.npz").open("rb") as file, np.load(file) as arrays:  # its own stays open if damaged
        return dict(arrays.items())


def _read_kept(path: Path, asked: dict[str, Any]) -> dict[str, Told]:
    row = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    same = {**row.get("asked", {}), "metric": None} == json.loads(json.dumps({**asked, "metric": None}))
    if not same or not (path.parent / "values.npz").is_file():
        return {}
    values = {name: torch.from_numpy(array) for name, array in read_values(path.parent).items()}
    return {
        name: Told(
            {figure: row["metrics"][figure] for figure, metric in row["metric_of"].items() if metric == name},
            {value: values[value] for value in row["values"][name]},
            {figure: row["n"][figure] for figure, metric in row["metric_of"].items() if metric == name},
            known,
            {figure: way for figure, way in row["directions"].items() if row["metric_of"][figure] == name},
            name in row["by_prompt"],
            row["asked"]["metric"][name],
            row["depends"][name],
        )
        for name, known in row["provenance"].items()
        if name not in row["skipped"]
    }
