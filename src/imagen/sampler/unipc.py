"""UniPC: a multistep predictor whose every step is corrected by the network call that the next step makes anyway."""

from itertools import accumulate, pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.errors import UserError
from imagen.sampler.base import Level, Predict, Sampler, Steps, moved
from imagen.types import Prediction

Point = tuple[Level, Prediction]
"""What the network said at a level."""


class UniPC(Sampler):
    """UniPC with B2(h), predicting data (arXiv 2302.04867): deterministic, one network call a step.

    The exact solution of a step is a DDIM move along the mean of x0 over the step, weighted by exp(log-SNR / 2). The
    predictor takes it from the polynomial through the last ``order`` x0s (1 to 3), the corrector, once more accurate,
    through the new one too. Orders rise from 1 at the first step and fall to 1 at a last one into the clean end,
    over whose length in log-SNR a polynomial would blow up.
    """

    def __init__(self, *, num_steps: int, order: int) -> None:
        super().__init__(num_steps=num_steps)
        if order not in (1, 2, 3):
            raise UserError(f"order={order} must be 1, 2 or 3.")
        self.order = order

    def _steps(
        self, predict: Predict, x: Float[Tensor, "b 3 h w"], levels: list[Level], generators: list[torch.Generator]
    ) -> Steps:
        known: list[Point] = []  # newest first
        started = x  # where the step that led to x began
        for i, (here, there) in enumerate(pairwise(levels)):
            prediction = predict(x, here)
            if known:
                x = _moved_along_mean(started, known, [(here, prediction)], here)
            left = len(levels) - 1 - i if levels[-1].sigma == 0 else self.order
            known = [(here, prediction), *known][: min(self.order, left)]
            started, x = x, _moved_along_mean(x, known, [], there)
            yield x, prediction


def _moved_along_mean(
    x: Float[Tensor, "b 3 h w"],
    known: list[Point],
    new: list[Point],
    there: Level,
) -> Float[Tensor, "b 3 h w"]:
    """x at the newest known level moved along the mean x0 of the polynomial through all points."""
    (here, prediction), *others = [*known, *new]
    step = there.logsnr - here.logsnr
    places = [(level.logsnr - here.logsnr) / step for level, _ in others]
    x0 = prediction.x0
    for weight, (_, other) in zip(weights(places, step / 2), others, strict=True):
        x0 = x0 + weight * (other.x0 - prediction.x0)
    return moved(x, Prediction(x0), here, there)


def weights(places: list[float], h: float) -> list[float]:
    """The weights of ``x0(place) - x0(0)`` in the mean of x0 over a step from place 0 to 1, ``h`` half its log-SNR.

    Exact for polynomials of degree ``len(places)``. One place alone gets half the slope, as in the paper: that is as
    accurate as the order asks for, and makes the predictor of order 2 that of DPM-Solver++(2M).
    """
    if not places:
        return []
    if len(places) == 1:
        return [1 / (2 * places[0])]
    powers = (
        torch.tensor(places, dtype=torch.float64, device="cpu")
        ** torch.arange(1, len(places) + 1, device="cpu")[:, None]
    )
    moments = torch.tensor(_moments(len(places), h), dtype=torch.float64, device="cpu")
    return torch.linalg.solve(powers, moments).tolist()


def _moments(count: int, h: float) -> list[float]:
    """The means of place, place^2 and so on over [0, 1] under weights proportional to ``exp(h place)``."""
    # by the power series, all of whose terms are positive: the closed form loses every digit at small h
    terms = list(accumulate(range(1, 200), lambda term, k: term * h / k, initial=1.0))
    integrals = [sum(term / (n + k) for k, term in enumerate(terms, 1)) for n in range(count + 1)]
    return [integral / integrals[0] for integral in integrals[1:]]
