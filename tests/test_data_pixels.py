import io

import numpy as np
import pytest
import torch
from PIL import Image

from imagen.data import pixels
from imagen.data.pixels import cover, open_picture, open_window


def encoded(picture: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def arrow() -> Image.Image:
    """4 wide, 2 high, every pixel its own colour: no turn or mirror leaves it as it is."""
    return Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10)


def test_bytes_to_float_and_back_is_exact():
    every = torch.arange(256, dtype=torch.uint8).repeat(3, 1)[None, :, :, None]
    floats = pixels.to_float(every)
    assert [floats.min(), floats.max()] == [-1, 1]
    assert torch.equal(pixels.to_uint8(floats), every)


def test_to_uint8_clips():
    image = torch.tensor([-7.0, 0.0, 7.0]).view(3, 1, 1)
    assert pixels.to_uint8(image).flatten().tolist() == [0, 128, 255]


def test_downsampling_twice_is_downsampling_once():
    image = torch.rand(2, 3, 64, 64, dtype=torch.float64) * 2 - 1
    torch.testing.assert_close(pixels.downsample(pixels.downsample(image, 4), 4), pixels.downsample(image, 16))
    assert torch.equal(pixels.downsample(image, 1), image)


def test_a_factor_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="factor=3 does not divide"):
        pixels.downsample(torch.zeros(1, 3, 16, 16), 3)


def test_shrinking_bytes_is_the_block_mean_rounded_once():
    picture = noise(64, 64)
    shrunk = torch.from_numpy(pixels.square(picture, 16).copy()).permute(2, 0, 1)
    image = pixels.to_float(torch.from_numpy(np.array(picture)).permute(2, 0, 1))[None]
    mean = pixels.to_uint8(pixels.downsample(image, 4))[0]
    assert (shrunk.int() - mean.int()).abs().max() <= 1  # an exact half may round either way
    assert (shrunk == mean).float().mean() > 0.95


def test_a_picture_of_the_right_size_is_left_alone():
    picture = noise(16, 16)
    assert np.array_equal(pixels.square(picture, 16), np.array(picture))


@pytest.mark.parametrize(("along", "first"), [(0.0, 0), (0.5, 8), (1.0, 16)])
def test_squares_are_cut_from_the_long_side(along: float, first: int):
    picture = noise(48, 32)
    crop = picture.crop((first, 0, first + 32, 32))
    assert np.array_equal(pixels.square(picture, 32, along), np.array(crop))
    tall = picture.transpose(Image.Transpose.TRANSPOSE)
    assert np.array_equal(pixels.square(tall, 32, along), np.array(crop).transpose(1, 0, 2))


def test_a_fractional_factor_is_antialiased_and_keeps_the_mean():
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8)[None, :, None], (48, 24, 3)))
    shrunk = pixels.square(stripes, 32).astype(float)
    assert abs(shrunk.mean() - 127.5) < 2
    assert shrunk.std() < 70  # nearest or an aliasing filter would keep about 127


def test_a_picture_too_small_is_refused():
    with pytest.raises(ValueError, match="40 x 30 is smaller than 32"):
        pixels.square(noise(40, 30), 32)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(mode: str):
    hidden = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    data = encoded(hidden.convert(mode)) if mode != "P" else encoded(hidden.quantize(4))
    assert np.array(pixels.open_picture(data)).min() == 255


def test_half_transparency_is_mixed_with_white():
    data = encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 128)))
    assert np.allclose(np.array(pixels.open_picture(data)), 127, atol=1)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB"])
def test_every_mode_becomes_rgb(mode: str):
    opened = pixels.open_picture(encoded(Image.new("RGB", (2, 2), "white").convert(mode)))
    assert opened.mode == "RGB"
    assert np.array(opened).min() == 255


