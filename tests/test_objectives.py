"""Every schedule, target and weighting together: one optimum, and it is the right one.

Data are Gaussian, so that the best denoiser is linear in x_t at every log-SNR and known by a formula. A denoiser that
is linear at each of a few log-SNRs is trained by the options of ``conf/`` as they stand there.
"""

from functools import cache

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from imagen import build
from imagen.cli import CONF
from imagen.parameterization import Parameterization, V
from imagen.schedule import alpha_sigma, diffuse
from imagen.weighting import Weighting

MEAN, STD = 0.3, 0.6
TIMES = torch.linspace(0.02, 0.98, 7, dtype=torch.float64)


def options(choice: str) -> list[str]:
    return sorted(path.stem for path in (CONF / choice).glob("*.yaml"))


def option(choice: str, name: str):
    node = OmegaConf.load(CONF / choice / f"{name}.yaml")
    return build.instantiate(OmegaConf.create({"resolution": 256, "option": node}).option)


@cache
def logsnrs() -> Tensor:
    """Every schedule's log-SNRs at the same few times, one schedule after the other."""
    return torch.cat([option("schedule", name).logsnr(TIMES) for name in options("schedule")])


def pixels(count: int) -> tuple[Tensor, Tensor]:
    """x0 and eps whose pixels have exactly the moments of N(MEAN, STD^2) and N(0, 1): their optimum is the law's."""
    samples = torch.randn(48, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    samples[:, 0] = 1
    basis = torch.linalg.qr(samples).Q * 48**0.5
    x0, eps = (basis[:, i].view(1, 3, 4, 4).repeat(count, 1, 1, 1) for i in (1, 2))
    return MEAN + STD * x0, eps


class LinearDenoiser:
    """At each level an output ``slope * input + offset``, the best by the loss at hand."""

    def __init__(self, logsnr: Tensor, parameterization: Parameterization, weighting: Weighting) -> None:
        self.parameterization, self.weighting = parameterization, weighting
        self.logsnr = logsnr
        self.x0, self.eps = pixels(len(logsnr))
        self.x_t = diffuse(self.x0, self.eps, self.logsnr)
        self.input = parameterization.input_scale(self.logsnr)[:, None, None, None] * self.x_t

    def output(self, theta: Tensor) -> Tensor:
        slope, offset = theta[:, :, None, None, None].unbind(1)
        return (slope * self.input + offset).repeat(1, self.parameterization.out_channels // 3, 1, 1)

    def losses(self, theta: Tensor) -> Tensor:
        error = self.parameterization.error(self.output(theta), self.x0, self.eps, self.logsnr)
        return self.weighting.loss(error, self.logsnr)

    def best(self) -> Tensor:
        """Where the gradient is zero: it is affine in each level's slope and offset, so three of its values tell."""
        points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        at_zero, at_slope, at_offset = (
            torch.autograd.functional.jacobian(
                lambda theta: self.losses(theta).sum(), point.repeat(len(self.logsnr), 1)
            )
            for point in points
        )
        curvature = torch.stack([at_slope - at_zero, at_offset - at_zero], dim=2)
        return -torch.linalg.solve(curvature, at_zero)


@pytest.mark.parametrize("weighting_name", options("weighting"))
@pytest.mark.parametrize("parameterization_name", options("parameterization"))
def test_every_objective_has_the_analytic_optimum(parameterization_name: str, weighting_name: str) -> None:
    weighting = option("weighting", weighting_name)
    for parameter in weighting.parameters():  # whatever it has learned
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
    parameterization = option("parameterization", parameterization_name)
    model = LinearDenoiser(logsnrs(), parameterization, weighting)
    best = model.best()
    alpha, sigma = alpha_sigma(model.logsnr[:, None, None, None])
    variance = alpha**2 * STD**2 + sigma**2
    expected = MEAN + alpha * STD**2 / variance * (model.x_t - alpha * MEAN)
    prediction = parameterization.read(model.output(best), model.x_t, model.logsnr)
    torch.testing.assert_close(prediction.x0, expected, atol=1e-6, rtol=0)
    # and its loss is the weight times the variance of epsilon that x_t leaves unknown
    unknown = (alpha**2 * STD**2 / variance).flatten()
    torch.testing.assert_close(model.losses(best), weighting.loss(unknown, model.logsnr), atol=0, rtol=1e-6)


def test_a_wrong_target_has_another_optimum() -> None:
    class Wrong(V):
        def target(self, x0: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
            return super().target(x0, eps, logsnr + 0.01)

    wrong, right = (LinearDenoiser(logsnrs(), target, option("weighting", "uniform")) for target in (Wrong(), V()))
    x0 = [m.parameterization.read(m.output(m.best()), m.x_t, m.logsnr).x0 for m in (wrong, right)]
    assert (x0[0] - x0[1]).abs().max() > 1e-4
