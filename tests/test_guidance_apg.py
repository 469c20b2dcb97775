"""Adaptive projected guidance: what is parallel goes, what is long is shortened, momentum lasts for one sampling."""

import math
from collections.abc import Sequence

import pytest
import torch
from oracle import GaussianOracle, conditioning

from imagen.errors import UserError
from imagen.guidance import AdaptiveProjectedGuidance
from imagen.sampler import Heun
from imagen.types import Conditioning, Prediction

X = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LOGSNR = torch.tensor([-5.0, 0.0, 5.0])
COND = conditioning(3, token=0.4, dtype=torch.float32)
ORACLE = GaussianOracle(-0.2, 0.5)
CONDITIONAL, NULL = ORACLE(X, LOGSNR, COND).x0, ORACLE(X, LOGSNR, COND.null_text()).x0


def apg(eta: float = 1.0, norm_threshold: float = math.inf, momentum: float = 0.0) -> AdaptiveProjectedGuidance:
    return AdaptiveProjectedGuidance(weight=3.0, eta=eta, norm_threshold=norm_threshold, momentum=momentum)


def pushes(guidance: AdaptiveProjectedGuidance) -> list[torch.Tensor]:
    return [(guidance(ORACLE)(X, LOGSNR, COND).x0 - CONDITIONAL) / 2]


def pushed(levels: Sequence[float], momentum: float = -0.75) -> list[float]:
    """What one walk that calls the model at these levels adds, where the halves' difference is 1 at each of them."""

    def denoise(x_t: torch.Tensor, logsnr: torch.Tensor, cond: Conditioning) -> Prediction:
        return Prediction((~cond.text.absent).float()[:, None, None, None].expand_as(x_t))

    guided = apg(momentum=momentum)(denoise)
    return [(guided(X, torch.full((3,), level), COND).x0[0, 0, 0, 0].item() - 1) / 2 for level in levels]


ONE, TWO, THREE = 1.0, 1 - 0.75, 1 - 0.75 * (1 - 0.75)
"""Running sums of 1, 1 and 1 at momentum -0.75."""


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum((1, 2, 3), keepdim=True)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_eta_scales_what_is_parallel_to_the_conditional_x0_alone(eta: float) -> None:
    (push,) = pushes(apg(eta=eta))
    parallel = dot(CONDITIONAL - NULL, CONDITIONAL) / dot(CONDITIONAL, CONDITIONAL) * CONDITIONAL
    assert torch.allclose(push, CONDITIONAL - NULL - parallel + eta * parallel, atol=1e-5)
    if eta == 0:
        assert dot(push, CONDITIONAL).abs().max() < 1e-4


def test_what_is_longer_than_the_threshold_is_shortened_to_it_and_the_rest_left() -> None:
    norms = dot(CONDITIONAL - NULL, CONDITIONAL - NULL).sqrt().flatten()
    assert norms[2] < 0.5 < norms[1] < norms[0]  # the cleaner the level, the less the halves differ
    (push,) = pushes(apg(norm_threshold=0.5))
    assert torch.allclose(dot(push, push).sqrt().flatten(), norms.clamp(max=0.5), atol=1e-5)
    assert torch.allclose(push / dot(push, push).sqrt(), (CONDITIONAL - NULL) / norms[:, None, None, None], atol=1e-4)


def test_momentum_is_a_running_sum_over_one_sampling() -> None:
    guidance = apg(momentum=-0.75)
    for _ in range(2):  # each sampling starts anew
        guided = guidance(ORACLE)
        gathered = torch.zeros_like(X)
        for shift in (0.0, 1.0, 2.0):
            given = (X, LOGSNR + shift, COND)
            conditional, null = ORACLE(*given).x0, ORACLE(X, LOGSNR + shift, COND.null_text()).x0
            gathered = conditional - null - 0.75 * gathered
            assert torch.allclose(guided(*given).x0, conditional + 2 * gathered, atol=1e-5)


@pytest.mark.parametrize(
    ("levels", "sums"),
    [
        ([-4.0, -3.0, -2.0], [ONE, TWO, THREE]),
        ([-4.0, -3.0, -3.0, -2.0, -2.0], [ONE, TWO, TWO, THREE, THREE]),  # Heun
        ([-4.0, -3.0, -3.5, -2.0, -2.5], [ONE, TWO, TWO, THREE, THREE]),  # with noise added in between
        ([-4.0, -3.0, -2.0, -4.0, -3.0], [ONE, TWO, THREE, ONE, TWO]),  # inpainting's jump back
        ([-4.0, -3.0, -3.0, -3.0], [ONE, TWO, TWO, TWO]),  # and one over a single step
    ],
)
def test_momentum_counts_steps_and_does_not_outlive_a_jump_back(levels: list[float], sums: list[float]) -> None:
    assert pushed(levels) == pytest.approx(sums)


def test_with_heun_momentum_is_that_of_one_call_a_step() -> None:
    """On a grid all of whose steps but the last are corrected, the halves' difference is a closed form."""
    grid = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    seen: list[float] = []

    def denoise(x_t: torch.Tensor, logsnr: torch.Tensor, cond: Conditioning) -> Prediction:
        return Prediction((~cond.text.absent).to(x_t.dtype)[:, None, None, None].expand_as(x_t))

    guided = apg(momentum=-0.75)(denoise)

    def noted(x_t: torch.Tensor, logsnr: torch.Tensor, cond: Conditioning) -> Prediction:
        prediction = guided(x_t, logsnr, cond)
        seen.append((prediction.x0[0, 0, 0, 0].item() - 1) / 2)
        return prediction

    Heun(num_steps=4, s_churn=0.0, s_min=0.05, s_max=50.0, s_noise=1.0)(noted, X.double(), grid, conditioning(3), [])
    four, five = 1 - 0.75 * THREE, 1 - 0.75 * (1 - 0.75 * THREE)
    assert seen == pytest.approx([ONE, TWO, TWO, THREE, THREE, four, four, five])


def test_a_difference_or_a_picture_of_nothing_stays_finite() -> None:
    def nothing(x_t: torch.Tensor, logsnr: torch.Tensor, cond: Conditioning) -> Prediction:
        return Prediction(torch.zeros_like(x_t))

    assert torch.equal(apg(eta=0.0, norm_threshold=1.0)(nothing)(X, LOGSNR, COND).x0, torch.zeros_like(X))


def test_unfit_values_are_named() -> None:
    with pytest.raises(UserError, match=r"norm_threshold=0\.0"):
        apg(norm_threshold=0.0)
    with pytest.raises(UserError, match=r"momentum=-1\.0"):
        apg(momentum=-1.0)