def test_cmyk_and_16_bit_grey_become_rgb():
    cmyk = pixels.open_picture(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"))
    assert np.array(cmyk).shape == (8, 8, 3)
    assert np.array(cmyk).min() > 250
    grey = Image.fromarray(np.full((2, 2), 0x8040, np.uint16))
    assert np.array(pixels.open_picture(encoded(grey))).flatten().tolist() == [0x80] * 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_exif_turns_the_picture_upright_once(orientation: int, format: str):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = {value: key for key, value in zip(range(2, 9), pixels._UPRIGHT.values(), strict=True)}
    turned = arrow()
    if orientation > 1:
        inverse = {Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270}
        inverse |= {value: key for key, value in inverse.items()}
        how = next(method for method, number in upright.items() if number == orientation)
        turned = turned.transpose(inverse.get(how, how))
    data = encoded(turned, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    # the json speaks of the same turn: it must not be made twice
    assert np.array_equal(np.array(pixels.open_picture(data, "Rotated 90 CW")), np.array(arrow()))


def test_orientation_from_the_json_where_the_bytes_have_none():
    data = encoded(arrow().transpose(Image.Transpose.ROTATE_90))
    assert np.array_equal(np.array(pixels.open_picture(data, "Rotated 90 CW")), np.array(arrow()))
    data = encoded(arrow())
    for words in (None, "Horizontal (normal)", "nonsense"):
        assert np.array_equal(np.array(pixels.open_picture(data, words)), np.array(arrow()))


def test_a_transparent_picture_is_turned_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = arrow().transpose(Image.Transpose.ROTATE_90).convert("RGBA")
    assert np.array_equal(np.array(pixels.open_picture(encoded(lying, exif=exif))), np.array(arrow()))


def test_what_is_no_picture_is_a_value_error():
    truncated = encoded(noise(64, 64), "JPEG")[:1500]
    for data in (b"", b"<html>not found</html>", truncated, encoded(noise(64, 64))[:2000], encoded(arrow(), "GIF")):
        with pytest.raises(ValueError, match="cannot be decoded"):
            pixels.open_picture(data)


def test_a_picture_with_too_many_pixels_is_refused_unread(monkeypatch: pytest.MonkeyPatch):
    data = encoded(Image.new("1", (9000, 8000)))
    assert len(data) < 40_000
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="9000 x 8000 pixels is too large"):
        pixels.open_picture(data)


def test_shrinking_all_of_a_picture_is_the_block_mean():
    picture = noise(96, 64)
    shrunk = pixels.shrink(picture, 16)
    mean = np.array(picture).reshape(16, 4, 24, 4, 3).mean((1, 3))
    assert shrunk.shape == (16, 24, 3)
    assert np.abs(shrunk - mean).max() <= 0.5
    left_over = pixels.shrink(picture.crop((0, 0, 94, 64)), 16)  # the last column is of two pixels
    assert np.array_equal(left_over[:, :23], shrunk[:, :23])
    assert np.abs(left_over[:, 23] - np.array(picture)[:, 92:94].reshape(16, 4, 2, 3).mean((1, 2))).max() <= 0.5


@pytest.mark.parametrize("size", [(100, 70), (70, 100), (64, 64), (333, 65)])
def test_shrinking_keeps_the_proportions_and_gradients_linear(size: tuple[int, int]):
    width, height = size
    across = np.linspace(0, 255, width)[None, :, None].repeat(height, 0).repeat(3, 2)
    shrunk = pixels.shrink(Image.fromarray(across.round().astype(np.uint8)), 32)
    assert min(shrunk.shape[:2]) == 32
    assert abs(shrunk.shape[1] / shrunk.shape[0] - width / height) <= width / height / 32
    centres = (np.arange(shrunk.shape[1]) + 0.5) * width / shrunk.shape[1] - 0.5
    inner = slice(2, -2)  # at the border a filter sees one side alone
    assert np.abs(shrunk[0, :, 0] - centres * 255 / (width - 1))[inner].max() < 1.5
    assert (shrunk == shrunk[:1]).all()


def test_shrinking_leaves_constants_and_the_right_size_alone_and_never_enlarges():
    assert (pixels.shrink(Image.new("RGB", (97, 51), (9, 99, 199)), 20) == (9, 99, 199)).all()
    assert np.array_equal(pixels.shrink(noise(24, 16), 16), np.array(noise(24, 16)))
    with pytest.raises(ValueError, match="40 x 30 is smaller than 32"):
        pixels.shrink(noise(40, 30), 32)


def test_squares_agree_however_they_are_shrunk():
    assert np.array_equal(pixels.shrink(noise(64, 64), 16), pixels.square(noise(64, 64), 16))
    assert np.array_equal(pixels.shrink(noise(50, 50), 16), pixels.square(noise(50, 50), 16))


def test_what_lies_sideways():
    turned = [words for words in pixels._UPRIGHT if pixels.lies_sideways(words)]
    assert turned == list(pixels._UPRIGHT)[3:]  # tags 5 to 8
    assert not pixels.lies_sideways(None)
    assert not pixels.lies_sideways("turned by 90, or so")


def jpeg(width: int, height: int, subsampling: int = 2, mode: str = "RGB", **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    content = io.BytesIO()
    drawn = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    drawn.save(content, "JPEG", quality=90, subsampling=subsampling, **options)
    return content.getvalue()


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("corner", [(0, 0), (37, 64), (64, 11)])
@pytest.mark.parametrize("size", [(160, 128), (128, 128), (128, 200)])
def test_a_window_of_a_jpeg_is_that_of_the_whole(subsampling: int, corner: tuple[int, int], size: tuple[int, int]):
    data = jpeg(*size, subsampling)
    window = (slice(corner[0], corner[0] + 64), slice(corner[1], corner[1] + 64))
    part = open_window(data, (128, 128), None, 0.3, window)
    assert part is not None
    assert np.array_equal(part, cover(open_picture(data), 128, 128, 0.3)[window])


WINDOW = (slice(0, 64), slice(0, 64))


@pytest.mark.parametrize(
    "refused",
    [
        (jpeg(160, 144), (128, 128), None, WINDOW),  # to be shrunk first
        (jpeg(128, 128, mode="L"), (128, 128), None, WINDOW),
        (jpeg(128, 128), (128, 128), "Rotated 90 CW", WINDOW),
        (jpeg(128, 128), (128, 128), None, (slice(0, 128), slice(0, 128))),  # the whole
        (b"\x89PNG", (128, 128), None, WINDOW),
    ],
)
def test_what_has_no_window_of_its_own(refused):
    data, shape, orientation, window = refused
    assert open_window(data, shape, orientation, 0.5, window) is None


def test_a_turned_jpeg_has_no_window():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_window(jpeg(128, 128, exif=exif), (128, 128), None, 0.5, WINDOW) is None


def test_a_damaged_jpeg_says_so():
    with pytest.raises(ValueError, match="cannot be decoded"):
        open_window(jpeg(128, 128)[:200], (128, 128), None, 0.5, WINDOW)


def test_the_codec_shrinks_no_further_than_asked():
    data = jpeg(512, 384)
    whole, drafted = open_picture(data), open_picture(data, least=64)
    assert drafted.size == (128, 96)
    near = np.asarray(whole.reduce(4)).astype(int) - np.asarray(drafted)
    assert np.abs(near).mean() < 4


@pytest.mark.parametrize(("size", "shape"), [((96, 64), (16, 24)), ((100, 50), (25, 25)), ((70, 90), (30, 20))])
def test_any_shape_is_covered_without_squashing(size: tuple[int, int], shape: tuple[int, int]):
    across, down = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    ramps = np.stack([across, down, 0 * down], axis=-1).astype(np.uint8)
    small = cover(Image.fromarray(ramps), *shape).astype(float)
    assert small.shape == (*shape, 3)
    steps = np.diff(small[:, :, 0], axis=1)[:, 1:-1].mean(), np.diff(small[:, :, 1], axis=0)[1:-1].mean()
    assert steps[0] == pytest.approx(steps[1], rel=0.05)
