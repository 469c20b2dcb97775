"""All pixel arithmetic: opening pictures, cutting and shrinking them, and the way between bytes and [-1, 1]."""

import functools
import io
import json
import logging
from contextlib import suppress
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

MAX_PIXELS = 2**26
"""Pictures of more pixels (8192 x 8192) are refused before they are decoded: a 30 kB file can claim 256 megapixels."""

FORMATS = ("PNG", "JPEG", "WEBP")

# img2dataset drops the EXIF tag from the bytes and leaves the camera's words for it in the json; the tag's 2 to 8
_UPRIGHT = {
    "Mirrored horizontal": Image.Transpose.FLIP_LEFT_RIGHT,
    "Rotated 180": Image.Transpose.ROTATE_180,
    "Mirrored vertical": Image.Transpose.FLIP_TOP_BOTTOM,
    "Mirrored horizontal then rotated 90 CCW": Image.Transpose.TRANSPOSE,
    "Rotated 90 CW": Image.Transpose.ROTATE_270,
    "Mirrored horizontal then rotated 90 CW": Image.Transpose.TRANSVERSE,
    "Rotated 90 CCW": Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112
_BY_TAG = dict(enumerate(_UPRIGHT.values(), start=2))


def lies_sideways(orientation: str | None) -> bool:
    """Whether a picture of which the json says so has its width and height exchanged once it is upright."""
    return orientation in _UPRIGHT and "90" in orientation


def to_float(image: UInt8[Tensor, "*b 3 h w"]) -> Float[Tensor, "*b 3 h w"]:
    """0..255 to [-1, 1], float32."""
    return image.to(torch.float32) / 127.5 - 1


def to_uint8(image: Float[Tensor, "*b 3 h w"]) -> UInt8[Tensor, "*b 3 h w"]:
    """[-1, 1] to 0..255, rounded to nearest, clipped; undoes ``to_float`` exactly."""
    return ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def downsample(image: Float[Tensor, "b 3 h w"], factor: int) -> Float[Tensor, "b 3 h//{factor} w//{factor}"]:
    """Mean over ``factor`` x ``factor`` blocks: 256 -> 64 -> 16 equals 256 -> 16. ValueError if it does not divide."""
    if factor < 1 or image.shape[-1] % factor or image.shape[-2] % factor:
        raise ValueError(f"factor={factor} does not divide a picture of {image.shape[-2]} x {image.shape[-1]} pixels")
    return F.avg_pool2d(image, factor)


def open_picture(data: bytes, orientation: str | None = None, least: int | None = None) -> Image.Image:
    """Decode a PNG, JPEG or WebP: upright, over white where transparent, RGB.

    ``orientation`` is what the json says of the camera ("Rotated 90 CW"), used where the bytes carry no EXIF tag of
    their own. With ``least`` a JPEG may come shrunk by its codec, to no fewer pixels a side. ValueError says in a few
    words why a picture is of no use.
    """
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"picture of {picture.width} x {picture.height} pixels is too large")
        turn = upright_turn(picture, orientation)
        if least is not None:
            picture.draft("RGB", (least, least))
        picture.load()
    except ValueError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on bytes they did not expect
        raise ValueError(f"picture cannot be decoded ({type(error).__name__})") from error
    picture = over_white(picture)
    return picture if turn is None else picture.transpose(turn)


def upright_turn(picture: Image.Image, orientation: str | None) -> Image.Transpose | None:
    """What puts a picture upright, None if it stands: by its own EXIF tag, or where it has none by the json's words."""
    tag = picture.getexif().get(_ORIENTATION_TAG)
    if tag is None:
        return _UPRIGHT.get(orientation or "")
    return _BY_TAG.get(tag)


def orientation_in(info: bytes | None) -> str | None:
    """What a sample's json, as img2dataset writes it, says of the camera; None where it says nothing of use."""
    if info is None or b"Image Orientation" not in info:  # so it is rarely parsed
        return None
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        said = json.loads(json.loads(info)["exif"])["Image Orientation"]
        return said if isinstance(said, str) else None
    return None


def over_white(picture: Image.Image) -> Image.Image:
    """RGB; what is transparent becomes white, never the colour that happens to lie under it."""
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion saturates to white
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def square(
    picture: Image.Image, resolution: int, along: float = 0.5
) -> UInt8[np.ndarray, "{resolution} {resolution} 3"]:
    """``cover`` of a square of ``resolution`` pixels."""
    return cover(picture, resolution, resolution, along)


