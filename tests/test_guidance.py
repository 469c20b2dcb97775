"""Guidance of every kind: weight 1 is the plain model, one doubled call equals two, the halves share all but text."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from oracle import GaussianOracle, conditioning, generators
from torch import nn

from imagen import build
from imagen.cli import CONF, compose
from imagen.errors import UserError
from imagen.guidance import (
    AdaptiveProjectedGuidance,
    AutoGuidance,
    CFGPlusPlus,
    ClassifierFreeGuidance,
    Guidance,
    IntervalGuidance,
    NoGuidance,
    OscillatingGuidance,
    RescaledGuidance,
    ScheduledGuidance,
)
from imagen.runs import Weights
from imagen.sampler import Sampler
from imagen.slots import register
from imagen.threshold import DynamicThreshold
from imagen.types import Conditioning, Prediction, TextEmbedding

X = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LOGSNR = torch.tensor([-5.0, 0.0, 5.0])
COND = conditioning(3, token=0.4, dtype=torch.float32)
EVERYWHERE = {"logsnr_min": -100.0, "logsnr_max": 100.0}


class WeakOracle(nn.Module):
    """What AutoGuidance loads: the oracle for data twice as wide."""

    def forward(self, x_t: torch.Tensor, logsnr: torch.Tensor, cond: Conditioning) -> Prediction:
        return GaussianOracle(-0.2, 1.0)(x_t, logsnr, cond)


def autoguidance(weight: float) -> AutoGuidance:
    guidance = AutoGuidance(checkpoint="weak", weight=weight)
    guidance.find(lambda source: WeakOracle)
    guidance.to("cpu")
    return guidance


WITH_WEIGHT: dict[str, Callable[[float], Guidance]] = {
    "classifier_free": lambda w: ClassifierFreeGuidance(weight=w),
    "interval": lambda w: IntervalGuidance(weight=w, **EVERYWHERE),
    "scheduled": lambda w: ScheduledGuidance(logsnr=[-3.0, 3.0], weight=[w, w]),
    "oscillating": lambda w: OscillatingGuidance(weight=w, low_weight=w, num_constant_steps=2),
    "rescale": lambda w: RescaledGuidance(weight=w, phi=0.7),
    "apg": lambda w: AdaptiveProjectedGuidance(weight=w, eta=0.0, norm_threshold=1.0, momentum=-0.5),
    "autoguidance": autoguidance,
}
"""Those of which 1 is the plain model."""

SAME_AS_CLASSIFIER_FREE: dict[str, Callable[[float], Guidance]] = {
    **{name: WITH_WEIGHT[name] for name in ("classifier_free", "interval", "scheduled", "oscillating")},
    "rescale": lambda w: RescaledGuidance(weight=w, phi=0.0),
    "apg": lambda w: AdaptiveProjectedGuidance(weight=w, eta=1.0, norm_threshold=float("inf"), momentum=0.0),
}
"""Those that with the right setting are classifier-free guidance."""

WITH_A_NULL_HALF: dict[str, Guidance] = {
    **{name: make(2.0) for name, make in WITH_WEIGHT.items() if name != "autoguidance"},
    "cfg_pp": CFGPlusPlus(weight=0.6),
}

every_null_half = pytest.mark.parametrize("guidance", WITH_A_NULL_HALF.values(), ids=WITH_A_NULL_HALF.keys())


@pytest.mark.parametrize(
    "guidance",
    [NoGuidance(), *(make(1.0) for make in WITH_WEIGHT.values())],
    ids=["none", *WITH_WEIGHT],
)
def test_weight_1_is_the_plain_model_to_the_bit_without_a_second_half(guidance: Guidance) -> None:
    oracle = GaussianOracle(-0.2, 0.5)
    plain = oracle(X, LOGSNR, COND).x0
    denoise = guidance(oracle)
    assert all(torch.equal(denoise(X, LOGSNR, COND).x0, plain) for _ in range(2))
    assert oracle.batches == [3, 3, 3]


@pytest.mark.parametrize("weight", [0.0, 1.35, 8.0])
@pytest.mark.parametrize("name", SAME_AS_CLASSIFIER_FREE)
def test_one_call_of_twice_the_batch_equals_two_calls(name: str, weight: float) -> None:
    oracle = GaussianOracle(-0.2, 0.5)
    guided = SAME_AS_CLASSIFIER_FREE[name](weight)(oracle)(X, LOGSNR, COND).x0
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


@every_null_half
def test_both_halves_see_the_same_low_resolution_picture_and_mask(guidance: Guidance) -> None:
    low_res = torch.rand(3, 3, 2, 2)
    seen: list[Conditioning] = []

    def denoise(x_t: torch.Tensor, logsnr: torch.Tensor, cond: Conditioning) -> Prediction:
        seen.append(cond)
        return Prediction(x_t, gamma=torch.cat([torch.zeros(3, 3, 4, 4), torch.ones(3, 3, 4, 4)]))

    cond = Conditioning(COND.text, low_res, torch.tensor([1.0, 2.0, 3.0]))
    prediction = guidance(denoise)(X, LOGSNR, cond)
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


@every_null_half
def test_guidance_leads_away_from_the_negative_prompt_where_there_is_one(guidance: Guidance) -> None:
    oracle = GaussianOracle(-0.2, 0.5)
    same = Conditioning(COND.text, negative=COND.text)
    assert torch.allclose(guidance(oracle)(X, LOGSNR, same).x0, oracle(X, LOGSNR, COND).x0, atol=1e-6)
    other = TextEmbedding(torch.full((3, 2, 4), -0.7), COND.text.mask)
    towards = guidance(oracle)(X, LOGSNR, Conditioning(other, negative=COND.text)).x0
    away = guidance(oracle)(X, LOGSNR, Conditioning(COND.text, negative=other)).x0
    assert (away - towards).min() > 0.001
    absent = guidance(oracle)(X, LOGSNR, Conditioning(COND.text, negative=other.null())).x0
    assert torch.equal(absent, guidance(oracle)(X, LOGSNR, COND).x0)


SAMPLERS: dict[str, Sampler] = {
    path.stem: build.instantiate(OmegaConf.load(path))  # type: ignore[arg-type]
    for path in sorted((CONF / "sampler").glob("*.yaml"))
    if path.stem != "ddpm_learned"  # whose network is another one
}


@pytest.mark.parametrize("option", SAMPLERS)
@pytest.mark.parametrize(
    "guidance",
    [
        NoGuidance(),
        autoguidance(2.0),
        IntervalGuidance(weight=3.0, logsnr_min=-2.0, logsnr_max=2.0),
        ScheduledGuidance(logsnr=[-5.0, 5.0], weight=[5.0, 1.0]),
        OscillatingGuidance(weight=5.0, low_weight=1.0, num_constant_steps=2),
        *WITH_A_NULL_HALF.values(),
    ],
    ids=lambda guidance: type(guidance).__name__,
)
def test_every_guidance_goes_with_every_sampler_and_threshold_but_cfg_pp(guidance: Guidance, option: str) -> None:
    sampler = SAMPLERS[option]
    if isinstance(guidance, CFGPlusPlus) and option not in ("ddim", "ddpm", "flow_euler"):
        with pytest.raises(UserError, match=f"guidance=cfg_pp does not go with sampler={option}"):
            guidance.check(sampler, f"sampler={option}")
        return
    guidance.check(sampler, f"sampler={option}")
    denoise = DynamicThreshold(percentile=0.995, cap=None)(guidance(GaussianOracle(-0.2, 0.5)))
    grid = torch.tensor([-20.0, -6.0, -2.0, -0.5, 0.5, 2.0, 6.0, torch.inf], dtype=torch.float64)
    drawn = sampler(denoise, X, grid, COND, generators(3))
    assert drawn.isfinite().all()
    assert drawn.dtype == X.dtype
    assert drawn.abs().max() <= 1  # the last step ends at a thresholded x0


def test_every_stage_has_its_own_guidance_from_the_command_line(tmp_path: Path) -> None:
    """The paper's weights for FID on COCO, as a user gives them; and another kind for one stage alone."""
    paths = []
    for experiment in ("toy", "toy_sr32"):
        cfg = compose("train", [f"experiment={experiment}"])
        fingerprint = build.build_encoder(cfg).fingerprint()
        paths.append(tmp_path / f"{experiment}.safetensors")
        state = build.build_module(cfg).state_to_export()
        Weights(state, build.run_config(cfg), fingerprint, 0).save(paths[-1])
    stages = f"stages=[{paths[0]},{paths[1]}]"
    register([stages])
    cfg = compose("sample", [stages, "base.guidance.weight=1.35", "sr1.guidance.weight=8.0"])
    base, sr1 = build.load_cascade(paths, slots={name: cfg[name] for name in ("base", "sr1")}).stages
    assert [stage.guidance.weight for stage in (base, sr1)] == [1.35, 8]  # type: ignore[attr-defined]
    curve = [
        "guidance@base.guidance=scheduled",
        "base.guidance.logsnr=[-4.0,0.0,4.0]",
        "base.guidance.weight=[8.0,3.0,1.0]",
    ]
    cfg = compose("sample", [stages, *curve])
    base, sr1 = build.load_cascade(paths, slots={name: cfg[name] for name in ("base", "sr1")}).stages
    assert isinstance(base.guidance, ScheduledGuidance)
    assert base.guidance.weight == [8, 3, 1]
    assert isinstance(sr1.guidance, ClassifierFreeGuidance)
