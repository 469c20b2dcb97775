"""Weightings against their published forms, and at the ends of log-SNR in float32."""

import math

import lightning
import pytest
import torch

from imagen import build
from imagen.cli import compose
from imagen.errors import UserError
from imagen.parameterization import EDM as EDMTarget
from imagen.parameterization import Flow as FlowTarget
from imagen.parameterization import V
from imagen.weighting import EDM, Flow, MinSNR, Sigmoid, SoftMinSNR, Uncertainty, Uniform, Weighting

LOGSNR = torch.linspace(-20, 20, 81)
SNR = LOGSNR.double().exp()


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        (Uniform(), torch.ones_like(SNR)),
        (MinSNR(gamma=5.0), SNR.clamp(max=5) / SNR),
        (SoftMinSNR(gamma=4.0), 4 / (SNR + 4)),
        (EDM(sigma_data=0.5), (SNR + 4) / SNR),
        (Flow(), (1 + SNR**-0.5) ** 2),
        (Sigmoid(bias=2.0), 1 / (1 + SNR * math.exp(-2))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_published_form_in_float32(weighting: Weighting, expected: torch.Tensor) -> None:
    weight = weighting(LOGSNR)
    assert weight.dtype == torch.float32
    assert torch.allclose(weight.double(), expected, rtol=1e-5)


def test_plain_losses_of_targets_are_the_weightings_of_their_names() -> None:
    assert torch.allclose(EDM(sigma_data=1.0)(LOGSNR), 1 / V().eps_factor(LOGSNR), rtol=1e-5)
    assert torch.allclose(EDM(sigma_data=0.5)(LOGSNR), 1 / EDMTarget(sigma_data=0.5).eps_factor(LOGSNR), rtol=1e-5)
    assert torch.allclose(Flow()(LOGSNR), 1 / FlowTarget().eps_factor(LOGSNR), rtol=1e-5)


def test_sigmoid_is_soft_min_snr_by_another_name() -> None:
    assert torch.allclose(Sigmoid(bias=2.0)(LOGSNR), SoftMinSNR(gamma=math.exp(2))(LOGSNR), rtol=1e-5)


def test_uncertainty_starts_as_edm_and_is_the_same_for_every_generator() -> None:
    torch.manual_seed(1)
    one = Uncertainty(sigma_data=0.5, num_features=16)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two = Uncertainty(sigma_data=0.5, num_features=16)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.frequencies, two.frequencies)
    error = torch.rand_like(LOGSNR)
    assert torch.equal(one.loss(error, LOGSNR), EDM(sigma_data=0.5)(LOGSNR) * error)


def test_uncertainty_learns_the_logarithm_of_the_weighted_error() -> None:
    """Its loss is then one plus it: every log-SNR has the same weighted error, 1, and with it the same gradients."""
    weighting = Uncertainty(sigma_data=0.5, num_features=64).double()
    logsnr = LOGSNR.double()[20:61]
    weighted = torch.exp(2 * torch.sin(logsnr / 2) - 3)
    error = weighted / EDM(sigma_data=0.5)(logsnr)
    optimizer = torch.optim.LBFGS(weighting.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = weighting.loss(error, logsnr).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.allclose(weighting.log_variance(logsnr), weighted.log(), atol=1e-2)
    assert torch.allclose(weighting(logsnr) * error, torch.ones_like(error), atol=1e-2)


def test_uncertainty_is_exact_under_mixed_precision() -> None:
    weighting = Uncertainty(sigma_data=0.5, num_features=16)
    torch.nn.init.normal_(weighting.coefficients, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = weighting.log_variance(LOGSNR)
    assert torch.equal(mixed, weighting.log_variance(LOGSNR))


def test_what_it_learns_is_trained_and_checkpointed_but_neither_averaged_nor_exported(tmp_path) -> None:
    overrides = ["experiment=toy", "callback=[]", "data.num_workers=0", "weighting=uncertainty", "batch_size=4"]
    cfg = compose("train", overrides)
    module, data = build.build_module(cfg), build.build_data(cfg)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        max_steps=2, accelerator="cpu", limit_val_batches=0, enable_model_summary=False, **quiet
    )
    trainer.fit(module, data)
    weighting = module.loss.weighting
    assert isinstance(weighting, Uncertainty)
    assert (weighting.coefficients != 0).any()
    trainer.save_checkpoint(tmp_path / "checkpoint.ckpt")
    state = torch.load(tmp_path / "checkpoint.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(state["loss.weighting.coefficients"], weighting.coefficients)
    again = build.build_module(cfg)
    again.load_state_dict(state)
    assert isinstance(again.loss.weighting, Uncertainty)
    assert torch.equal(again.loss.weighting.coefficients, weighting.coefficients)
    network = set(module.denoiser.network.state_dict())
    assert set(module.ema.state_dict()) == {f"network.{name}" for name in network}
    assert set(module.state_to_export()) == network


def test_soft_min_snr_lies_below_min_snr() -> None:
    hard, soft = MinSNR(gamma=5.0)(LOGSNR.double()), SoftMinSNR(gamma=5.0)(LOGSNR.double())
    assert (soft < hard).all()
    assert (soft >= hard / 2).all()


def test_unfit_values_are_named() -> None:
    with pytest.raises(UserError, match="gamma=0"):
        MinSNR(gamma=0.0)
    with pytest.raises(UserError, match="sigma_data=-1"):
        EDM(sigma_data=-1.0)
    with pytest.raises(UserError, match="bias=inf"):
        Sigmoid(bias=math.inf)
    with pytest.raises(UserError, match="num_features=3"):
        Uncertainty(sigma_data=0.5, num_features=3)
