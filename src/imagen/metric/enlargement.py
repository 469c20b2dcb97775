"""What a super-resolution stage does to what it is given: nearness to the truth, and faithfulness to its input.

Each is told of every kind of low-resolution picture that was enlarged: ``<name>_real`` of real pictures made small,
``<name>_samples`` of what the stage before drew. No real picture is behind a sample, so what compares with the truth
has no figure there.
"""

from abc import abstractmethod

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from imagen.data.pixels import downsample
from imagen.errors import UserError
from imagen.metric.base import Direction, Metric, Subject
from imagen.metric.pictures import Pictures
from imagen.ranges import Count

ROUNDING = 1 / 12
"""The mean square error of rounding to whole bytes: a step is 1, and the error even between -1/2 and 1/2."""


class EnlargementMetric(Metric):
    """The mean over pictures of ``of_batch``, under ``name`` and the kind of what was enlarged."""

    name: str
    better: Direction = "lower"
    resize = "none"
    needs_truth = False

    def __init__(self, *, batch_size: Count) -> None:
        self.batch_size = batch_size
        self._values: dict[str, Float[Tensor, " _"]] = {}

    @abstractmethod
    def of_batch(self, drawn: UInt8[Tensor, "n 3 h w"], other: UInt8[Tensor, "n 3 h2 w2"]) -> Float[Tensor, " n"]:
        """One value a picture drawn; ``other`` is the truth where ``needs_truth``, else what was given."""

    @torch.inference_mode()
    def measure(self, subject: Subject) -> dict[str, float]:
        """Raises: UserError if no super-resolution stage is measured, or none on pictures that have a truth."""
        if not subject.enlarged:
            raise UserError(
                f"{self.name} is of what a super-resolution stage makes of its input, and the last stage measured is a "
                "base stage: give depth=2"
            )
        other = {kind: one.truth if self.needs_truth else one.given for kind, one in subject.enlarged.items()}
        pairs = {kind: (subject.enlarged[kind].drawn, real) for kind, real in other.items() if real is not None}
        if not pairs:
            raise UserError(
                f"{self.name} needs a real picture behind what is enlarged: give lowres=real or lowres=both"
            )
        self._values = {f"{self.name}_{kind}": self._of(*pair) for kind, pair in pairs.items()}
        return {name: values.mean().item() for name, values in self._values.items()}

    def values(self) -> dict[str, Float[Tensor, " _"]]:
        return self._values

    def directions(self) -> dict[str, Direction]:
        return dict.fromkeys(self._values, self.better)

    def provenance(self) -> dict[str, str | int | float]:
        return {"resize": self.resize}

    def _of(self, drawn: Pictures, other: Pictures) -> Float[Tensor, " _"]:
        batches = zip(drawn.batches(self.batch_size), other.batches(self.batch_size), strict=True)
        return torch.cat([self.of_batch(a.to(self.device), b.to(self.device)).double().cpu() for a, b in batches])


class PSNR(EnlargementMetric):
    """``psnr``: peak signal-to-noise ratio to the real picture in dB, the mean of the pictures' own."""

    name = "psnr"
    better = "higher"
    needs_truth = True

    def of_batch(self, drawn: UInt8[Tensor, "n 3 h w"], other: UInt8[Tensor, "n 3 h2 w2"]) -> Float[Tensor, " n"]:
        return psnr(drawn, other)


class Consistency(EnlargementMetric):
    """``consistency``: how far the drawn picture, made small again, is from what was given; 0 is faithful."""

    name = "consistency"
    resize = "block means to the size given"

    def of_batch(self, drawn: UInt8[Tensor, "n 3 h w"], other: UInt8[Tensor, "n 3 h2 w2"]) -> Float[Tensor, " n"]:
        return consistency(drawn, other, drawn.shape[-1] // other.shape[-1])


class ColourDrift(EnlargementMetric):
    """``colour_drift``: how far the mean colour moved from what was given; 0 is faithful."""

    name = "colour_drift"

    def of_batch(self, drawn: UInt8[Tensor, "n 3 h w"], other: UInt8[Tensor, "n 3 h2 w2"]) -> Float[Tensor, " n"]:
        return colour_drift(drawn, other)


def psnr(drawn: UInt8[Tensor, "n 3 h w"], real: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    """Peak signal-to-noise ratio of each picture in dB, over all its pixels and channels; 58.9 where equal.

    The real picture is itself known only to the nearest byte: no error counts as less than rounding's own mean square.
    """
    error = (drawn.double() - real.double()).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(255.0**2 / error.clamp(min=ROUNDING))


def consistency(drawn: UInt8[Tensor, "n 3 h w"], given: UInt8[Tensor, "n 3 h2 w2"], scale: int) -> Float[Tensor, " n"]:
    """Root mean square difference between the drawn picture made small again and what it was given, in [0, 1]."""
    small = downsample(drawn.float() / 255, scale)
    return (small - given.float() / 255).square().flatten(1).mean(dim=1).sqrt()


def colour_drift(drawn: UInt8[Tensor, "n 3 h w"], given: UInt8[Tensor, "n 3 h2 w2"]) -> Float[Tensor, " n"]:
    """How far the mean colour moved, as the largest of the three channels' shifts, in [0, 1]."""
    means = [pictures.double().mean(dim=(2, 3)) / 255 for pictures in (drawn, given)]
    return (means[0] - means[1]).abs().amax(dim=1)
