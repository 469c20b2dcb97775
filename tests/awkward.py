"""Pictures as the web has them: good ones that packages ship, and every kind that breaks a reader.

``rows`` is the table: what is downloaded, under which caption and scores; ``write`` makes the folder to serve.
"""

import importlib.util
import io
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROTATED_90_CW = 6  # EXIF orientation: the pixels must be turned clockwise to stand upright
SCORES = {
    "NSFW": "UNLIKELY",
    "similarity": 0.33,
    "LICENSE": "?",
    "punsafe": 0.01,
    "pwatermark": 0.1,
    "aesthetic": 5.5,
    "LANGUAGE": "en",
}
PHOTOGRAPHS = {  # those of scikit-image's wheel
    "astronaut.png": "an astronaut in an orange suit smiles in front of a flag and a model of the shuttle",
    "brick.png": "a wall of bricks in grey",
    "camera.png": "a man with a camera on a tripod, in black and white",
    "chelsea.png": "the face of a ginger tabby cat",
    "coffee.png": "a cup of espresso with a spoon on a wooden table",
    "coins.png": "old coins in rows on a dark ground",
    "grass.png": "blades of grass in grey",
    "gravel.png": "gravel seen from above",
    "hubble_deep_field.jpg": "hundreds of galaxies in the Hubble deep field",
    "ihc.png": "stained tissue under a microscope",
    "moon.png": "the surface of the moon with a crater",
    "motorcycle_left.png": "a motorcycle in a cluttered garage",
    "retina.jpg": "the retina of an eye with its blood vessels",
    "rocket.jpg": "a rocket on its launch pad at night",
}
SCIKIT_LEARN = {"china.jpg": "the roofs of a Chinese temple", "flower.jpg": "a red dahlia in bloom"}


