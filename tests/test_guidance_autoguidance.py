"""Autoguidance: away from a weaker network under the same conditioning; two runs end to end, and what does not fit."""

from pathlib import Path

import pytest
import torch
from oracle import GaussianOracle, conditioning, generators
from PIL import Image
from torch import nn

from imagen import build, sampling
from imagen.cli import compose
from imagen.errors import UserError
from imagen.guidance import AutoGuidance
from imagen.runs import Weights
from imagen.slots import register
from imagen.training import train
from imagen.types import Conditioning, Prediction

X = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LOGSNR = torch.tensor([-5.0, 0.0, 5.0])


class Weak(nn.Module):
    """The oracle for data twice as wide; keeps what it was asked, and where it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Conditioning] = []
        self.register_buffer("place", torch.zeros(()))

    def forward(self, x_t: torch.Tensor, logsnr: torch.Tensor, cond: Conditioning) -> Prediction:
        self.seen.append(cond)
        return Prediction(GaussianOracle(-0.2, 1.0)(x_t, logsnr, cond).x0, gamma=torch.ones_like(x_t))


def test_the_main_model_is_led_away_from_the_weak_one_under_the_same_conditioning() -> None:
    weak, main = Weak(), GaussianOracle(-0.2, 0.5)
    guidance = AutoGuidance(checkpoint="runs/weak", weight=2.5)
    guidance.find(lambda source: lambda: weak if source == "runs/weak" else nn.Identity())
    guidance.to("cpu")
    cond = Conditioning(conditioning(3, token=0.4, dtype=torch.float32).text, X, LOGSNR)

    def with_variance(x_t: torch.Tensor, logsnr: torch.Tensor, cond: Conditioning) -> Prediction:
        return Prediction(main(x_t, logsnr, cond).x0, gamma=torch.zeros_like(x_t))

    prediction = guidance(with_variance)(X, LOGSNR, cond)
    assert weak.seen == [cond]
    assert main.batches == [3]
    weaker, stronger = GaussianOracle(-0.2, 1.0)(X, LOGSNR, cond).x0, main(X, LOGSNR, cond).x0
    assert torch.allclose(prediction.x0, weaker + 2.5 * (stronger - weaker), atol=1e-6)
    assert prediction.gamma is not None
    assert prediction.gamma.abs().max() == 0  # a learned variance is the main model's
    guidance.to("meta")
    assert weak.place.device.type == "meta"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[str]:
    """A run, and one that was trained with another seed."""
    folder = tmp_path_factory.mktemp("runs")
    small = ["max_steps=2", "batch_size=4", "validate_every_n_steps=2", "callback=[checkpoint]", "data.num_workers=0"]
    of_toy = ["experiment=toy", f"output_dir={folder}", "trainer.accelerator=cpu", *small]
    return [str(train(compose("train", [*of_toy, f"seed={seed}"])).path) for seed in (0, 1)]


def drawn(runs: list[str], folder: Path, *overrides: str) -> bytes:
    """The picture that ``sample.py`` draws with these settings."""
    arguments = [f"stages=[{runs[0]}]", "prompts=[a red circle]", f"output_dir={folder}", "device=cpu", *overrides]
    register(arguments)
    with Image.open(sampling.sample(compose("sample", arguments)) / "000_0.png") as picture:
        return picture.tobytes()


def test_two_runs_guide_one_another_from_the_command_line(runs: list[str], tmp_path: Path) -> None:
    auto = "guidance@base.guidance=autoguidance"
    plain = drawn(runs, tmp_path, "guidance@base.guidance=none")
    assert drawn(runs, tmp_path, auto, f"base.guidance.checkpoint={runs[1]}", "base.guidance.weight=1.0") == plain
    exported = f"base.guidance.checkpoint={runs[1]}/weights.safetensors"
    guided = drawn(runs, tmp_path, auto, exported)
    assert guided != plain
    assert drawn(runs, tmp_path, auto, f"base.guidance.checkpoint={runs[1]}") == guided
    assert drawn(runs, tmp_path, auto, f"base.guidance.checkpoint={runs[0]}") == plain  # from itself to itself
    with pytest.raises(
        UserError, match=r"does not go with checkpoint=null: set guidance\.checkpoint .*classifier_free"
    ):
        drawn(runs, tmp_path, auto)
    with pytest.raises(UserError, match="'nowhere' does not exist"):
        drawn(runs, tmp_path, auto, "base.guidance.checkpoint=nowhere")


@pytest.mark.parametrize(
    ("experiment", "override", "message"),
    [
        (
            "toy",
            "resolution=32 network.attention_resolutions=[16]",
            r"has resolution=32, which does not go with the stage .*give a run with resolution=16",
        ),
        ("toy_sr32", "resolution=16 low_resolution=8", r"has low_resolution=8, .*low_resolution=null"),
        ("toy", "text_encoder.max_length=5", r"text encoder 'hash' is not the one.*max_length: 64 here, 5 there"),
    ],
)
def test_a_network_that_does_not_fit_the_stage_is_refused_before_sampling(
    experiment: str, override: str, message: str, tmp_path: Path
) -> None:
    cfg = compose("train", [f"experiment={experiment}", *override.split()])
    module = build.build_module(cfg)
    path = tmp_path / "other.safetensors"
    Weights(module.state_to_export(), build.run_config(cfg), build.build_encoder(cfg).fingerprint(), 0).save(path)
    guided = ["experiment=toy", "guidance=autoguidance", f"guidance.checkpoint={path}"]
    with pytest.raises(UserError, match=message):
        build.build_module(compose("train", guided))


def test_the_weights_of_the_weaker_network_are_read_once_and_when_the_stage_first_samples(
    runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, sources = build.read_weights, []
    monkeypatch.setattr(build, "read_weights", lambda source: sources.append(source) or read(source))
    guided = ["experiment=toy", "guidance=autoguidance", "sampler=ddim", "sampler.num_steps=1"]
    for source in (runs[1], f"{runs[1]}/checkpoints/step_000000002.ckpt"):
        cfg = compose("train", [*guided, f"guidance.checkpoint={source}"])
        stage, text = build.build_module(cfg).stage, build.build_encoder(cfg).encode(["a red circle"])
        assert sources == []
        for _ in range(2):
            stage.sample(text, None, generators(1))
            assert sources == [source]
        assert isinstance(stage.guidance, AutoGuidance)
        assert stage.guidance.weak is not None
        assert not any(parameter.is_inference() for parameter in stage.guidance.weak.parameters())
        sources.clear()


def test_training_without_a_checkpoint_is_refused_in_the_constructor() -> None:
    with pytest.raises(UserError, match="guidance=autoguidance does not go with checkpoint=null"):
        build.build_module(compose("train", ["experiment=toy", "guidance=autoguidance"]))
