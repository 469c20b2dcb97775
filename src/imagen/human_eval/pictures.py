"""Pictures of ``sample.py`` or ``evaluate.py`` into files whose names and contents do not say which model drew them."""

import hashlib
import io
import json
import random
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from imagen.errors import UserError
from imagen.files import atomic_write

TILES = 8  # a side, of a spoilt picture


def listed(folder: Path, argument: str) -> dict[str, list[Path]]:
    """Of each prompt in a folder's ``samples.json`` its pictures, in the order of their sample numbers.

    Raises: UserError where there is no such list, or it is not one.
    """
    try:
        listing = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
        entries = [(str(one["prompt"]), int(one["sample"]), str(one["file"])) for one in listing["pictures"]]
    except OSError as error:
        raise UserError(f"{argument}={folder} has no samples.json: give one of sample.py or evaluate.py") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{argument}={folder}: samples.json is damaged ({error!r}): draw the pictures again") from error
    by_prompt: dict[str, dict[int, Path]] = {}
    for prompt, sample, file in entries:
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise UserError(f"{argument}={folder}: samples.json names {file}, which is not in the folder: draw again")
        by_prompt.setdefault(prompt, {})[sample] = folder / file
    return {prompt: [files[sample] for sample in sorted(files)] for prompt, files in by_prompt.items()}


def read(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """A picture's pixels. Raises: ValueError where there is no picture."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f"{path} is no picture that can be read") from error


def spoil(picture: UInt8[np.ndarray, "h w 3"], seed: str) -> UInt8[np.ndarray, "h w 3"]:
    """The picture with its tiles shuffled: its colours and textures stay, what it shows does not."""
    height, width, _ = picture.shape
    rows, columns = (-(-length // TILES) for length in (height, width))
    order = random.Random(seed).sample(range(TILES**2), TILES**2)
    whole = np.pad(picture, ((0, rows * TILES - height), (0, columns * TILES - width), (0, 0)), mode="edge")
    tiles = whole.reshape(TILES, rows, TILES, columns, 3).swapaxes(1, 2).reshape(TILES**2, rows, columns, 3)[order]
    shuffled = tiles.reshape(TILES, TILES, rows, columns, 3).swapaxes(1, 2).reshape(whole.shape)
    return np.ascontiguousarray(shuffled[:height, :width])


def write(picture: UInt8[np.ndarray, "h w 3"], folder: Path) -> str:
    """Write a PNG without any metadata, named by the hash of what is in it; its name."""
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "PNG")
    name = f"{hashlib.sha256(content.getvalue()).hexdigest()[:20]}.png"
    if not (folder / name).exists():
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(content.getbuffer())
    return name