def cover(picture: Image.Image, height: int, width: int, along: float = 0.5) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Cut the largest part of that shape and shrink it, antialiased; pictures are never squashed or enlarged.

    ``along`` in [0, 1] says where in the picture it lies, 0.5 in the middle. Whole factors are plain block means, as
    in ``downsample``. ValueError if the picture is smaller.
    """
    if picture.width < width or picture.height < height:
        raise ValueError(f"picture of {picture.width} x {picture.height} is smaller than {_said(height, width)} pixels")
    left, top, right, bottom = box = _largest(picture.size, (width, height), along)
    if (right - left, bottom - top) == (width, height):
        return np.asarray(picture.crop(box))
    factor, rest = divmod(right - left, width)
    whole = not rest and (bottom - top) == factor * height
    return _averaged(picture, (width, height), factor if whole else None, box)


def shrink(picture: Image.Image, short_side: int) -> UInt8[np.ndarray, "h w 3"]:
    """All of a picture, its short side ``short_side`` pixels, its proportions as they were: neither cut nor squashed.

    The arithmetic is that of ``cover``; a whole factor that does not divide the long side leaves its last row or column
    the mean of what is left. ValueError if the picture is smaller.
    """
    side = min(picture.size)
    if side < short_side:
        raise ValueError(f"picture of {picture.width} x {picture.height} is smaller than {short_side} pixels")
    if side == short_side:
        return np.asarray(picture)
    width, height = (round(length * short_side / side) for length in picture.size)
    factor, rest = divmod(side, short_side)
    return _averaged(picture, (width, height), None if rest else factor, (0, 0, *picture.size))


def _averaged(
    picture: Image.Image, size: tuple[int, int], factor: int | None, box: tuple[int, int, int, int]
) -> UInt8[np.ndarray, "h w 3"]:
    """``box`` of a picture, shrunk by block means of a whole ``factor``, else to ``size`` (width, height)."""
    if factor is not None:
        return np.asarray(picture.reduce(factor, box))
    # a box filter of a fractional factor takes now one pixel, now two; Hamming is the nearest that does not
    return np.asarray(picture.resize(size, Image.Resampling.HAMMING, box))


def _said(height: int, width: int) -> str:
    return f"{width}" if height == width else f"{width} x {height}"


def _largest(size: tuple[int, int], wanted: tuple[int, int], along: float) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) of the largest part of a picture that has the proportions of ``wanted``."""
    (across, down), (width, height) = size, wanted
    if across * height <= down * width:
        part = (across, max(height, round(across * height / width)))
    else:
        part = (max(width, round(down * width / height)), down)
    left, top = (round((length - taken) * along) for length, taken in zip(size, part, strict=True))
    return left, top, left + part[0], top + part[1]


def open_window(
    data: bytes,
    shape: tuple[int, int],
    orientation: str | None,
    along: float,
    window: tuple[slice, slice],
) -> UInt8[np.ndarray, "h w 3"] | None:
    """What ``cover`` at ``shape`` (height, width) and then a cut to ``window`` would give, decoding no more than that.

    To the pixel the same, in a third of the time. None where it cannot be had so: of anything but an upright colour
    JPEG of exactly that size, or without the package pyvips.
    """
    (rows, columns), (height, width) = window, shape
    part = (rows.stop - rows.start, columns.stop - columns.start)
    if part == shape or orientation in _UPRIGHT or not data.startswith(b"\xff\xd8"):
        return None
    if (pyvips := _pyvips()) is None:
        return None
    try:
        picture = pyvips.Image.jpegload_buffer(data, access="sequential", fail_on="error")
        left, top, right, bottom = _largest((picture.width, picture.height), (width, height), along)
        turned = picture.get_typeof("orientation") and picture.get("orientation") != 1
        if (right - left, bottom - top) != (width, height) or picture.bands != 3 or turned:
            return None
        cut = picture.crop(left + columns.start, top + rows.start, part[1], part[0])
        return np.frombuffer(cut.write_to_memory(), np.uint8).reshape(*part, 3).copy()
    except pyvips.Error as error:
        raise ValueError("picture cannot be decoded (pyvips)") from error


@functools.cache
def _pyvips() -> Any:
    try:
        import pyvips
    except (ImportError, OSError):  # or its library is missing
        return None
    logging.getLogger("pyvips").setLevel(logging.WARNING)  # it tells of every thread pool
    pyvips.voperation.cache_set_max(0)  # no two samples have the same bytes
    return pyvips
