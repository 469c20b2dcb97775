"""Every schedule, target and weighting together: one optimum, and it is the right one.

The training loss itself, with the options of ``conf/`` as they stand there, is made least by a denoiser that is linear
at each of the log-SNRs that the loss draws. The pictures and the noise have exactly known moments, and the best linear
denoiser is that of Gaussian data with these moments, which is a formula.
"""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from imagen import build
from imagen.cli import CONF
from imagen.conditioning_augmentation import NoAugmentation
from imagen.data.pixels import to_float
from imagen.denoiser import Denoiser
from imagen.loss import DiffusionLoss
from imagen.parameterization import Parameterization, V
from imagen.randomness import TrainingAddress
from imagen.schedule import NoiseSchedule, alpha_sigma, diffuse
from imagen.types import Batch, Conditioning, TextEmbedding
from imagen.weighting import Weighting

COUNT, SIDE = 8, 4


def options(choice: str) -> list[str]:
    return sorted(path.stem for path in (CONF / choice).glob("*.yaml"))


@cache
def option(choice: str, name: str):
    node = OmegaConf.load(CONF / choice / f"{name}.yaml")
    return build.instantiate(OmegaConf.create({"resolution": 256, "option": node}).option)


@cache
def picture() -> Tensor:
    """Pixels of mean 0.1 and deviation 0.3 or so, as bytes."""
    noise = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return ((0.1 + 0.3 * noise + 1) * 127.5).round().byte()


@cache
def noise() -> Tensor:
    x0 = to_float(picture()).flatten().double()
    drawn = torch.randn(len(x0), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    basis = torch.linalg.qr(torch.stack([torch.ones_like(x0), x0, drawn], dim=1)).Q
    return (basis[:, 2] * len(x0) ** 0.5).float().view(1, 3, SIDE, SIDE)


@dataclass(frozen=True)
class ExactAddress(TrainingAddress):
    """Draws whose noise has exactly the moments of N(0, 1), and none of the picture in it: its optimum is the law's."""

    def normal(self, stream: str, shape: tuple[int, ...]) -> Tensor:
        return noise().expand(self.count, *shape)


class LinearNetwork(nn.Module):
    """At each example's level an output ``slope * input + offset``; all else that an output says is zero."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.theta = nn.Parameter(torch.zeros(COUNT, 2))

    def forward(self, x_t: Tensor, logsnr: Tensor, cond: Conditioning) -> Tensor:
        slope, offset = self.theta[:, :, None, None, None].unbind(1)
        output = slope * x_t + offset
        return torch.cat([output, output.new_zeros(COUNT, self.outputs - 3, SIDE, SIDE)], dim=1)


class Training:
    """One step of training, as often as one likes: the same pictures, noise and noise levels."""

    def __init__(self, schedule: NoiseSchedule, parameterization: Parameterization, weighting: Weighting) -> None:
        self.network = LinearNetwork(parameterization.out_channels)
        self.denoiser = Denoiser(self.network, parameterization)
        self.loss = DiffusionLoss(schedule, weighting, NoAugmentation(schedule), scale=None, caption_dropout=0.1)
        text = TextEmbedding(torch.zeros(COUNT, 1, 1), torch.ones(COUNT, 1, dtype=torch.bool))
        no_flips, names = torch.zeros(COUNT, dtype=torch.bool), [""] * COUNT
        self.batch = Batch(picture().expand(COUNT, -1, -1, -1), text, no_flips, names, names)
        self.address = ExactAddress(0, 0, 0, COUNT, COUNT)

    def losses(self) -> Tensor:
        return self.loss(self.denoiser, self.batch, self.address, training=True).per_example

    def gradient(self, *theta: float) -> Tensor:
        """Of each example's slope and offset, where these are ``theta``."""
        self.network.theta.data[:] = torch.tensor(theta)
        return torch.autograd.grad(self.losses().sum(), self.network.theta)[0].double()

    def finish(self) -> None:
        """Go where the gradient is zero: it is affine in slope and offset, so three of its values tell."""
        at_zero, at_slope, at_offset = self.gradient(0.0, 0.0), self.gradient(1.0, 0.0), self.gradient(0.0, 1.0)
        curvature = torch.stack([at_slope - at_zero, at_offset - at_zero], dim=2)
        self.network.theta.data[:] = -torch.linalg.solve(curvature, at_zero)


def off(training: Training) -> Tensor:
    """How far the trained denoiser is from the best, as the error of the noise that its x0 implies."""
    x0, logsnr = to_float(training.batch.image), training.loss.schedule.logsnr(training.address.stratified("time"))
    x_t = diffuse(x0, training.address.normal("noise", tuple(x0.shape[1:])), logsnr)
    alpha, sigma = (value.double() for value in alpha_sigma(logsnr[:, None, None, None]))
    mean, variance = x0[0].double().mean(), x0[0].double().var(correction=0)
    best = mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x_t - alpha * mean)
    with torch.no_grad():
        prediction = training.denoiser(x_t, logsnr, Conditioning(training.batch.text))
    return alpha / sigma * (prediction.x0 - best)


@pytest.mark.parametrize("weighting_name", options("weighting"))
@pytest.mark.parametrize("parameterization_name", options("parameterization"))
@pytest.mark.parametrize("schedule_name", options("schedule"))
def test_every_objective_reaches_the_analytic_optimum(
    schedule_name: str, parameterization_name: str, weighting_name: str
) -> None:
    weighting = option("weighting", weighting_name)
    for parameter in weighting.parameters():  # whatever it has learned
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
    schedule, parameterization = option("schedule", schedule_name), option("parameterization", parameterization_name)
    training = Training(schedule, parameterization, weighting)
    training.finish()
    assert off(training).abs().max() < 1e-3
    # and its loss is the weight times the variance of epsilon that x_t leaves unknown, beside what else it learns from
    t = training.address.stratified("time")
    logsnr, x0 = schedule.logsnr(t), to_float(training.batch.image)
    x_t = diffuse(x0, training.address.normal("noise", tuple(x0.shape[1:])), logsnr)
    alpha, sigma = alpha_sigma(logsnr)
    signal = alpha**2 * x0[0].var(correction=0)
    with torch.no_grad():
        output = training.denoiser.output(x_t, logsnr, Conditioning(training.batch.text))
        extra = parameterization.extra_loss(output, x0, x_t, t, schedule)
        least = weighting.loss(signal / (signal + sigma**2), logsnr) + extra
        torch.testing.assert_close(training.losses(), least, atol=1e-5, rtol=1e-3)


def test_a_wrong_target_has_another_optimum() -> None:
    class Wrong(V):
        def target(self, x0: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
            return super().target(x0, eps, logsnr + 0.05)

    training = Training(option("schedule", "cosine"), Wrong(), option("weighting", "uniform"))
    training.finish()
    assert off(training).abs().max() > 1e-2
