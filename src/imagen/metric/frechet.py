"""Fréchet distances between the features of drawn and real pictures: FID, FD-DINOv2, FD on pixels.

The distance between the normal distributions of the same mean and covariance (Heusel et al. 2017, arXiv 1706.08500);
the computation is torchmetrics', in float64.
"""

from abc import abstractmethod

import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from imagen.metric.base import Direction, PictureMetric, check_counts
from imagen.metric.extractor import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Extractor,
    Inception,
    PixelComponents,
    VisionTransformer,
)
from imagen.metric.pictures import Pictures
from imagen.ranges import Count


class FrechetDistance(PictureMetric):
    """The distance under ``name``; it needs the weights of an extractor, which a subclass names."""

    name: str

    def __init__(self, *, batch_size: Count) -> None:
        self.batch_size = batch_size
        self._extractor: Extractor | None = None

    @abstractmethod
    def make_extractor(self, reference: Pictures) -> Extractor:
        """The extractor, made once. Raises: UserError if its weights are missing."""

    @torch.inference_mode()
    def __call__(self, drawn: Pictures, reference: Pictures) -> dict[str, float]:
        check_counts(self.name, 2, drawn, reference)
        self._extractor = self.make_extractor(reference).to(self.device)
        # one process measures, be it one of a training's: without the others' it waits for none of them
        distance = FrechetInceptionDistance(feature=self._extractor, sync_on_compute=False).to(self.device)
        for pictures, real in ((drawn, False), (reference, True)):
            for batch in pictures.batches(self.batch_size):
                distance.update(batch.to(self.device), real=real)
        return {self.name: distance.compute().item()}

    def directions(self) -> dict[str, Direction]:
        return {self.name: "lower"}

    def provenance(self) -> dict[str, str | int | float]:
        return {} if self._extractor is None else self._extractor.identity()


class FrechetInception(FrechetDistance):
    """FID. ``weights``: the Inception network's file, or null to download it; ``resize``: see ``Inception``."""

    name = "fid"

    def __init__(self, *, weights: str | None, resize: str, batch_size: Count) -> None:
        super().__init__(batch_size=batch_size)
        self.weights, self.resize = weights, resize

    def make_extractor(self, reference: Pictures) -> Extractor:
        return Inception(self.weights, self.resize)


class FrechetDINOv2(FrechetDistance):
    """FD-DINOv2 (Stein et al. 2023, arXiv 2306.04675): ``path`` names a DINOv2 model, at ``size`` pixels."""

    name = "fd_dinov2"

    def __init__(self, *, path: str, size: Count, batch_size: Count) -> None:
        super().__init__(batch_size=batch_size)
        self.path, self.size = path, size

    def make_extractor(self, reference: Pictures) -> Extractor:
        return VisionTransformer(self.path, self.size, IMAGENET_MEAN, IMAGENET_STD)


class FrechetPixels(FrechetDistance):
    """The distance along the first ``components`` principal components of the real pictures' pixels.

    No network's weights: for sets too small, or machines too bare, for the others.
    """

    name = "fd_pixel"

    def __init__(self, *, components: Count, batch_size: Count) -> None:
        super().__init__(batch_size=batch_size)
        self.components = components

    def make_extractor(self, reference: Pictures) -> Extractor:
        return PixelComponents(reference, self.components)
