"""What the network's output means: its training target, the x0 that it implies, and the unit of its error.

``eps_factor`` turns a squared error of the output into one of epsilon, so that the choice never changes the objective.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.schedule import NoiseSchedule
from imagen.types import Prediction


class Parameterization(ABC):
    """One reading of a network's output, written in log-SNR; valid in float32 for log-SNR in [-20, 20]."""

    out_channels = 3
    """Channels that the network must put out."""

    learns_variance = False
    """Whether its reading says ``gamma``, a reverse variance, too."""

    @abstractmethod
    def target(
        self, x0: Float[Tensor, "b 3 h w"], eps: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"]
    ) -> Float[Tensor, "b 3 h w"]:
        """What a perfect network would output for ``x_t = alpha x0 + sigma eps``."""

    @abstractmethod
    def x0(
        self, output: Float[Tensor, "b 3 h w"], x_t: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"]
    ) -> Float[Tensor, "b 3 h w"]:
        """The clean picture that an output means, not clipped to any range."""

    @abstractmethod
    def eps_factor(self, logsnr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Epsilon's squared error divided by the output's: ``eps-MSE = eps_factor * MSE(output, target)``."""

    def input_scale(self, logsnr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """What ``x_t`` is multiplied by on its way into the network: 1, where the network sees it as it is."""
        return torch.ones_like(logsnr)

    def read(
        self, output: Float[Tensor, "b outputs h w"], x_t: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"]
    ) -> Prediction:
        """All that an output says."""
        return Prediction(self.x0(output, x_t, logsnr))

    def error(
        self,
        output: Float[Tensor, "b outputs h w"],
        x0: Float[Tensor, "b 3 h w"],
        eps: Float[Tensor, "b 3 h w"],
        logsnr: Float[Tensor, " b"],
    ) -> Float[Tensor, " b"]:
        """Each example's mean squared error in units of epsilon, whatever the output is."""
        error = (output - self.target(x0, eps, logsnr)).square().mean(dim=(1, 2, 3))
        return self.eps_factor(logsnr) * error

    def extra_loss(
        self,
        output: Float[Tensor, "b outputs h w"],
        x0: Float[Tensor, "b 3 h w"],
        x_t: Float[Tensor, "b 3 h w"],
        t: Float[Tensor, " b"],
        schedule: NoiseSchedule,
    ) -> Float[Tensor, " b"]:
        """What an output is trained on beside its error, not weighted: nothing, where x0 is all that it says."""
        return torch.zeros_like(t)
