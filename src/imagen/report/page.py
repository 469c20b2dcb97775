"""The report as one HTML file that needs nothing else: pictures are in it, and no network is asked."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from imagen.ablation.study import Study
from imagen.ablation.table import COST, Row, columns_of, figures_of
from imagen.files import atomic_write
from imagen.report.directions import called
from imagen.report.gather import Sweep
from imagen.report.lines import Spread, along, at_of, grouped, spread
from imagen.report.provenance import Made, gaps_of
from imagen.report.sheet import Sheet
from imagen.report.verdict import Verdict

DETAILS = ("heldout_loss_logsnr", "_shuffled", "heldout_p", "_std")
"""Parts of figures' names that are in the CSV and in the table of all rows alone."""


@dataclass(frozen=True)
class Mean:
    """A line of the table: a line of the figure at one value of its axis, as means over seeds."""

    label: str
    at: str
    seeds: int
    figures: dict[str, Spread]


def write_page(
    sweep: Sweep,
    verdicts: Sequence[Verdict],
    drawn: str,
    sheets: Sequence[Sheet],
    unseen: Sequence[str],
    made: Made,
    path: Path,
) -> None:
    """Write the page; ``drawn`` says what figure.svg beside it shows, ``unseen`` which pictures cannot be shown.

    Its content security policy allows this style and embedded pictures, and no script and no network.
    """
    study, web = sweep.study, files("imagen.report") / "web"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"figure": _figure, "data_uri": data_uri, "called": called}
    figures = [name for name in (*COST, *figures_of(study, sweep.rows)) if not any(part in name for part in DETAILS)]
    page = environment.from_string((web / "page.html").read_text(encoding="utf-8")).render(
        style=Markup((web / "page.css").read_text(encoding="utf-8")),
        sweep=sweep,
        study=study,
        verdicts=verdicts,
        drawn=drawn,
        svg=_inline(path.parent / "figure.svg") if drawn else "",
        axis=along(study),
        means=means_of(study, sweep.rows, figures),
        figures=figures,
        columns=columns_of(study, sweep.rows),
        sheets=sheets,
        seeds=sorted({row["seed"] for row in sweep.rows}),
        made=made,
        gaps=[*gaps_of(sweep.measured), *unseen],
        again=sweep.command.replace("train.py -m", "-m imagen.report"),
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def means_of(study: Study, rows: Sequence[Row], figures: Sequence[str]) -> list[Mean]:
    """The table of means, in the study's order."""
    found = []
    for label, own in grouped(study, rows).items():
        for at in dict.fromkeys(at_of(study, row) for row in own):
            some = [row for row in own if at_of(study, row) == at]
            values = {name: [row[name] for row in some if name in row] for name in figures}
            found.append(Mean(label, at, len(some), {name: spread(v) for name, v in values.items() if v}))
    return found


def data_uri(picture: Image.Image) -> str:
    """The picture itself as a URL."""
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _inline(path: Path) -> Markup:
    """An SVG file without what only a file of its own has; matplotlib has escaped the words in it."""
    svg = path.read_text(encoding="utf-8")
    return Markup(svg[svg.index("<svg") :])


def _figure(value: float | int | str) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and value > 9999 else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
