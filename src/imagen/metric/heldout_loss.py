"""Loss on held-out pictures at noise and noise levels that are the same for every stage: variants compare in pairs.

Validation during training draws levels from the stage's own schedule and weighs them as it trains. Here levels are
even in log-SNR and errors are epsilon's, unweighted, whatever the stage predicts and however it was trained; so their
mean is the evidence bound's, but for a factor (Kingma & Gao 2023, arXiv 2303.00848).
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.data.pixels import to_float
from imagen.errors import UserError
from imagen.loss import DiffusionLoss
from imagen.metric.base import Metric, Subject
from imagen.metric.pictures import PictureSet
from imagen.randomness import TrainingAddress
from imagen.ranges import Count, Natural
from imagen.schedule import diffuse
from imagen.stage import Stage
from imagen.weighting import Uniform


class HeldoutLoss(Metric):
    """``heldout_loss``, and ``heldout_loss_logsnr_<low>_to_<high>`` for the bins between ``edges``, of epsilon's MSE.

    Each held-out picture is noised ``draws`` times, at levels spread evenly over all pictures between the outer edges.
    Value i of draw j is at place ``j * pictures + i`` of ``values``, addressed by (``seed``, j, i): of two stages on
    the same data it is of the same picture, level and noise. It is NaN at a level outside the stage's own schedule,
    which it never saw in training. No caption is dropped; the low-resolution picture is noised as in training.
    """

    of_sampling = False

    def __init__(self, *, edges: list[float], draws: Count, batch_size: Count, seed: Natural) -> None:
        if sorted(set(edges)) != edges or len(edges) < 2:
            raise UserError(f"metric.heldout_loss.edges={edges} must be at least two increasing log-SNR values")
        self.edges, self.draws, self.batch_size, self.seed = edges, draws, batch_size, seed
        self._values: dict[str, Float[Tensor, " _"]] = {}

    @torch.no_grad()
    def measure(self, subject: Subject) -> dict[str, float]:
        own, stage = subject.own(), subject.stage()
        if not own.val:
            raise UserError("heldout_loss needs held-out pictures, and the data has none: data.root needs a split val")
        parts = [self._of_draw(own, stage, draw) for draw in range(self.draws)]
        loss, logsnr = (torch.cat(part) for part in zip(*parts, strict=True))
        self._values = {"heldout_loss": loss}
        for low, high in pairwise(self.edges):
            inside = (logsnr >= low) & (logsnr < high)
            self._values[f"heldout_loss_logsnr_{low:g}_to_{high:g}"] = torch.where(inside, loss, torch.nan)
        return {name: values.nanmean().item() for name, values in self._values.items() if not values.isnan().all()}

    def values(self) -> dict[str, Float[Tensor, " _"]]:
        return self._values

    def provenance(self) -> dict[str, str | int | float]:
        return {"seed": self.seed, "draws": self.draws, "unit": "epsilon's MSE", "levels": "even in log-SNR"}

    def _of_draw(self, own: PictureSet, stage: Stage, draw: int) -> tuple[Tensor, Tensor]:
        """Loss and log-SNR of every held-out picture once."""
        objective = DiffusionLoss(stage.schedule, Uniform(), stage.augmentation, scale=stage.scale, caption_dropout=0.0)
        ends = stage.schedule.logsnr(torch.tensor([0.0, 1.0], dtype=torch.float64))
        losses, levels = [], []
        for first in range(0, len(own.val), self.batch_size):
            rows = list(own.val[first : first + self.batch_size])
            address = TrainingAddress(self.seed, draw, first, len(rows), len(own.val), stage.device)
            text = own.encoder.encode([own.captions[i] for i in rows]).to(stage.device)
            x0 = to_float(own.images[rows].to(stage.device))
            logsnr = self.edges[0] + (self.edges[-1] - self.edges[0]) * address.stratified("time")
            cond, eps = objective.conditioning(x0, text, address), address.normal("noise", tuple(x0.shape[1:]))
            with stage.autocast():
                output = stage.denoiser.output(diffuse(x0, eps, logsnr), logsnr, cond)
            error = stage.denoiser.parameterization.error(output, x0, eps, logsnr).double().cpu()
            logsnr = logsnr.cpu()
            seen = (logsnr >= ends.min().item()) & (logsnr <= ends.max().item())
            losses.append(torch.where(seen, error, torch.nan))
            levels.append(logsnr)
        return torch.cat(losses), torch.cat(levels)
