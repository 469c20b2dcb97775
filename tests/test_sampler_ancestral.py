"""Ancestral sampling: the paper's formula, the law of its samples, a learned variance per pixel, and its absence."""

import pytest
import torch
from oracle import GaussianOracle, conditioning, generators
from samplers import COSINE, even, law_error_on, normal, order
from torch import Tensor

from imagen import build
from imagen.cli import compose
from imagen.errors import UserError
from imagen.randomness import normal_from
from imagen.runs import Weights
from imagen.sampler import DDPM, LearnedVarianceDDPM
from imagen.schedule import alpha_sigma
from imagen.spacing import UniformTime
from imagen.types import Conditioning, Prediction


@pytest.mark.parametrize(
    ("std", "gamma", "num_steps", "bound"),
    [
        (1.0, 1.0, 64, 1e-3),  # the upper bound is exact for unit variance, but for the last step
        (0.5, 0.0, 400, 0.015),  # any gamma in the limit of many steps
        (0.5, 0.3, 400, 0.01),
        (0.5, 1.0, 400, 0.01),
    ],
)
def test_the_mean_and_the_variance_are_right(std: float, gamma: float, num_steps: int, bound: float) -> None:
    assert law_error_on(DDPM(num_steps=num_steps, gamma=gamma), UniformTime().grid(COSINE, num_steps), std) < bound


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_the_law_is_of_order_1(gamma: float) -> None:
    def error(num_steps: int) -> float:
        return law_error_on(DDPM(num_steps=num_steps, gamma=gamma), even(-8, 8, num_steps), 0.5)

    assert order(error, 80) == pytest.approx(1, abs=0.05)


def test_the_lower_bound_is_exact_for_a_single_picture_in_few_steps() -> None:
    # stopping half way, at log-SNR 0, x must be alpha m plus exactly sigma noise; errors in units of 1e-9
    assert law_error_on(DDPM(num_steps=1, gamma=0.0), even(-10, 0, 5), 1e-9) < 1e-3


def test_no_noise_is_put_on_the_final_picture() -> None:
    said: list[Tensor] = []
    sample = DDPM(num_steps=10, gamma=1.0)(
        GaussianOracle(0.3, 0.5),
        normal(2, 3, 4, 4),
        UniformTime().grid(COSINE, 10),
        conditioning(2),
        generators(2),
        lambda i, x, p: said.append(p.x0),
    )
    assert torch.allclose(sample, said[-1], atol=5e-4)


def test_the_mean_is_the_paper_s_formula() -> None:
    oracle, cond, x = GaussianOracle(0.3, 0.5), conditioning(1), normal(1, 3, 4, 4)
    t, s = torch.tensor([-1.0, 0.7], dtype=torch.float64)
    (alpha_t, alpha_s), (_, sigma_s) = alpha_sigma(torch.stack([t, s]))
    x0 = oracle(x, t[None], cond).x0
    kept = (t - s).exp()
    expected = kept * alpha_s / alpha_t * x + (1 - kept) * alpha_s * x0
    expected = expected + (1 - kept).sqrt() * sigma_s * normal_from(generators(1), (3, 4, 4), torch.float64)
    sample = DDPM(num_steps=1, gamma=0.0)(oracle, x, torch.stack([t, s]), cond, generators(1))
    assert torch.allclose(sample, expected, atol=1e-12)


# ---- a learned variance ----


def learned(x_t: Tensor, logsnr: Tensor, cond: Conditioning) -> Prediction:
    """The closed form's x0; a variance at its lower bound in the left half of a picture, at its upper in the right."""
    gamma = torch.zeros_like(x_t)
    gamma[..., x_t.shape[-1] // 2 :] = 1
    return Prediction(GaussianOracle(0.3, 0.5)(x_t, logsnr, cond).x0, gamma=gamma)


@pytest.mark.parametrize("sampler", [DDPM(num_steps=1, gamma=0.3), LearnedVarianceDDPM(num_steps=1)], ids=["ddpm", "_"])
@pytest.mark.parametrize("grid", [even(-5, 3, 6), UniformTime().grid(COSINE, 6)], ids=["finite", "whole"])
def test_a_learned_variance_replaces_gamma_pixel_by_pixel(sampler: DDPM | LearnedVarianceDDPM, grid: Tensor) -> None:
    x, cond, oracle = normal(2, 3, 4, 4), conditioning(2), GaussianOracle(0.3, 0.5)
    sample = sampler(learned, x, grid, cond, generators(2))
    lower, upper = (DDPM(num_steps=1, gamma=g)(oracle, x, grid, cond, generators(2)) for g in (0.0, 1.0))
    assert torch.allclose(sample[..., :2], lower[..., :2], atol=1e-12)
    assert torch.allclose(sample[..., 2:], upper[..., 2:], atol=1e-12)
    assert (lower - upper).abs().max() > 0.01


def test_a_network_without_a_variance_is_refused_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = compose("train", ["experiment=toy", "sampler=ddpm_learned"])
    weights = Weights({}, build.run_config(cfg), build.build_encoder(cfg).fingerprint(), 0)
    monkeypatch.setattr(build, "build_network", lambda cfg: pytest.fail("a network was built"))
    monkeypatch.setattr(build, "read_weights", lambda source: weights)
    with pytest.raises(UserError, match=r"sampler=ddpm_learned .*parameterization=v,.*sampler=ddpm.*learned_variance"):
        build.build_module(cfg)
    with pytest.raises(UserError, match="sampler=ddpm_learned"):
        build.load_cascade(["one"])
    with pytest.raises(UserError, match="sampler=ddpm_learned"):
        build.load_stage(weights, "base")


def test_a_network_with_a_variance_is_sampled_with_it() -> None:
    cfg = compose(
        "train",
        [
            "experiment=toy",
            "sampler=ddpm_learned",
            "sampler.num_steps=3",
            "parameterization=epsilon_learned_variance",
            "network.out_channels=6",
        ],
    )
    stage = build.build_module(cfg).stage
    text = build.build_encoder(cfg).encode(["a red circle"])
    assert stage.sample(text, None, generators(1)).isfinite().all()


def test_a_gamma_outside_0_to_1_is_refused() -> None:
    with pytest.raises(UserError, match="gamma=-0"):
        DDPM(num_steps=5, gamma=-0.1)
