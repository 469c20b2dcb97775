"""What a metric is: numbers about what was drawn, and what makes those numbers comparable."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.errors import UserError
from imagen.metric.extractor import Extractor
from imagen.metric.pictures import Pictures, PictureSet
from imagen.stage import Stage

Direction = Literal["higher", "lower"]
"""Which way a figure is better."""


@dataclass(frozen=True)
class Enlarged:
    """``drawn[i]`` is ``given[i]`` enlarged; ``truth[i]`` is the real picture that ``given[i]`` was made from.

    ``truth`` is None where no real picture is behind what was given.
    """

    drawn: Pictures
    given: Pictures
    truth: Pictures | None


@dataclass(frozen=True)
class Subject:
    """One point of sampling: ``drawn`` to be measured against ``reference``.

    ``own`` is the set that the stage was trained on, its splits read when they are asked for; ``enlarged`` what it made
    of low-resolution pictures of several kinds (``samples``, ``real``), ``stage`` the trained stage on its device. The
    two that are called are loaded then, and raise UserError where they are missing.
    """

    drawn: Pictures
    reference: Pictures
    own: Callable[[], PictureSet]
    enlarged: Mapping[str, Enlarged]
    stage: Callable[[], Stage]


class Metric(ABC):
    """Measures a point of sampling, once. ``device`` is where its networks are run.

    ``by_prompt``: its ``values`` are one for each picture drawn, and can be told kind by kind. ``of_sampling``: its
    figures depend on how pictures are drawn, not on the trained stage alone.
    """

    device: torch.device = torch.device("cpu")
    by_prompt = False
    of_sampling = True

    @abstractmethod
    def measure(self, subject: Subject) -> dict[str, float]:
        """The figures by name. Raises: UserError where there are too few pictures, or weights are missing."""

    @abstractmethod
    def directions(self) -> dict[str, Direction]:
        """Which way figures are better, once measured; none of what is neither (p-values, shuffled controls)."""

    def depends(self, subject: Subject) -> dict[str, Any]:
        """What of the subject, beside its pictures and reference, decides the figures: plain, to be held against."""
        return {}

    def values(self) -> dict[str, Float[Tensor, " _"]]:
        """What figures of these names are means of, NaN where nothing was to be measured; for paired comparisons."""
        return {}

    def counts(self) -> dict[str, int]:
        """How many pictures are behind a figure, where that is not all that were drawn."""
        return {name: int((~values.isnan()).sum()) for name, values in self.values().items()}

    def provenance(self) -> dict[str, str | int | float]:
        """What else decides the figures: the extractor, the hash of its weights, the resize, seeds."""
        return {}


class PictureMetric(Metric):
    """Measures pictures that were drawn, ``drawn``, against real ones, ``reference``.

    A caption may have several pictures in either.
    """

    def measure(self, subject: Subject) -> dict[str, float]:
        return self(subject.drawn, subject.reference)

    @abstractmethod
    def __call__(self, drawn: Pictures, reference: Pictures) -> dict[str, float]:
        """The figures by name. Raises: UserError where there are too few pictures, or weights are missing."""


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
