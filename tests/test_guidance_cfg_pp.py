"""CFG++: with DDIM it is classifier-free guidance of a known weight at every step; at 0 it is the null model."""

import pytest
import torch
from oracle import GaussianOracle, conditioning, generators

from imagen import build
from imagen.cli import compose
from imagen.errors import UserError
from imagen.guidance import CFGPlusPlus, ScheduledGuidance
from imagen.sampler import DDIM

X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
COND = conditioning(2, token=0.4)


@pytest.mark.parametrize("weight", [0.0, 0.6, 1.0])
def test_with_ddim_it_is_classifier_free_guidance_of_a_weight_that_depends_on_the_step(weight: float) -> None:
    grid = torch.tensor([-9.0, -5.0, -2.0, 0.5, 3.0, torch.inf], dtype=torch.float64)
    oracle, sampler = GaussianOracle(-0.2, 0.5), DDIM(num_steps=5, eta=0.0)
    equivalent = weight / (1 - ((grid[:-1] - grid[1:]) / 2).exp())
    scheduled = ScheduledGuidance(logsnr=grid[:-1].tolist(), weight=equivalent.tolist())
    one, two = (sampler(guidance(oracle), X, grid, COND, []) for guidance in (CFGPlusPlus(weight=weight), scheduled))
    assert torch.allclose(one, two, atol=1e-9)


def test_weight_0_is_the_null_model_exactly() -> None:
    grid, oracle = torch.linspace(-9, 9, 7, dtype=torch.float64), GaussianOracle(-0.2, 0.5)
    sampler = DDIM(num_steps=6, eta=0.5)
    guided = sampler(CFGPlusPlus(weight=0.0)(oracle), X, grid, COND, generators(2))
    assert torch.equal(guided, sampler(oracle, X, grid, COND.null_text(), generators(2)))


def test_where_both_halves_agree_it_is_the_plain_model() -> None:
    oracle, logsnr = GaussianOracle(-0.2, 0.5), torch.zeros(2, dtype=torch.float64)
    plain = oracle(X, logsnr, COND.null_text()).x0
    prediction = CFGPlusPlus(weight=0.6)(oracle)(X, logsnr, COND.null_text())
    assert prediction.renoise_x0 is not None
    assert torch.equal(prediction.x0, plain)
    assert torch.equal(prediction.renoise_x0, plain)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_step_is_the_null_model_s_and_a_push_that_does_not_shorten_with_it(eta: float) -> None:
    """Why no sampler of a higher order fits: what a step adds is no rate along a path, but the same at any length."""
    oracle, start, sampler = GaussianOracle(-0.2, 0.5), 0.5, DDIM(num_steps=1, eta=eta)
    logsnr = torch.full((2,), start, dtype=torch.float64)
    apart = oracle(X, logsnr, COND).x0 - oracle(X, logsnr, COND.null_text()).x0
    for step in (1e-6, 0.1, 3.0):
        grid = torch.tensor([start, start + step], dtype=torch.float64)
        guided = sampler(CFGPlusPlus(weight=0.6)(oracle), X, grid, COND, generators(2))
        null = sampler(oracle, X, grid, COND.null_text(), generators(2))
        assert torch.allclose(guided - null, grid[1].sigmoid().sqrt() * 0.6 * apart, atol=1e-12)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_2m_sde", "unipc", "heun", "heun_churn", "flow_heun"])
def test_a_sampler_that_combines_predictions_is_refused_before_a_network_is_built(
    sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "build_network", lambda cfg: pytest.fail("a network was built"))
    cfg = compose("train", ["experiment=toy", "guidance=cfg_pp", "guidance.weight=0.6", f"sampler={sampler}"])
    with pytest.raises(UserError, match=rf"cfg_pp does not go with sampler={sampler}, .*ddim, ddpm .*classifier_free"):
        build.build_module(cfg)


@pytest.mark.parametrize("weight", [-0.5, 7.5])
def test_a_weight_that_does_not_interpolate_is_refused(weight: float) -> None:
    with pytest.raises(UserError, match=rf"weight={weight} .*between 0 and 1.*classifier_free"):
        CFGPlusPlus(weight=weight)
