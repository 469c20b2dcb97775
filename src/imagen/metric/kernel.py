"""Kernel distances (squared maximum mean discrepancies): of few pictures they say more than Fréchet's.

KID: a cubic kernel on Inception's features, by an estimate without bias in their number (Bińkowski et al. 2018, arXiv
1801.01401), torchmetrics'. CMMD: a Gaussian kernel on CLIP's (Jayasumana et al. 2024, arXiv 2401.09603).
"""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.image.kid import KernelInceptionDistance

from imagen.metric.base import Direction, PictureMetric, check_counts, features_of
from imagen.metric.extractor import CLIP_MEAN, CLIP_STD, Extractor, Inception, VisionTransformer
from imagen.metric.pictures import Pictures
from imagen.ranges import Count, Natural


class KID(PictureMetric):
    """``kid`` and ``kid_std``, mean and deviation over ``subsets`` random draws of ``subset_size`` pictures each.

    ``weights`` and ``resize`` as for FID.
    """

    def __init__(
        self,
        *,
        weights: str | None,
        resize: str,
        subsets: Count,
        subset_size: Count,
        batch_size: Count,
        seed: Natural,
    ) -> None:
        self.weights, self.resize = weights, resize
        self.subsets, self.subset_size = subsets, subset_size
        self.batch_size, self.seed = batch_size, seed
        self._extractor: Extractor | None = None

    def make_extractor(self) -> Extractor:
        """The extractor, made once. Raises: UserError if its weights are missing."""
        return Inception(self.weights, self.resize)

    @torch.inference_mode()
    def __call__(self, drawn: Pictures, reference: Pictures) -> dict[str, float]:
        check_counts("kid", self.subset_size, drawn, reference)
        self._extractor = self.make_extractor().to(self.device)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*will save all extracted features")  # which KID is made of
            distance = KernelInceptionDistance(
                self._extractor, subsets=self.subsets, subset_size=self.subset_size, sync_on_compute=False
            )  # one process measures, be it one of a training's
        for pictures, real in ((drawn, False), (reference, True)):
            for batch in pictures.batches(self.batch_size):
                distance.update(batch.to(self.device), real=real)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            mean, deviation = distance.compute()
        return {"kid": mean.item(), "kid_std": deviation.item()}

    def directions(self) -> dict[str, Direction]:
        return {"kid": "lower"}

    def provenance(self) -> dict[str, str | int | float]:
        known = {} if self._extractor is None else self._extractor.identity()
        return {**known, "subsets": self.subsets, "subset_size": self.subset_size, "seed": self.seed}


class CMMD(PictureMetric):
    """``cmmd``: 1,000 times the squared discrepancy of unit CLIP embeddings, by a Gaussian kernel of width ``sigma``.

    ``path`` names a CLIP model, at ``size`` pixels (the paper: ViT-L/14 at 336, sigma 10).
    """

    def __init__(self, *, path: str, size: Count, sigma: float, batch_size: Count) -> None:
        self.path, self.size, self.sigma, self.batch_size = path, size, sigma, batch_size
        self._extractor: Extractor | None = None

    def __call__(self, drawn: Pictures, reference: Pictures) -> dict[str, float]:
        check_counts("cmmd", 2, drawn, reference)
        self._extractor = VisionTransformer(self.path, self.size, CLIP_MEAN, CLIP_STD).to(self.device)
        x, y = (
            torch.nn.functional.normalize(features_of(pictures, self._extractor, self.batch_size).double(), dim=-1)
            for pictures in (drawn, reference)
        )
        return {"cmmd": 1000 * gaussian_mmd(x, y, self.sigma)}

    def directions(self) -> dict[str, Direction]:
        return {"cmmd": "lower"}

    def provenance(self) -> dict[str, str | int | float]:
        known = {} if self._extractor is None else self._extractor.identity()
        return {**known, "sigma": self.sigma}


def gaussian_mmd(x: Float[Tensor, "m d"], y: Float[Tensor, "n d"], sigma: float) -> float:
    """The squared discrepancy of two sets with kernel ``exp(-|x - y|^2 / (2 sigma^2))``, by the biased estimate.

    That of CMMD: a point's kernel with itself counts, so a set against itself is 0 exactly.
    """
    return _mean_kernel(x, x, sigma) + _mean_kernel(y, y, sigma) - 2 * _mean_kernel(x, y, sigma)


def _mean_kernel(x: Tensor, y: Tensor, sigma: float, block: int = 4096) -> float:
    # in blocks: of 30,000 pictures the whole matrix would be 7 GB
    total = sum(
        torch.exp(torch.cdist(rows, columns).square() / (-2 * sigma**2)).sum().item()
        for rows in x.split(block)
        for columns in y.split(block)
    )
    return total / (len(x) * len(y))
