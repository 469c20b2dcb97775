"""Weightings against their published forms, and at the ends of log-SNR in float32."""

import pytest
import torch

from imagen.errors import UserError
from imagen.parameterization import V
from imagen.weighting import EDM, MinSNR, SoftMinSNR, Uniform, Weighting

LOGSNR = torch.linspace(-20, 20, 81)
SNR = LOGSNR.double().exp()


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        (Uniform(), torch.ones_like(SNR)),
        (MinSNR(gamma=5.0), SNR.clamp(max=5) / SNR),
        (SoftMinSNR(gamma=4.0), 4 / (SNR + 4)),
        (EDM(sigma_data=0.5), (SNR + 4) / SNR),
    ],
    ids=lambda value: type(value).__name__,
)
def test_published_form_in_float32(weighting: Weighting, expected: torch.Tensor) -> None:
    weight = weighting(LOGSNR)
    assert weight.dtype == torch.float32
    assert torch.allclose(weight.double(), expected, rtol=1e-5)


def test_edm_is_the_v_loss_at_unit_data() -> None:
    assert torch.allclose(EDM(sigma_data=1.0)(LOGSNR), 1 / V().eps_factor(LOGSNR), rtol=1e-5)


def test_soft_min_snr_lies_below_min_snr() -> None:
    hard, soft = MinSNR(gamma=5.0)(LOGSNR.double()), SoftMinSNR(gamma=5.0)(LOGSNR.double())
    assert (soft < hard).all()
    assert (soft >= hard / 2).all()


def test_unfit_values_are_named() -> None:
    with pytest.raises(UserError, match="gamma=0"):
        MinSNR(gamma=0.0)
    with pytest.raises(UserError, match="sigma_data=-1"):
        EDM(sigma_data=-1.0)
