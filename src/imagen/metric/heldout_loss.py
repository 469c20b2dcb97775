"""Loss on held-out pictures at noise and noise levels that are the same for every stage: variants compare in pairs.

Validation during training draws levels from the stage's own schedule and weighs them as it trains. Here levels are
even in log-SNR and errors are epsilon's, unweighted, whatever the stage predicts and however it was trained; so their
mean is the evidence bound's, but for a factor (Kingma & Gao 2023, arXiv 2303.00848).
"""

from itertools import pairwise
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.data.pixels import downsample, to_float
from imagen.errors import UserError
from imagen.metric.base import Direction, Metric, Subject
from imagen.randomness import TrainingAddress
from imagen.ranges import Count, Natural, Range
from imagen.schedule import diffuse
from imagen.stage import Stage
from imagen.types import Conditioning, TextEmbedding


class HeldoutLoss(Metric):
    """``heldout_loss``, and ``heldout_loss_logsnr_<low>_to_<high>`` for the bins between ``edges``, of epsilon's MSE.

    Each held-out picture is noised ``draws`` times, at levels spread evenly over all pictures between the outer edges.
    Value i of draw j is at place ``j * pictures + i`` of ``values``, addressed by (``seed``, j, i): of two stages on
    the same data it is of the same picture, level and noise. It is NaN at a level outside the stage's own schedule,
    which it never saw in training, and infinite where the network diverged. No caption is dropped. The low-resolution
    picture is corrupted at ``augmentation_level``, and the stage told so: at 0 every stage is given the picture as it
    is, above it its own augmentation's kind of corruption, so that only stages of one kind compare.
    """

    of_sampling = False

    def __init__(
        self,
        *,
        edges: list[float],
        draws: Count,
        augmentation_level: Annotated[float, Range(0, 1)],
        batch_size: Count,
        seed: Natural,
    ) -> None:
        if sorted(set(edges)) != edges or len(edges) < 2:
            raise UserError(f"metric.heldout_loss.edges={edges} must be at least two increasing log-SNR values")
        self.edges, self.draws, self.batch_size, self.seed = edges, draws, batch_size, seed
        self.augmentation_level = augmentation_level
        self._values: dict[str, Float[Tensor, " _"]] = {}

    @torch.no_grad()
    def measure(self, subject: Subject) -> dict[str, float]:
        own, stage = subject.own(), subject.stage()
        parts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(self.draws)]
        first = 0
        for images in own.val.batches(self.batch_size):
            text = own.encoder.encode(list(own.val.captions[first : first + len(images)])).to(stage.device)
            x0 = to_float(images.to(stage.device))
            for draw, part in enumerate(parts):
                address = TrainingAddress(self.seed, draw, first, len(x0), len(own.val), stage.device)
                part.append(self._of_batch(stage, x0, text, address))
            first += len(images)
        loss, logsnr = (torch.cat(values) for values in zip(*(pair for part in parts for pair in part), strict=True))
        self._values = {"heldout_loss": loss}
        for low, high in pairwise(self.edges):
            inside = (logsnr >= low) & (logsnr < high)
            self._values[f"heldout_loss_logsnr_{low:g}_to_{high:g}"] = torch.where(inside, loss, torch.nan)
        return {name: values.nanmean().item() for name, values in self._values.items() if not values.isnan().all()}

    def directions(self) -> dict[str, Direction]:
        return dict.fromkeys(self._values, "lower")

    def depends(self, subject: Subject) -> dict[str, Any]:
        return {"data": subject.own().val.captioned_digest}

    def values(self) -> dict[str, Float[Tensor, " _"]]:
        return self._values

    def provenance(self) -> dict[str, str | int | float]:
        known = {"seed": self.seed, "draws": self.draws, "augmentation_level": self.augmentation_level}
        return {**known, "unit": "epsilon's MSE", "levels": "even in log-SNR"}

    def _of_batch(
        self, stage: Stage, x0: Float[Tensor, "b 3 h w"], text: TextEmbedding, address: TrainingAddress
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Loss and log-SNR of each."""
        ends = stage.schedule.logsnr(torch.tensor([0.0, 1.0], dtype=torch.float64))
        logsnr = self.edges[0] + (self.edges[-1] - self.edges[0]) * address.stratified("time")
        cond, eps = self._conditioning(stage, x0, text, address), address.normal("noise", tuple(x0.shape[1:]))
        with stage.autocast():
            output = stage.denoiser.output(diffuse(x0, eps, logsnr), logsnr, cond)
        error = stage.denoiser.parameterization.error(output, x0, eps, logsnr).double().cpu()
        logsnr = logsnr.cpu()
        seen = (logsnr >= ends.min().item()) & (logsnr <= ends.max().item())
        error = torch.where(error.isnan(), torch.inf, error)
        return torch.where(seen, error, torch.nan), logsnr

    def _conditioning(
        self, stage: Stage, x0: Float[Tensor, "b 3 h w"], text: TextEmbedding, address: TrainingAddress
    ) -> Conditioning:
        if stage.scale is None:
            return Conditioning(text)
        low_res = downsample(x0, stage.scale)
        noise = address.normal("augmentation_noise", tuple(low_res.shape[1:]))
        level = torch.full((len(x0),), self.augmentation_level, device=x0.device)
        return Conditioning(text, *stage.augmentation(low_res, level, noise))
