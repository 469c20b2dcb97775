"""What is done to the low-resolution picture before a super-resolution network sees it, in training and at sampling.

The corruption hides how real pictures differ from the earlier stage's, and its strength, a level in [0, 1], is told to
the network as a log-SNR (Imagen, section 2.4; Cascaded Diffusion, arXiv 2106.15282).
"""

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from imagen.errors import UserError
from imagen.schedule import NoiseSchedule, diffuse


class ConditioningAugmentation(ABC):
    """How a low-resolution picture is corrupted at a level, and how levels are drawn in training."""

    @abstractmethod
    def train_level(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Training levels, from u ~ U(0, 1)."""

    @abstractmethod
    def __call__(
        self, low_res: Float[Tensor, "b 3 hl wl"], level: Float[Tensor, " b"], noise: Float[Tensor, "b 3 hl wl"]
    ) -> tuple[Float[Tensor, "b 3 hl wl"], Float[Tensor, " b"]]:
        """The corrupted picture and the log-SNR that tells the network how corrupt it is; noise is standard normal."""

    def early_stop(self, level: float) -> float:
        """The log-SNR at which, at sampling, it takes the stage before's unfinished sample in place of a corrupted one.

        Infinite where it only ever corrupts finished pictures.
        """
        return math.inf


class GaussianAugmentation(ConditioningAugmentation):
    """Variance-preserving noise: ``level`` is the time of its own schedule, drawn from U(0, level_max) in training.

    Imagen, section 2.4 and figure A.32, with level_max 1. The paper leaves the schedule unsaid.
    """

    def __init__(self, schedule: NoiseSchedule, *, level_max: float) -> None:
        if not 0 < level_max <= 1:
            raise UserError(f"level_max={level_max} must be above 0 and at most 1.")
        self.schedule = schedule
        self.level_max = level_max

    def train_level(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return self.level_max * u

    def __call__(
        self, low_res: Float[Tensor, "b 3 hl wl"], level: Float[Tensor, " b"], noise: Float[Tensor, "b 3 hl wl"]
    ) -> tuple[Float[Tensor, "b 3 hl wl"], Float[Tensor, " b"]]:
        logsnr = self.schedule.logsnr(level)
        return diffuse(low_res, noise, logsnr), logsnr


class TruncatedAugmentation(GaussianAugmentation):
    """Gaussian in training; at sampling the stage before's own z_s, its walk interrupted at the level, no noise added.

    Cascaded Diffusion, arXiv 2106.15282, section 4.2. Where there is none (a user's picture, or a walk that begins
    cleaner than the level) a finished picture is noised, which has the same law: a perfect sampler's z_s is distributed
    as its pictures noised to s.
    """

    def early_stop(self, level: float) -> float:
        return self.schedule.logsnr(torch.tensor(level, dtype=torch.float64, device="cpu")).item()


class NoAugmentation(ConditioningAugmentation):
    """The picture as it is, at every level; the network is told the schedule's cleanest log-SNR."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule

    def train_level(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return torch.zeros_like(u)

    def __call__(
        self, low_res: Float[Tensor, "b 3 hl wl"], level: Float[Tensor, " b"], noise: Float[Tensor, "b 3 hl wl"]
    ) -> tuple[Float[Tensor, "b 3 hl wl"], Float[Tensor, " b"]]:
        return low_res, self.schedule.logsnr(torch.zeros_like(level))


class BlurAugmentation(ConditioningAugmentation):
    """Gaussian blur of a share of the training examples: Cascaded Diffusion (arXiv 2106.15282, section 4.2).

    The paper blurs 50 % with a 3 x 3 kernel, sigma in pixels drawn uniformly from a range (0.4 to 0.6 at best), and
    nothing at sampling; of telling the network it says nothing. Here too the network is told the schedule's cleanest
    log-SNR, whatever the blur. Level 0 means none; a level in (0, 1] blurs with sigma_min up to sigma_max.
    """

    def __init__(
        self, schedule: NoiseSchedule, *, probability: float, kernel_size: int, sigma_min: float, sigma_max: float
    ) -> None:
        if not 0 <= probability <= 1:
            raise UserError(f"probability={probability} must be between 0 (never blur) and 1 (blur every example)")
        if kernel_size < 3 or kernel_size % 2 == 0:
            raise UserError(f"kernel_size={kernel_size} must be odd and at least 3, so that a pixel is its middle")
        if not 0 < sigma_min <= sigma_max:
            raise UserError(f"sigma_min={sigma_min} must be above 0 and at most sigma_max={sigma_max} (pixels)")
        self.schedule = schedule
        self.probability = probability
        self.kernel_size = kernel_size
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    def train_level(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        # uniform in (0, 1] where it blurs, since level 0 means that it does not
        return torch.where(u < self.probability, 1 - u / self.probability, 0.0)

    def __call__(
        self, low_res: Float[Tensor, "b 3 hl wl"], level: Float[Tensor, " b"], noise: Float[Tensor, "b 3 hl wl"]
    ) -> tuple[Float[Tensor, "b 3 hl wl"], Float[Tensor, " b"]]:
        sigma = self.sigma_min + level * (self.sigma_max - self.sigma_min)
        blurred = gaussian_blur(low_res, sigma, self.kernel_size)
        kept = torch.where(level[:, None, None, None] > 0, blurred, low_res)
        return kept, self.schedule.logsnr(torch.zeros_like(level))


def gaussian_blur(
    image: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"], kernel_size: int
) -> Float[Tensor, "b c h w"]:
    """Each example convolved with its own normalised, sampled Gaussian of standard deviation ``sigma`` pixels.

    Borders are reflected. Sums of products in the picture's own dtype, out of reach of TF32.
    """
    reach = kernel_size // 2
    offset = torch.arange(-reach, reach + 1, device=sigma.device)
    taps = torch.softmax(-0.5 * (offset / sigma[:, None]) ** 2, dim=1)[:, None, None, None]
    padded = F.pad(image, (reach, reach, reach, reach), mode="reflect")
    rows = (padded.unfold(-1, kernel_size, 1) * taps).sum(-1)
    return (rows.unfold(-2, kernel_size, 1) * taps).sum(-1)
