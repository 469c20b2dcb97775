"""Precision and recall: how many drawn pictures lie among the real ones, how many real ones among the drawn.

A set's manifold is the union of balls round its members' features, each reaching to its k-th nearest neighbour in the
set (Kynkäänniemi et al. 2019, arXiv 1904.06991).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from imagen.metric.base import Direction, PictureMetric, check_counts, features_of
from imagen.metric.extractor import IMAGENET_MEAN, IMAGENET_STD, Extractor, PixelComponents, VisionTransformer
from imagen.metric.pictures import Pictures
from imagen.ranges import Count


class PrecisionRecall(PictureMetric):
    """``precision`` and ``recall`` with ``k`` neighbours on features of ``path``, a DINOv2 model at ``size`` pixels.

    ``path`` null: on the first ``components`` principal components of the real pictures' pixels.
    """

    def __init__(self, *, path: str | None, size: Count, components: Count, k: Count, batch_size: Count) -> None:
        self.path, self.size, self.components, self.k, self.batch_size = path, size, components, k, batch_size
        self._extractor: Extractor | None = None

    def __call__(self, drawn: Pictures, reference: Pictures) -> dict[str, float]:
        check_counts("precision and recall", self.k + 1, drawn, reference)
        if self.path is None:
            extractor: Extractor = PixelComponents(reference, self.components)
        else:
            extractor = VisionTransformer(self.path, self.size, IMAGENET_MEAN, IMAGENET_STD)
        self._extractor = extractor.to(self.device)
        own, real = (features_of(pictures, self._extractor, self.batch_size) for pictures in (drawn, reference))
        return {
            "precision": within(own, real, self.k).double().mean().item(),
            "recall": within(real, own, self.k).double().mean().item(),
        }

    def directions(self) -> dict[str, Direction]:
        return {"precision": "higher", "recall": "higher"}

    def provenance(self) -> dict[str, str | int | float]:
        known = {} if self._extractor is None else self._extractor.identity()
        return {**known, "k": self.k}


def within(points: Float[Tensor, "m d"], others: Float[Tensor, "n d"], k: int) -> Bool[Tensor, " m"]:
    """Whether each point lies in the manifold of ``others``."""
    radius = torch.cat(
        [torch.cdist(rows, others).kthvalue(k + 1, dim=1).values for rows in others.split(1024)]  # the first is itself
    )
    return torch.cat([(torch.cdist(rows, others) <= radius).any(dim=1) for rows in points.split(1024)])
