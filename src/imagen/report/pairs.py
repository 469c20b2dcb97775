"""Two trained networks compared place by place: what one seed can tell, and no more."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from imagen.ablation.study import Study
from imagen.ablation.table import place_of
from imagen.errors import UserError
from imagen.evaluation.paired import paired_difference
from imagen.evaluation.rows import DAMAGED, read_values
from imagen.report.contrast import Contrast, places_of
from imagen.report.intervals import Interval, interval
from imagen.report.measured import Measured


def pairs_of(study: Study, measured: Sequence[Measured], metric: str, contrast: Contrast) -> Interval | None:
    """The mean over places of a contrast of one seed, with its 95 % interval; None where it cannot be told.

    A place is a prompt, or a picture at one draw of noise: all variants meet the same ones, so what is hard for both
    sides cancels. The interval is of other places for these two networks, and says nothing of other trainings; it takes
    places for independent, which draws of one picture are not quite.
    A metric that is no mean over places, such as a Fréchet distance, has none.
    """
    sides = [_mean(study, measured, metric, settings) for settings in (contrast.of, contrast.less)]
    if sides[0] is None or sides[1] is None:
        return None
    try:
        differences = paired_difference(sides[0], sides[1]).differences
    except UserError:  # of other pictures each
        return None
    found = interval(differences.tolist()) if len(differences) else None
    return found if found is not None and found.low is not None else None


def _mean(
    study: Study, measured: Sequence[Measured], metric: str, settings: Mapping[str, Any]
) -> Float[np.ndarray, " n"] | None:
    """A metric's values, place by place, as means over all points with these settings."""
    folders = {place_of(study, row): one.folder(row) for one in measured for row in one.rows}
    try:
        found = [read_values(folders[place])[metric].astype(np.float64) for place in places_of(study, settings)]
    except (*DAMAGED, KeyError, OSError):  # of a run that is elsewhere, or of a figure that is no mean, there are none
        return None
    return np.mean(found, axis=0) if len({len(values) for values in found}) == 1 else None
