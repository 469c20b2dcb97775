"""How packed pictures are stored."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from imagen.errors import UserError
from imagen.prep.unfit import Unfit

# colour at full resolution (4:4:4): halved, as is JPEG's custom, the chroma of a picture of 64 pixels is one of 32
FORMATS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "jpg": ("jpg", "JPEG", {"subsampling": "4:4:4"}),
    "webp": ("webp", "WEBP", {}),
    "webp-lossless": ("webp", "WEBP", {"lossless": True}),
    "png": ("png", "PNG", {}),
}
"""Of each ``format`` the suffix, Pillow's name, and what Pillow is told beside the quality."""


@dataclass(frozen=True)
class Codec:
    """``quality`` is Pillow's, 1 to 100; formats without loss do not look at it (lossless WebP: how hard it tries)."""

    format: str
    quality: int

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UserError(f"format={self.format} must be one of {', '.join(FORMATS)}")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality={self.quality} must be between 1 and 100")

    @property
    def suffix(self) -> str:
        """How the member of a tar ends."""
        return FORMATS[self.format][0]

    def encode(self, picture: UInt8[np.ndarray, "_ _ 3"]) -> bytes:
        """The picture's bytes. Unfit where the format cannot hold it: WebP ends at 16,383 pixels, JPEG at 65,500."""
        _, kind, options = FORMATS[self.format]
        buffer = io.BytesIO()
        try:
            Image.fromarray(picture).save(buffer, kind, quality=self.quality, **options)
        except (OSError, ValueError) as error:
            height, width = picture.shape[:2]
            raise Unfit("cannot be encoded", f"{width} x {height} as {self.format}: {error}") from error
        return buffer.getvalue()
