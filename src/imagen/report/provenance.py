"""What is behind each figure: how many pictures, which extractor and weights, how they were drawn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from imagen.ablation.study import Study
from imagen.report.alike import drawing_of
from imagen.report.measured import Measured


@dataclass(frozen=True)
class Source:
    """How the figures of one metric were made, and for which points where that is not all of them."""

    metric: str
    figures: list[str]
    n: str
    made: str
    of: list[str]


@dataclass(frozen=True)
class Made:
    """How a sweep's figures were made: ``ways`` of drawing with the points of each, where there are several."""

    sources: list[Source]
    ways: dict[str, list[str]]

    @property
    def unlike(self) -> str:
        """What not all points have in common, in one sentence; '' where they compare."""
        kinds = dict.fromkeys(source.metric for source in self.sources if source.of)
        if len(self.ways) > 1:
            kinds["drawing"] = None
        return f"not all points were measured alike ({', '.join(kinds)}), and do not compare" if kinds else ""


def made_of(study: Study, measured: Sequence[Measured]) -> Made:
    return Made(sources_of(measured), drawn_by(study, measured))


def sources_of(measured: Sequence[Measured]) -> list[Source]:
    """One for each metric; several where points were measured in other ways, which then do not compare."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for one in measured:
        for told in one.told:
            for metric, known in told["provenance"].items():
                figures = [name for name, of in told["metric_of"].items() if of == metric]
                made = "; ".join([*(f"{key} {value}" for key, value in known.items()), f"{told['real']} real pictures"])
                own = found.setdefault((metric, made), {"figures": {}, "n": set(), "of": {}})
                own["figures"] |= dict.fromkeys(figures)
                own["n"] |= {told["n"][name] for name in figures}
                own["of"][one.point.name] = None
    metrics = [metric for metric, _ in found]
    return [
        Source(metric, [*own["figures"]], _range(own["n"]), made, [*own["of"]] if metrics.count(metric) > 1 else [])
        for (metric, made), own in found.items()
    ]


def drawn_by(study: Study, measured: Sequence[Measured]) -> dict[str, list[str]]:
    """How pictures were drawn, beside what axes and variants set; and where that is not one way, by which points."""
    ways: dict[str, dict[str, None]] = {}
    for one in measured:
        for told in one.told:
            known = ", ".join(f"{key} {value}" for key, value in drawing_of(study, told).items())
            seed = "that of training" if told["seed"] == one.point.seed else told["seed"]
            way = f"{known}; sampling seed {seed}, {told['drawn']} pictures a point"
            ways.setdefault(way, {})[one.point.name] = None
    return {way: list(of) if len(ways) > 1 else [] for way, of in ways.items()}


def gaps_of(measured: Sequence[Measured]) -> Iterator[str]:
    """Metrics that gave no figure, and why."""
    for one in measured:
        for told in one.told:
            for metric, why in told["skipped"].items():
                yield f"{one.point.name}, {told['name']}: no {metric}, since {why}"


def _range(numbers: set[int]) -> str:
    if not numbers:
        return ""
    return str(min(numbers)) if len(numbers) == 1 else f"{min(numbers)} to {max(numbers)}"
