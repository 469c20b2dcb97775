"""The sheet: every picture and caption is in its place, whatever its size or script."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from imagen.errors import UserError
from imagen.image_grid import image_grid, save_png, to_pil, wrap


def plain(size: int, colour: tuple[int, int, int]) -> torch.Tensor:
    return torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, size, size)


def colours_in(sheet: Image.Image) -> dict[tuple[int, ...], int]:
    values, counts = np.unique(np.asarray(sheet).reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(map(int, v)): int(c) for v, c in zip(values, counts, strict=True)}


def test_a_title_stands_above_all_and_takes_room_of_its_own():
    rows = [[plain(4, (1, 2, 3))] * 3]
    without, titled = (image_grid(rows, ["a"] * 3, cell=40, title=title) for title in ("", "seed 0"))
    higher = titled.height - without.height
    assert higher > 13
    assert titled.width == without.width
    below = titled.crop((0, 12 + higher, titled.width, titled.height))
    assert below.tobytes() == without.crop((0, 12, without.width, without.height)).tobytes()
    many = image_grid(rows, ["a"] * 3, cell=40, title="trained with seed 0, drawn with seed 0")
    assert many.height > titled.height


def test_every_picture_of_every_row_is_drawn_once_at_cell_size():
    rows = [[plain(size, (10 * r, 200, i)) for i in range(11)] for r, size in enumerate([16, 64, 256], start=1)]
    sheet = image_grid(rows, [f"prompt {i}" for i in range(11)], ["16", "64", "256"], cell=32, columns_per_band=4)
    counts = colours_in(sheet)
    assert all(counts[10 * r, 200, i] == 32 * 32 for r in (1, 2, 3) for i in range(11))


def test_order_is_left_to_right_then_band_by_band():
    rows = [[plain(4, (250, 0, i)) for i in range(5)]]
    pixels = np.asarray(image_grid(rows, ["a"] * 5, cell=8, columns_per_band=2))
    first = [np.argwhere((pixels == (250, 0, i)).all(-1))[0] for i in range(5)]
    assert [tuple(p) for p in first] == sorted(tuple(p) for p in first)
    assert first[0][0] == first[1][0] < first[2][0] == first[3][0] < first[4][0]
    assert first[0][1] == first[2][1] == first[4][1] < first[1][1] == first[3][1]


def test_enlarging_keeps_pixels_square_and_shrinking_averages():
    checker = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8).expand(3, 2, 2)
    large = np.asarray(image_grid([[checker]], [""], cell=8))
    assert set(np.unique(large)) == {0, 255}
    small = colours_in(image_grid([[checker.repeat(1, 8, 8)]], [""], cell=8))
    assert max(small.get((127, 127, 127), 0), small.get((128, 128, 128), 0)) == 64


def test_a_picture_that_is_not_square_is_not_squashed():
    tall = torch.full((3, 20, 10), 77, dtype=torch.uint8)
    assert colours_in(image_grid([[tall]], ["tall"], cell=40))[77, 77, 77] == 40 * 20


@pytest.mark.parametrize(
    "caption", ["", "日本語のとても長い説明文" * 9, "שלום 🙂‍↔️", "São Tomé — “piñata”", "x" * 10**6, "a\udc80b\x00\n c"]
)
def test_no_caption_breaks_the_sheet_or_its_width(caption: str):
    assert image_grid([[plain(4, (1, 2, 3))]], [caption], ["日"], cell=64).width < 130


def test_accents_are_taken_off_rather_than_lost():
    picture = [[plain(4, (1, 2, 3))]]
    assert image_grid(picture, ["piñata"]).tobytes() == image_grid(picture, ["pinata"]).tobytes()
    assert image_grid(picture, ["piñata"]).tobytes() != image_grid(picture, ["pi_ata"]).tobytes()


def test_wrapped_lines_fit_and_lose_no_word():
    font, text = ImageFont.load_default(13), "a bowl of hot soup and antidisestablishments"
    lines = wrap(text, font, 80)
    assert all(font.getlength(line) <= 80 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    cut = wrap(text * 9, font, 80)
    assert len(cut) == 4
    assert cut[-1].endswith("...")
    assert font.getlength(cut[-1]) <= 80


def test_save_png_keeps_every_pixel_and_leaves_nothing_else(tmp_path):
    image = torch.randint(0, 256, (3, 9, 7), dtype=torch.uint8)
    save_png(to_pil(image), tmp_path / "new" / "grid.png")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["grid.png"]
    with Image.open(tmp_path / "new" / "grid.png") as loaded:
        assert (torch.tensor(np.asarray(loaded)).permute(2, 0, 1) == image).all()


@pytest.mark.parametrize(
    ("rows", "captions", "labels", "message"),
    [
        ([], ["a"], None, "0 rows and 1 captions"),
        ([[]], [], None, "1 rows and 0 captions"),
        ([[plain(4, (0, 0, 0))]], ["a", "b"], None, r"rows\[0\] has 1 pictures, but there are 2 captions"),
        ([[plain(4, (0, 0, 0))]], ["a"], ["x", "y"], "row_labels has 2 entries"),
    ],
)
def test_a_mismatch_is_named(rows, captions, labels, message):
    with pytest.raises(UserError, match=message):
        image_grid(rows, captions, labels)
