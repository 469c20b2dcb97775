"""Images and captions -> one labelled picture.

A column is one prompt, a row one stage (or one guidance weight, one sampler, ...). A wide sheet is folded into bands of
``columns_per_band`` columns, one under the other, each with its captions on top and its row labels on the left.
"""

import math
import unicodedata

from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from imagen.errors import UserError
from imagen.files import Location, atomic_write

Row = list[UInt8[Tensor, "3 _ _"]]  # 3 h w; each row may have its own size
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_GAP, _MARGIN, _BAND_GAP = 6, 12, 14  # pixels: between pictures, round the sheet, between bands
_MAX_LINES, _LINE_SPACING = 4, 1.3  # of a caption; in font sizes
_PAPER, _INK, _FAINT = "white", (20, 20, 20), (110, 110, 110)


def image_grid(
    rows: list[Row],
    captions: list[str],
    row_labels: list[str] | None = None,
    *,
    cell: int = 128,
    columns_per_band: int = 8,
    font_size: int = 13,
    title: str = "",
) -> Image.Image:
    """Draw the pictures of every row under the caption of their column, each scaled to fit ``cell`` by ``cell`` pixels.

    Enlarged pictures keep their pixels as squares (nearest), so that a low-resolution row shows what it is; shrunk ones
    are averaged. ``row_labels`` stand at the left, one a row, and ``title`` above all; none are drawn if left out.

    Raises: UserError if there is nothing to draw, or pictures, captions and labels do not match in number.
    """
    labels = row_labels if row_labels is not None else [""] * len(rows)
    _check(rows, captions, labels)
    font = ImageFont.load_default(font_size)
    columns_per_band = min(columns_per_band, len(captions))
    bands = []
    for start in range(0, len(captions), columns_per_band):
        columns = slice(start, start + columns_per_band)
        bands.append(_band([row[columns] for row in rows], captions[columns], labels, cell, font, font_size))
    width, line_height = max(band.width for band in bands), round(font_size * _LINE_SPACING)
    titles = wrap(_drawable(title), font, width) if title else []
    top = _MARGIN + len(titles) * line_height + (_GAP if titles else 0)
    height = top + sum(band.height + _BAND_GAP for band in bands) - _BAND_GAP + _MARGIN
    sheet = Image.new("RGB", (width + 2 * _MARGIN, height), _PAPER)
    for i, line in enumerate(titles):
        ImageDraw.Draw(sheet).text((_MARGIN, _MARGIN + i * line_height), line, fill=_FAINT, font=font)
    for band in bands:
        sheet.paste(band, (_MARGIN, top))
        top += band.height + _BAND_GAP
    return sheet


def save_png(image: Image.Image, path: str | Location) -> None:
    """Write a PNG, whole or not at all; folders on the way are made."""
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG", optimize=True)


def to_pil(image: UInt8[Tensor, "3 h w"]) -> Image.Image:
    """A uint8 picture as PIL's."""
    return Image.fromarray(image.cpu().permute(1, 2, 0).contiguous().numpy())


def wrap(text: str, font: Font, width: int) -> list[str]:
    """Cut ``text`` into lines at most ``width`` pixels wide: at spaces; within a word only if it is too long by itself.

    At most four lines; what is left out is marked by an ellipsis.
    """
    lines = [""]
    for word in text[: _MAX_LINES * width + 1].split():  # no more has room, and fonts refuse a million letters
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) > _MAX_LINES:
        last = lines[_MAX_LINES - 1]
        while last and font.getlength(f"{last}...") > width:
            last = last[:-1]
        lines = [*lines[: _MAX_LINES - 1], f"{last}..."]
    return lines


def _check(rows: list[Row], captions: list[str], labels: list[str]) -> None:
    if not rows or not captions:
        raise UserError(f"an image grid needs pictures: got {len(rows)} rows and {len(captions)} captions")
    for i, row in enumerate(rows):
        if len(row) != len(captions):
            raise UserError(
                f"rows[{i}] has {len(row)} pictures, but there are {len(captions)} captions: one is needed for each"
            )
    if len(labels) != len(rows):
        raise UserError(f"row_labels has {len(labels)} entries, but there are {len(rows)} rows: one is needed for each")


def _band(
    rows: list[Row], captions: list[str], labels: list[str], cell: int, font: Font, font_size: int
) -> Image.Image:
    labels = [_drawable(label) for label in labels]
    left = max(math.ceil(font.getlength(label)) for label in labels)
    left += _GAP if left else 0
    line_height = round(font_size * _LINE_SPACING)
    wrapped = [wrap(_drawable(caption), font, cell) for caption in captions]
    top = max(map(len, wrapped)) * line_height + _GAP // 2
    step = cell + _GAP
    fitted = [[_fit(to_pil(image), cell) for image in row] for row in rows]
    heights = [max(picture.height for picture in row) for row in fitted]  # of wide pictures less than a cell
    band = Image.new("RGB", (left + len(captions) * step - _GAP, top + sum(heights) + _GAP * (len(rows) - 1)), _PAPER)
    draw = ImageDraw.Draw(band)
    for c, lines in enumerate(wrapped):
        for i, line in enumerate(reversed(lines)):  # captions stand on their pictures
            draw.text((left + c * step, top - _GAP // 2 - (i + 1) * line_height), line, fill=_INK, font=font)
    for row, height, label in zip(fitted, heights, labels, strict=True):
        draw.text((left - _GAP, top + height // 2), label, fill=_FAINT, font=font, anchor="rm")
        for c, picture in enumerate(row):
            centred = (left + c * step + (cell - picture.width) // 2, top + (height - picture.height) // 2)
            band.paste(picture, centred)
        top += height + _GAP
    return band


def _fit(picture: Image.Image, cell: int) -> Image.Image:
    scale = cell / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX)


def _drawable(text: str) -> str:
    # The built-in font has hardly more than ASCII: take the accents off what has them. Other scripts come out as boxes,
    # one a letter, which is still a caption of the right length.
    text = text.replace("–", "-").replace("—", "-").replace("×", "x")
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
