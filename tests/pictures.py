"""Small pictures of a user's own, for the tests of tasks."""

import numpy as np
from PIL import Image


def picture(width: int, height: int) -> Image.Image:
    """Every pixel of its own colour."""
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def half_mask(width: int, height: int) -> Image.Image:
    """White, i.e. to be painted, in the right half."""
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[:, width // 2 :] = 255
    return Image.fromarray(mask)
