"""The hub: a network and its parameterization make a denoiser, ``(x_t, logsnr, cond) -> Prediction``."""

from jaxtyping import Float
from torch import Tensor, nn

from imagen.parameterization import Parameterization
from imagen.types import Conditioning, Prediction


class Denoiser(nn.Module):
    """Reads the network's output as an estimate of ``x0``. Samplers, guidance and thresholds know nothing else."""

    def __init__(self, network: nn.Module, parameterization: Parameterization) -> None:
        super().__init__()
        self.network = network
        self.parameterization = parameterization

    def output(
        self, x_t: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b outputs h w"]:
        """The network's raw output, in float32 whatever precision it ran in: what the loss compares with its target."""
        scale = self.parameterization.input_scale(logsnr)[:, None, None, None]
        return self.network(scale * x_t, logsnr, cond).float()

    def forward(self, x_t: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"], cond: Conditioning) -> Prediction:
        return self.parameterization.read(self.output(x_t, logsnr, cond), x_t, logsnr)
