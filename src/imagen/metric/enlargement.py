"""What a super-resolution stage does to what it is given: nearness to the truth, and faithfulness to its input."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from imagen.data.pixels import downsample


def psnr(drawn: UInt8[Tensor, "n 3 h w"], real: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    """Peak signal-to-noise ratio of each picture in dB, over all its pixels and channels; infinite where equal."""
    error = (drawn.double() - real.double()).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(255.0**2 / error)


def consistency(drawn: UInt8[Tensor, "n 3 h w"], given: UInt8[Tensor, "n 3 h2 w2"], scale: int) -> Float[Tensor, " n"]:
    """Root mean square difference between the drawn picture made small again and what it was given, in [0, 1]."""
    small = downsample(drawn.float() / 255, scale)
    return (small - given.float() / 255).square().flatten(1).mean(dim=1).sqrt()


def colour_drift(drawn: UInt8[Tensor, "n 3 h w"], given: UInt8[Tensor, "n 3 h2 w2"]) -> Float[Tensor, " n"]:
    """How far the mean colour moved, as the largest of the three channels' shifts, in [0, 1]."""
    means = [pictures.double().mean(dim=(2, 3)) / 255 for pictures in (drawn, given)]
    return (means[0] - means[1]).abs().amax(dim=1)
