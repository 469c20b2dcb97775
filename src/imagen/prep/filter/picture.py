"""One picture from the web: opened with care, put right where that can be done, and measured."""

import io
from dataclasses import dataclass

import imagehash
import numpy as np
from PIL import Image

from imagen.data.pixels import MAX_PIXELS, over_white, upright_turn

# a still GIF has no suffix of its own among the shards' and becomes a PNG
_SUFFIXES = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "WEBP": "webp", "GIF": "png"}
_MOVING = ("PNG", "WEBP", "GIF")  # a telephone's JPEG of several pictures has but one that counts
_PNG_DEPTH = 24  # where in a PNG its bits a channel stand
_QUARTER_TURNS = [getattr(Image.Transpose, name) for name in ("ROTATE_90", "ROTATE_270", "TRANSPOSE", "TRANSVERSE")]


class Unusable(ValueError):
    """A picture that cannot be used; the message is the reason that is counted."""


@dataclass(frozen=True)
class Opened:
    """A picture upright and in RGB over white; ``fixed`` if its bytes are otherwise, ``turned`` if by 90 degrees."""

    picture: Image.Image
    fixed: bool
    turned: bool
    suffix: str


def open_upright(data: bytes, orientation: str | None) -> Opened:
    """Decode a picture and put it right: EXIF orientation, palette, CMYK, grey and alpha.

    ``orientation`` is what the json says of the camera, used where the bytes have no tag. Raises: Unusable.
    """
    try:
        picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP", "GIF"))
        kind = picture.format or ""
        if picture.width * picture.height > MAX_PIXELS:
            raise Unusable("too large")
        if kind in _MOVING and getattr(picture, "is_animated", False):
            raise Unusable("animated")
        if picture.mode.startswith("I") or (kind == "PNG" and data[_PNG_DEPTH] == 16):
            raise Unusable("16-bit")
        turn = upright_turn(picture, orientation)
        picture.load()
    except Unusable:
        raise
    except Image.DecompressionBombError:
        raise Unusable("too large") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on bytes they did not expect
        raise Unusable("truncated" if "truncated" in str(error).lower() else "undecodable") from error
    white = over_white(picture)
    fixed = white is not picture or turn is not None or kind == "GIF"
    upright = white if turn is None else white.transpose(turn)
    return Opened(upright, fixed, turn in _QUARTER_TURNS, _SUFFIXES[kind])


def encode(opened: Opened, quality: int) -> bytes:
    """The picture as its suffix says, PNG without loss, and nothing beside the pixels."""
    picture, buffer = opened.picture.copy(), io.BytesIO()
    picture.info = {}  # a colour profile of CMYK, an orientation that is done
    if opened.suffix == "jpg":
        picture.save(buffer, "JPEG", quality=quality, subsampling=0)
    elif opened.suffix == "webp":
        picture.save(buffer, "WEBP", quality=quality)
    else:
        picture.save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class Looks:
    """What of a picture is written down: enough to find its copies, and to tell one colour throughout.

    ``phash`` is the 64-bit perceptual hash of its grey levels (imagehash's), as bytes that read like its hex;
    ``colours`` the mean RGB of its four quarters; ``spread`` the standard deviation of its liveliest channel, 0 to 128.
    """

    phash: bytes
    colours: bytes
    spread: float


def looks(picture: Image.Image) -> Looks:
    """Measure an RGB picture."""
    bits = imagehash.phash(picture).hash
    quarters = picture.resize((2, 2), Image.Resampling.BOX)
    return Looks(np.packbits(bits).tobytes(), quarters.tobytes(), spread(picture))


def spread(picture: Image.Image) -> float:
    """The largest standard deviation of any channel's levels."""
    counts = np.array(picture.histogram(), dtype=np.float64).reshape(3, 256)
    levels, total = np.arange(256.0), counts.sum(1)
    means = counts @ levels / total
    return float(np.sqrt(np.maximum(0, counts @ levels**2 / total - means**2)).max())
