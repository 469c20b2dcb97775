"""Adaptive projected guidance: what is parallel goes, what is long is shortened, momentum lasts for one sampling."""

import math

import pytest
import torch
from oracle import GaussianOracle, conditioning

from imagen.errors import UserError
from imagen.guidance import AdaptiveProjectedGuidance
from imagen.types import Conditioning, Prediction

X = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LOGSNR = torch.tensor([-5.0, 0.0, 5.0])
COND = conditioning(3, token=0.4, dtype=torch.float32)
ORACLE = GaussianOracle(-0.2, 0.5)
CONDITIONAL, NULL = ORACLE(X, LOGSNR, COND).x0, ORACLE(X, LOGSNR, COND.null_text()).x0


def apg(eta: float = 1.0, norm_threshold: float = math.inf, momentum: float = 0.0) -> AdaptiveProjectedGuidance:
    return AdaptiveProjectedGuidance(weight=3.0, eta=eta, norm_threshold=norm_threshold, momentum=momentum)


def pushes(guidance: AdaptiveProjectedGuidance, calls: int = 1) -> list[torch.Tensor]:
    guided = guidance(ORACLE)
    return [(guided(X, LOGSNR, COND).x0 - CONDITIONAL) / 2 for _ in range(calls)]


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
        first, second, third = pushes(guidance, calls=3)
        assert torch.allclose(first, CONDITIONAL - NULL, atol=1e-5)
        assert torch.allclose(second, first * 0.25, atol=1e-5)
        assert torch.allclose(third, first * (1 - 0.75 * 0.25), atol=1e-5)


def test_a_difference_or_a_picture_of_nothing_stays_finite() -> None:
    def nothing(x_t: torch.Tensor, logsnr: torch.Tensor, cond: Conditioning) -> Prediction:
        return Prediction(torch.zeros_like(x_t))

    assert torch.equal(apg(eta=0.0, norm_threshold=1.0)(nothing)(X, LOGSNR, COND).x0, torch.zeros_like(X))


def test_unfit_values_are_named() -> None:
    with pytest.raises(UserError, match=r"norm_threshold=0\.0"):
        apg(norm_threshold=0.0)
    with pytest.raises(UserError, match=r"momentum=-1\.0"):
        apg(momentum=-1.0)
