"""What a metric is: numbers about drawn pictures beside real ones, and what makes those numbers comparable."""

import itertools
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.errors import UserError
from imagen.metric.extractor import Extractor
from imagen.metric.pictures import Pictures


class Metric(ABC):
    """Measures pictures that were drawn, ``drawn``, against real ones, ``reference``.

    A caption may have several pictures in either. ``device`` is where its networks are run.
    """

    device: torch.device = torch.device("cpu")

    @abstractmethod
    def __call__(self, drawn: Pictures, reference: Pictures) -> dict[str, float]:
        """The figures by name. Raises: UserError where there are too few pictures, or weights are missing."""

    def provenance(self) -> dict[str, str | int | float]:
        """What else decides the figures: the extractor, the hash of its weights, the resize, seeds."""
        return {}


def check_counts(name: str, least: int, drawn: Pictures, reference: Pictures) -> None:
    """Raises: UserError unless there are ``least`` pictures of either kind."""
    for pictures, what in ((drawn, "drawn"), (reference, "real")):
        if len(pictures) < least:
            raise UserError(f"{name} needs at least {least} {what} pictures, and there are {len(pictures)}")


@torch.inference_mode()
def features_of(pictures: Pictures, extractor: Extractor, batch_size: int) -> Float[Tensor, "n d"]:
    """The features of all pictures, on the CPU."""
    device = next(itertools.chain(extractor.parameters(), extractor.buffers())).device
    return torch.cat([extractor(batch.to(device)).float().cpu() for batch in pictures.batches(batch_size)])
