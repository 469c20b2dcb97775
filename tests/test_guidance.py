"""Guidance: weight 1 is the plain model, one doubled call equals two, the low-resolution half is left alone."""

import pytest
import torch
from oracle import GaussianOracle, conditioning

from imagen.guidance import ClassifierFreeGuidance, Guidance, NoGuidance
from imagen.types import Conditioning, Prediction

X = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LOGSNR = torch.tensor([-5.0, 0.0, 5.0])
COND = conditioning(3, token=0.4, dtype=torch.float32)


@pytest.mark.parametrize("guidance", [NoGuidance(), ClassifierFreeGuidance(weight=1.0)], ids=lambda g: type(g).__name__)
def test_none_and_weight_1_are_the_plain_model_to_the_bit_without_a_second_half(guidance: Guidance) -> None:
    oracle = GaussianOracle(-0.2, 0.5)
    plain = oracle(X, LOGSNR, COND).x0
    assert torch.equal(guidance(oracle)(X, LOGSNR, COND).x0, plain)
    assert oracle.batches == [3, 3]


@pytest.mark.parametrize("weight", [0.0, 1.35, 8.0])
def test_one_call_of_twice_the_batch_equals_two_calls(weight: float) -> None:
    oracle = GaussianOracle(-0.2, 0.5)
    guided = ClassifierFreeGuidance(weight=weight)(oracle)(X, LOGSNR, COND).x0
    assert oracle.batches == [6]
    conditional, null = oracle(X, LOGSNR, COND).x0, oracle(X, LOGSNR, COND.null_text()).x0
    assert torch.allclose(guided, null + weight * (conditional - null), atol=1e-6)


def test_guiding_x0_is_guiding_epsilon() -> None:
    """The paper's form: eps = w eps(z, c) + (1 - w) eps(z)."""
    oracle, w = GaussianOracle(-0.2, 0.5), 5.0
    alpha, sigma = LOGSNR.sigmoid().sqrt()[:, None, None, None], (-LOGSNR).sigmoid().sqrt()[:, None, None, None]

    def eps(prediction: Prediction) -> torch.Tensor:
        return (X - alpha * prediction.x0) / sigma

    paper = w * eps(oracle(X, LOGSNR, COND)) + (1 - w) * eps(oracle(X, LOGSNR, COND.null_text()))
    assert torch.allclose(eps(ClassifierFreeGuidance(weight=w)(oracle)(X, LOGSNR, COND)), paper, atol=1e-4)


def test_both_halves_see_the_same_low_resolution_picture_and_mask() -> None:
    low_res = torch.rand(3, 3, 2, 2)
    seen: list[Conditioning] = []

    def denoise(x_t: torch.Tensor, logsnr: torch.Tensor, cond: Conditioning) -> Prediction:
        seen.append(cond)
        return Prediction(x_t, gamma=torch.cat([torch.zeros(3, 3, 4, 4), torch.ones(3, 3, 4, 4)]))

    cond = Conditioning(COND.text, low_res, torch.tensor([1.0, 2.0, 3.0]))
    prediction = ClassifierFreeGuidance(weight=2.0)(denoise)(X, LOGSNR, cond)
    (both,) = seen
    assert both.low_res is not None
    assert both.low_res_logsnr is not None
    assert torch.equal(both.low_res, torch.cat([low_res, low_res]))
    assert both.low_res_logsnr.tolist() == [1, 2, 3, 1, 2, 3]
    assert torch.equal(both.text.mask, torch.cat([COND.text.mask, COND.text.mask]))
    assert both.text.absent.tolist() == [False] * 3 + [True] * 3
    # a learned variance is the conditional half's
    assert prediction.gamma is not None
    assert prediction.gamma.abs().max() == 0
