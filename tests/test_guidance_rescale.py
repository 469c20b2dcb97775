"""Rescaling: the conditional half's contrast comes back, by the part that phi says."""

import pytest
import torch
from oracle import GaussianOracle, conditioning

from imagen.errors import UserError
from imagen.guidance import ClassifierFreeGuidance, RescaledGuidance
from imagen.types import Conditioning, Prediction

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LOGSNR = torch.tensor([-5.0, 0.0, 5.0])
COND = conditioning(3, token=0.4, dtype=torch.float32)


def contrasts(x_t: torch.Tensor, logsnr: torch.Tensor, cond: Conditioning) -> Prediction:
    """The same picture twice, three times as strong under a prompt."""
    return Prediction(x_t * (3.0 - 2.0 * cond.text.absent.float())[:, None, None, None])


@pytest.mark.parametrize("phi", [0.0, 0.25, 1.0])
def test_halves_that_differ_in_contrast_alone(phi: float) -> None:
    """Null X and conditional 3 X, guided by 5: 11 X, of which phi goes back to 3 X."""
    guided = RescaledGuidance(weight=5.0, phi=phi)(contrasts)(X, LOGSNR, COND).x0
    assert torch.allclose(guided, (11 + phi * (3 - 11)) * X, rtol=1e-5, atol=1e-5)


def test_each_example_has_the_conditional_contrast_at_phi_1() -> None:
    def denoise(x_t: torch.Tensor, logsnr: torch.Tensor, cond: Conditioning) -> Prediction:
        return Prediction(torch.where(cond.text.absent[:, None, None, None], x_t.flip(2), 0.3 * x_t))

    guided = RescaledGuidance(weight=7.5, phi=1.0)(denoise)(X, LOGSNR, COND).x0
    assert torch.allclose(guided.std((1, 2, 3)), 0.3 * X.std((1, 2, 3)))
    plain = ClassifierFreeGuidance(weight=7.5)(denoise)(X, LOGSNR, COND).x0
    assert torch.allclose(guided / plain, (guided / plain)[:, :1, :1, :1].expand_as(guided))  # a factor, nothing else


def test_gaussian_halves_that_differ_in_their_mean_need_no_rescaling() -> None:
    oracle = GaussianOracle(-0.2, 0.5)
    guided, plain = (
        guidance(oracle)(X, LOGSNR, COND).x0
        for guidance in (RescaledGuidance(weight=5.0, phi=1.0), ClassifierFreeGuidance(weight=5.0))
    )
    assert torch.allclose(guided, plain, atol=1e-5)


def test_pictures_of_one_colour_stay_finite() -> None:
    guided = RescaledGuidance(weight=5.0, phi=0.7)(contrasts)(torch.zeros_like(X), LOGSNR, COND).x0
    assert torch.equal(guided, torch.zeros_like(X))


@pytest.mark.parametrize("phi", [-0.1, 1.1])
def test_unfit_values_are_named(phi: float) -> None:
    with pytest.raises(UserError, match=f"phi={phi}"):
        RescaledGuidance(weight=2.0, phi=phi)
