"""A batch becomes a loss per example: draw a noise level, add noise, ask the network, weigh its error."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imagen.conditioning_augmentation import ConditioningAugmentation
from imagen.data.pixels import downsample, to_float
from imagen.denoiser import Denoiser
from imagen.randomness import TrainingAddress
from imagen.schedule import NoiseSchedule, diffuse
from imagen.types import Batch, Conditioning, TextEmbedding
from imagen.weighting import Weighting


@dataclass
class Loss:
    """Loss per example, in epsilon-MSE units, and the noise level each was drawn at."""

    per_example: Float[Tensor, " b"]
    logsnr: Float[Tensor, " b"]


class DiffusionLoss(nn.Module):
    """The training objective of one stage (paper, section 2.1 and appendix F; equation 1 for the weighting).

    ``scale`` is how many times a super-resolution stage enlarges its picture's side, None for a base stage. It is the
    same for a crop: a 256-pixel crop of a 1024-pixel picture has a 64-pixel low-resolution twin.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        weighting: Weighting,
        augmentation: ConditioningAugmentation,
        *,
        scale: int | None,
        caption_dropout: float,
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.weighting = weighting
        self.augmentation = augmentation
        self.scale = scale
        self.caption_dropout = caption_dropout

    def forward(self, denoiser: Denoiser, batch: Batch, address: TrainingAddress, *, training: bool) -> Loss:
        """Every draw comes from ``address``; flips and caption dropout happen only in ``training``."""
        x0, text = to_float(batch.image), batch.text
        if training:
            flip = batch.can_flip & (address.uniform("flip") < 0.5)
            x0 = torch.where(flip[:, None, None, None], x0.flip(-1), x0)
            text = text.dropped(address.uniform("caption_dropout") < self.caption_dropout)
        cond = self.conditioning(x0, text, address)
        t = address.stratified("time")
        logsnr = self.schedule.logsnr(t)
        eps = address.normal("noise", tuple(x0.shape[1:]))
        x_t = diffuse(x0, eps, logsnr)
        output = denoiser.output(x_t, logsnr, cond)
        parameterization = denoiser.parameterization
        error = parameterization.error(output, x0, eps, logsnr)
        extra = parameterization.extra_loss(output, x0, x_t, t, self.schedule)
        return Loss(self.weighting.loss(error, logsnr) + extra, logsnr)

    def conditioning(self, x0: Float[Tensor, "b 3 h w"], text: TextEmbedding, address: TrainingAddress) -> Conditioning:
        """What the network is told: the text, and, where it enlarges, the picture made small and noised at random."""
        if self.scale is None:
            return Conditioning(text)
        low_res = downsample(x0, self.scale)
        level = self.augmentation.train_level(address.uniform("augmentation_level"))
        noise = address.normal("augmentation_noise", tuple(low_res.shape[1:]))
        low_res, low_res_logsnr = self.augmentation(low_res, level, noise)
        return Conditioning(text, low_res, low_res_logsnr)
