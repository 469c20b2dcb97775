"""A user's own picture or mask: opened safely, cut to a shape, shrunk or enlarged to each stage's size."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageOps
from torch import Tensor

from imagen.data.pixels import open_picture, over_white, to_float
from imagen.errors import UserError

Source = str | Path | Image.Image
"""A picture of the user's: a PNG, JPEG or WebP file, or one that is open already."""


def open_user_picture(argument: str, source: Source | None) -> Image.Image:
    """RGB, upright by its EXIF tag, over white where transparent; ``argument`` is the name that errors give it.

    Raises: UserError if there is none, or it is no picture of use.
    """
    if source is None:
        raise UserError(f"{argument} is missing; give a PNG, JPEG or WebP as {argument}=...")
    if isinstance(source, Image.Image):
        return over_white(ImageOps.exif_transpose(source))
    path = Path(source).expanduser()
    try:
        return open_picture(path.read_bytes())
    except OSError as error:
        raise UserError(f"{argument}={source} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{argument}={source} is of no use: {error}; give a PNG, JPEG or WebP") from error


def picture_at(picture: Image.Image, height: int, width: int) -> Float[Tensor, "1 3 {height} {width}"]:
    """The largest part of that shape out of the middle, antialiased to that size, in [-1, 1].

    Whole factors are plain block means, as in the training of a super-resolution stage.
    """
    box = _middle(picture, height, width)
    factor = (box[2] - box[0]) / width
    if factor == int(factor):
        left, top, right, bottom = map(int, box)
        sized = picture.reduce(int(factor), (left, top, right, bottom))
    else:
        kind = Image.Resampling.HAMMING if factor > 1 else Image.Resampling.BICUBIC
        sized = picture.resize((width, height), kind, box)
    return to_float(torch.from_numpy(np.array(sized)).permute(2, 0, 1)[None])


def mask_at(mask: Image.Image, height: int, width: int) -> Bool[Tensor, "1 1 {height} {width}"]:
    """True where any part of a pixel is white, i.e. to be painted: a pixel is known only where all of it is."""
    white = mask.convert("L").point([0] * 128 + [255] * 128).convert("F")
    share = white.resize((width, height), Image.Resampling.BOX, _middle(mask, height, width))
    return torch.from_numpy(np.array(share))[None, None] > 0


def _middle(picture: Image.Image, height: int, width: int) -> tuple[float, float, float, float]:
    """The largest box of the shape ``height`` : ``width`` in the middle: left, top, right, bottom.

    Left and top are whole pixels, so that a whole factor needs no resampling of fractions of them.
    """
    if picture.width * height <= picture.height * width:
        wide, high = float(picture.width), picture.width * height / width
    else:
        wide, high = picture.height * width / height, float(picture.height)
    left, top = (picture.width - wide) // 2, (picture.height - high) // 2
    return left, top, left + wide, top + high
