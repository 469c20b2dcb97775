import numpy as np
import pytest
import torch

from imagen.data import stream
from imagen.data.stream import Crop, Sample
from imagen.types import Place

PLACE = Place(0, 1, 1, 1)


def sample(number: int, tokens: int = 2) -> Sample:
    return Sample(f"{number}", np.full((2, 2, 3), number, np.uint8), torch.ones(tokens, 3).half(), f"caption {number}")


def test_collate_pads_text_to_the_longest_and_keeps_pixels_as_bytes():
    batch = stream.collate([sample(1, tokens=2), sample(200, tokens=5)], flip=False, place=PLACE)
    assert batch.image.dtype == torch.uint8
    assert batch.image.shape == (2, 3, 2, 2)
    assert batch.image.is_contiguous()
    assert batch.text.tokens.dtype == torch.float32
    assert batch.text.mask.tolist() == [[True] * 2 + [False] * 3, [True] * 5]
    assert torch.equal(batch.text.tokens[..., 0], batch.text.mask.float())
    assert batch.key == ["1", "200"]
    assert batch.caption == ["caption 1", "caption 200"]
    assert not batch.can_flip.any()


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a dog", True),
        ("Left arrow", False),
        ("a hand pointing RIGHTWARDS", False),
        ("left-facing fist", False),
        ("bright copyright sign", True),
    ],
)
def test_can_flip(caption: str, expected: bool):
    assert stream.can_flip(caption) is expected
    both = stream.collate([sample(0)._replace(caption=caption)], flip=True, place=PLACE).can_flip.tolist()
    assert both == [expected]


def test_channels_keep_their_places():
    image = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 3)
    batch = stream.collate([sample(0)._replace(image=image)], flip=False, place=PLACE)
    assert np.array_equal(batch.image[0].numpy(), image.transpose(2, 0, 1))


def test_a_crop_is_addressed_by_seed_epoch_and_key():
    image = np.arange(64).reshape(8, 8)
    crop = Crop(3, True, seed=1)
    assert np.array_equal(crop(image, 0, "a"), crop(image, 0, "a"))
    corners = {
        int(Crop(3, True, seed)(image, epoch, key)[0, 0]) for seed in (1, 2) for epoch in (0, 1) for key in "abc"
    }
    assert len(corners) > 6
    everywhere = {int(crop(image, epoch, "a")[0, 0]) for epoch in range(500)}
    assert everywhere == {8 * top + left for top in range(6) for left in range(6)}


def test_a_crop_of_the_middle_and_of_the_whole():
    image = np.arange(64).reshape(8, 8)
    assert np.array_equal(Crop(4, False, 0)(image, 5, "a"), image[2:6, 2:6])
    assert np.array_equal(Crop(8, True, 0)(image, 5, "a"), image)
    assert np.array_equal(Crop(None, True, 0)(image, 5, "a"), image)


def test_samples_without_stored_tokens_make_a_batch_of_none():
    batch = stream.collate([sample(1)._replace(tokens=None)] * 2, flip=False, place=PLACE)
    assert batch.text.tokens.shape == (2, 0, 0)
    assert batch.text.mask.shape == (2, 0)
