"""The size of the last pictures fixes that of every stage's; which sizes a cascade can draw at all."""

import math
from collections.abc import Sequence

from imagen.errors import UserError

Size = tuple[int, int]
"""Height and width in pixels."""


def stage_sizes(size: int | Sequence[int] | None, resolutions: Sequence[int], strides: Sequence[int]) -> list[Size]:
    """Each stage's (height, width), when the last is to draw ``size``; their own square resolutions where it is None.

    ``resolutions``, each a multiple of the one before, only say how the stages' sizes relate. A stage's sides must be
    multiples of its entry of ``strides``. Raises: UserError with the nearest sizes that work, if ``size`` does not.
    """
    if size is None:
        return [(resolution, resolution) for resolution in resolutions]
    sides = list(size) if isinstance(size, Sequence) else [size, size]
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise UserError(f"size={size} must be [height,width] in pixels, or one number for both")
    last = resolutions[-1]
    unit = math.lcm(*(stride * (last // own) for own, stride in zip(resolutions, strides, strict=True)))
    if any(side % unit for side in sides):
        nearest = [[max(unit, step(side / unit) * unit) for side in sides] for step in (math.floor, math.ceil)]
        asked, below, above = ("[{},{}]".format(*pair) for pair in (sides, *nearest))
        raise UserError(
            f"size={asked} does not suit these stages, which draw sides that are multiples of {unit} pixels: "
            f"size={below} or size={above} would do"
        )
    height, width = sides
    return [(height * own // last, width * own // last) for own in resolutions]