@dataclass(frozen=True)
class Row:
    """One row of a list of URLs; ``content=None`` is a URL that the server answers with 404."""

    file: str
    content: bytes | None
    caption: str | None
    scores: dict[str, Any] = field(default_factory=dict)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def scene(width: int, height: int, seed: int) -> Image.Image:
    """A smooth picture of its own for every seed."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)


def upright() -> dict[str, Image.Image]:
    """What the pictures of a camera held sideways must look like in the end, by file."""
    sizes = {
        "turned.jpg": (600, 900),
        "turned-small.jpg": (400, 560),
        "turned.png": (400, 560),
        "turned.webp": (400, 560),
    }
    return {file: scene(*size, seed=20 + i) for i, (file, size) in enumerate(sizes.items())}


def turned(picture: Image.Image, kind: str) -> bytes:
    """``picture`` as a camera held sideways stores it: lying, with the orientation that puts it upright."""
    exif = Image.Exif()
    exif[0x0112] = ROTATED_90_CW
    return encoded(picture.transpose(Image.Transpose.ROTATE_90), kind, exif=exif.tobytes())


def animated(kind: str, seed: int) -> bytes:
    first, *others = [scene(360, 320, seed + i) for i in range(3)]
    return encoded(first, kind, save_all=True, append_images=others, duration=100)


def huge_png(side: int) -> bytes:
    """``side`` x ``side`` pixels in 20 x 20 black and white blocks and few kB, made without holding the pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    blocks = np.random.default_rng(side).integers(0, 2, (20, 20), dtype=np.uint8).repeat(side // 20, axis=1)
    lines, packer = [b"\0" + line.tobytes() for line in np.packbits(blocks, axis=1)], zlib.compressobj(9)
    pixels = b"".join(packer.compress(line) for line in lines for _ in range(side // 20)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def photographs(scikit_image: Path) -> list[Row]:
    """``scikit_image`` is its folder of data; scikit-learn's is found without importing it."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    scikit_learn = Path(spec.origin).parent / "datasets" / "images"
    rows = [Row(file, (scikit_image / file).read_bytes(), caption) for file, caption in PHOTOGRAPHS.items()]
    return rows + [Row(file, (scikit_learn / file).read_bytes(), caption) for file, caption in SCIKIT_LEARN.items()]


def drawings(count: int) -> list[Row]:
    """OpenMoji at 320 to 640 pixels."""
    from imagen.prep import openmoji

    sizes = [320, 384, 512, 640]
    return [
        Row(f"{one.hexcode}.png", encoded(openmoji.draw(one.svg, sizes[i % 4]), "PNG"), one.captions[0])
        for i, one in enumerate(openmoji.catalogue(skin_tones=False, limit=count))
    ]


def formats() -> list[Row]:
    """Pictures that decode, but not to eight bits of upright RGB, or at no useful size."""
    depth = np.asarray(scene(700, 520, 1).convert("L"), dtype=np.uint16) * 256
    fading, grey_fading = scene(700, 520, 2).convert("RGBA"), scene(700, 520, 3).convert("LA")
    for picture in (fading, grey_fading):  # transparent at the top, whole at the bottom
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    stand = upright()
    table = {
        "turned.jpg": (turned(stand["turned.jpg"], "JPEG"), "a camera held sideways"),
        "turned-small.jpg": (turned(stand["turned-small.jpg"], "JPEG"), "a small picture from a camera held sideways"),
        "turned.png": (turned(stand["turned.png"], "PNG"), "a PNG from a camera held sideways"),
        "turned.webp": (turned(stand["turned.webp"], "WEBP"), "a WebP from a camera held sideways"),
        "grey.jpg": (encoded(scene(640, 480, 6).convert("L"), "JPEG"), "a grey JPEG"),
        "one-bit.png": (encoded(scene(640, 480, 7).convert("1"), "PNG"), "a PNG of one bit"),
        "sixteen-bit.png": (encoded(Image.fromarray(depth), "PNG"), "a grey PNG of sixteen bits"),
        "cmyk.jpg": (encoded(scene(640, 480, 8).convert("CMYK"), "JPEG"), "a CMYK JPEG for print"),
        "rgba.png": (encoded(fading, "PNG"), "a picture that fades into nothing"),
        "la.png": (encoded(grey_fading, "PNG"), "a grey picture that fades into nothing"),
        "palette.png": (
            encoded(scene(480, 400, 4).quantize(16), "PNG", transparency=0),
            "a palette with a transparent colour",
        ),
        "still.gif": (encoded(scene(640, 480, 9).quantize(128), "GIF"), "a still GIF"),
        "animated.gif": (animated("GIF", 30), "an animated GIF"),
        "still.webp": (encoded(scene(640, 480, 10), "WEBP"), "a still WebP"),
        "animated.webp": (animated("WEBP", 33), "an animated WebP"),
        "animated.png": (animated("PNG", 36), "an animated PNG"),
        "huge-9000.png": (huge_png(9000), "81 million pixels in a few kilobytes"),
        "huge-16000.png": (huge_png(16000), "256 million pixels in a few kilobytes"),
        "banner.jpg": (encoded(scene(3000, 20, 14), "JPEG"), "a banner of 3000 x 20"),
        "thumbnail.jpg": (encoded(scene(40, 30, 15), "JPEG"), "a thumbnail of 40 x 30"),
        "pixel.gif": (encoded(Image.new("L", (1, 1)), "GIF"), "a tracking pixel"),
        "constant.png": (encoded(Image.new("RGB", (512, 512), (200, 30, 30)), "PNG"), "one colour throughout"),
    }
    return [Row(file, content, caption) for file, (content, caption) in table.items()]


def captions_and_scores() -> list[Row]:
    """Good pictures with captions that are none or no use, and scores that are missing or bad."""
    captions = {
        "null": None,
        "empty": "",
        "blank": " \t ",
        "nul": "before\0after",
        "right-to-left": "תמונה של חוף הים בשקיעה",
        "long": "word " * 20_000,
        "newline": "the first line\nthe second line",
        "entities": "fish &amp; chips &lt;3",
        **{f"repeated-{i}": "Image not available" for i in range(6)},
    }
    scores: dict[str, dict[str, Any]] = {
        "punsafe-missing": {"punsafe": None},
        "punsafe-high": {"punsafe": 0.97},
        "nsfw": {"NSFW": "NSFW"},
        "similarity-low": {"similarity": 0.05},
        "aesthetic-low": {"aesthetic": 1.5},
        "watermark": {"pwatermark": 0.95},
        "german": {"LANGUAGE": "de"},
    }
    texts = [(name, caption, {}) for name, caption in captions.items()]
    judged = [(name, f"a picture to judge by {name}", changed) for name, changed in scores.items()]
    return [
        Row(f"{name}.jpg", encoded(scene(480, 400, 100 + i), "JPEG"), caption, changed)
        for i, (name, caption, changed) in enumerate([*texts, *judged])
    ]


def repeats(photos: list[Row]) -> list[Row]:
    """A URL met twice, the same bytes under another URL, and a picture scaled and encoded anew."""
    by_name = {row.file: row for row in photos}
    rocket, cat, coffee = (by_name[file].content for file in ("rocket.jpg", "chelsea.png", "coffee.png"))
    assert cat is not None
    smaller = Image.open(io.BytesIO(cat)).resize((400, 266))
    return [
        Row("coffee.png", coffee, "the same address once more"),
        Row("rocket-copy.jpg", rocket, "the same rocket elsewhere"),
        Row("chelsea-small.jpg", encoded(smaller, "JPEG", quality=60), "the same cat, smaller and of less quality"),
    ]


def lost() -> list[Row]:
    """What img2dataset keeps nothing of."""
    whole = encoded(scene(640, 480, 200), "JPEG")
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="400" height="400"><circle r="200"/></svg>'
    return [
        Row("truncated.jpg", whole[: len(whole) // 2], "half of a JPEG"),
        Row("page.jpg", b"<!DOCTYPE html><html><body>Not found</body></html>", "a page that says it is a picture"),
        Row("drawing.svg", svg, "an SVG"),
        Row("nothing.jpg", b"", "no bytes at all"),
        Row("gone.jpg", None, "a picture that is gone"),
    ]


def rows(scikit_image: Path, shard: int) -> list[Row]:
    """The table, mixed, drawings filling it up to whole shards; then a shard of which nothing is left.

    Of the lost rows two are met among the others too, so that the keys of the first shard have gaps.
    """
    photos = photographs(scikit_image)
    others = [*photos, *formats(), *captions_and_scores(), *repeats(photos), *lost()[:2]]
    full = -(-(len(others) + 40) // shard) * shard
    mixed = [*others, *drawings(full - len(others))]
    order = np.random.default_rng(0).permutation(len(mixed))
    return [*(mixed[i] for i in order), *lost()]


def write(folder: Path, table: list[Row]) -> None:
    """The files of ``table`` in ``folder``."""
    for row in table:
        if row.content is not None:
            (folder / row.file).write_bytes(row.content)
