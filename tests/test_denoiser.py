import pytest
import torch
from torch import nn

from imagen.denoiser import Denoiser
from imagen.parameterization import X0, Epsilon, Parameterization, V
from imagen.schedule import diffuse
from imagen.types import Conditioning, TextEmbedding

TEXT = TextEmbedding(torch.zeros(4, 2, 8), torch.ones(4, 2, dtype=torch.bool))


class Knows(nn.Module):
    """A network that outputs the target itself, in bfloat16 as autocast would."""

    def __init__(self, target: torch.Tensor) -> None:
        super().__init__()
        self.target = target

    def forward(self, x_t, logsnr, cond):
        return self.target.bfloat16()


@pytest.mark.parametrize("parameterization", [Epsilon(), V(), X0()], ids=lambda p: type(p).__name__)
def test_a_network_that_knows_the_target_gives_x0(parameterization: Parameterization):
    x0, eps, logsnr = torch.rand(4, 3, 8, 8) * 2 - 1, torch.randn(4, 3, 8, 8), torch.tensor([4.0, 1.0, 0.0, -1.0])
    denoiser = Denoiser(Knows(parameterization.target(x0, eps, logsnr)), parameterization)
    prediction = denoiser(diffuse(x0, eps, logsnr), logsnr, Conditioning(TEXT))
    assert prediction.x0.dtype == torch.float32
    torch.testing.assert_close(prediction.x0, x0, atol=0.05, rtol=0)
