"""Aspect-ratio buckets: a few shapes of about one area, of which each picture takes the nearest.

As in NovelAI's training and SDXL (Podell et al. 2023, appendix I). Shapes are given at the smallest size, where their
sides are multiples of the network's stride; at a larger size every side is larger by the same whole factor.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from imagen.errors import UserError

Shape = tuple[int, int]
"""(height, width) in pixels."""


def of_ratios(ratios: Sequence[float], size: int, stride: int) -> list[Shape]:
    """For each ratio of width to height the shape nearest to it of about ``size`` squared pixels; widest last."""
    return _sorted(
        (_nearest_side(size / math.sqrt(ratio), stride), _nearest_side(size * math.sqrt(ratio), stride))
        for ratio in ratios
    )


def up_to(largest: float, size: int, stride: int) -> list[Shape]:
    """Every shape of about ``size`` squared pixels of which no side is over ``largest`` times the other."""
    shapes = set()
    for short in range(stride, size + 1, stride):
        long = _nearest_side(size * size / short, stride)
        if long <= largest * short:
            shapes |= {(short, long), (long, short)}
    return _sorted(shapes)


def read(buckets: object, sizes: Sequence[int], stride: int) -> list[Shape]:
    """The shapes at the largest of ``sizes`` that the option ``buckets`` asks for; none for None.

    Raises: UserError for what is neither a number of at least 1 nor a list of ratios, and for sizes that do not fit.
    """
    if buckets is None:
        return []
    least, largest = min(sizes), max(sizes)
    if any(size % least for size in sizes) or stride < 1 or least % stride:
        raise UserError(
            f"sizes={list(sizes)} with bucket_stride={stride}: buckets need sizes that are whole multiples of the "
            "smallest, and the smallest to be one of the stride"
        )
    if isinstance(buckets, list) and buckets and all(_is_ratio(ratio) for ratio in buckets):
        shapes = of_ratios([float(ratio) for ratio in buckets], least, stride)
    elif isinstance(buckets, int | float) and _is_ratio(buckets) and buckets >= 1:
        shapes = up_to(float(buckets), least, stride)
    else:
        raise UserError(
            f"buckets={buckets} must be null, a list of ratios of width to height, [0.75,1,1.33], or one number of at "
            "least 1, the largest ratio of the longer side to the shorter"
        )
    return [(height * largest // least, width * largest // least) for height, width in shapes]


def nearest(shapes: Sequence[Shape], width: Int[np.ndarray, " n"], height: Int[np.ndarray, " n"]) -> np.ndarray:
    """For each picture the number of the shape whose ratio is nearest to its own, by the logarithm."""
    ratios = np.log([across / down for down, across in shapes])
    own = np.log(np.maximum(width, 1) / np.maximum(height, 1))
    middles = (ratios[1:] + ratios[:-1]) / 2  # the shapes are sorted
    return np.searchsorted(middles, own)


def _nearest_side(length: float, stride: int) -> int:
    return max(1, round(length / stride)) * stride


def _is_ratio(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _sorted(shapes: Iterable[Shape]) -> list[Shape]:
    """Each once, from the tallest to the widest; of one ratio the larger alone."""
    by_ratio = {shape[1] / shape[0]: shape for shape in sorted(shapes)}
    return [by_ratio[ratio] for ratio in sorted(by_ratio)]
