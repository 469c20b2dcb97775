"""Small pictures, for the tests of tasks and metrics."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def picture(width: int, height: int) -> Image.Image:
    """Every pixel of its own colour."""
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def half_mask(width: int, height: int) -> Image.Image:
    """White, i.e. to be painted, in the right half."""
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[:, width // 2 :] = 255
    return Image.fromarray(mask)


def random_pictures(count: int, side: int) -> Tensor:
    """[count 3 side side] of uint8, the same every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def resized_by_pillow(images: Tensor, side: int) -> Tensor:
    """[b 3 side side] in [0, 1] of bytes [b 3 h w]: Pillow's bicubic filter in floats, cut off where it overshoots."""
    channels = [Image.fromarray(channel.numpy()) for channel in (images.float() / 255).flatten(0, 1)]
    small = [np.array(channel.resize((side, side), Image.Resampling.BICUBIC)) for channel in channels]
    return torch.from_numpy(np.stack(small)).unflatten(0, images.shape[:2]).clamp(0, 1)


def of_one_colour(count: int, side: int = 4, start: int = 0) -> Tensor:
    """[count 3 side side] of uint8: picture i has the value ``start + i`` everywhere."""
    return torch.arange(start, start + count, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, side, side)
