import numpy as np
import pytest
import torch

from imagen.data import synthetic
from imagen.data.synthetic import SyntheticModule
from imagen.errors import UserError
from imagen.text_encoder import Hash

ENCODER = Hash(name="hash", width=4, max_length=16)


def build(**changed) -> SyntheticModule:
    plain = {"resolution": 16, "crop": None, "batch_size": 32, "seed": 0, "num_workers": 0}
    plain |= {"multiprocessing_context": None, "flip": True}
    module = SyntheticModule(ENCODER, **(plain | changed))
    module.setup()
    return module


def test_captions():
    captions = list(synthetic.CAPTIONS)
    assert len(set(captions)) == len(captions) == 224
    assert "a red circle on a blue background" in captions
    assert "an orange square on a red background" in captions
    assert not any("a orange" in caption for caption in captions)


def test_a_picture_shows_its_caption():
    picture = synthetic.draw("a red circle on a blue background", 32)
    assert tuple(picture[16, 16]) == synthetic.COLOURS["red"]
    assert tuple(picture[0, 0]) == tuple(picture[-1, -1]) == synthetic.COLOURS["blue"]
    inside = (picture == synthetic.COLOURS["red"]).all(-1).mean()
    assert inside == pytest.approx(np.pi * 0.65**2 / 4, abs=0.05)


@pytest.mark.parametrize("shape", synthetic.SHAPES)
def test_shapes_are_their_own_mirror_image_at_every_size(shape: str):
    large = synthetic.draw(f"a black {shape} on a white background", 64)
    assert np.array_equal(large, large[:, ::-1])
    small = synthetic.draw(f"a black {shape} on a white background", 16)
    blocks = large.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    assert np.abs(blocks - small).max() < 30  # both are means over the same area, the large one of finer points


def test_every_caption_has_a_picture_of_its_own():
    pictures = {synthetic.draw(caption, 8).tobytes() for caption in synthetic.CAPTIONS}
    assert len(pictures) == 224


@pytest.mark.parametrize("caption", ["", "a red dog on a blue background", "a red circle on a red background", "hello"])
def test_other_captions_are_refused(caption: str):
    with pytest.raises(UserError, match="not of the synthetic set"):
        synthetic.draw(caption, 8)


def test_splits_share_nothing():
    train, val = synthetic.split_captions("train"), synthetic.split_captions("val")
    assert sorted(train + val) == sorted(synthetic.CAPTIONS)
    assert len(val) == 28
    words = {word for caption in val for word in caption.split()}
    assert {*synthetic.SHAPES} <= words


def test_batches_are_true():
    module = build()
    batch = next(iter(module.train_dataloader()))
    assert batch.image.shape == (32, 3, 16, 16)
    assert batch.can_flip.all()
    text = ENCODER.encode(batch.caption)
    assert torch.equal(batch.text.tokens, text.tokens)
    assert torch.equal(batch.text.mask, text.mask)
    for image, caption in zip(batch.image, batch.caption, strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), synthetic.draw(caption, 16))
    assert module.text_fingerprint == ENCODER.fingerprint()


def test_validation_shows_what_was_held_out():
    (batch,) = build().val_dataloader()
    assert batch.caption == synthetic.split_captions("val")


def test_crops_are_windows_of_the_true_picture():
    module = build(resolution=64, crop=16, batch_size=4)
    batch = next(iter(module.train_dataloader()))
    assert batch.image.shape == (4, 3, 16, 16)
    for image, caption in zip(batch.image, batch.caption, strict=True):
        whole = torch.from_numpy(synthetic.draw(caption, 64)).permute(2, 0, 1)
        windows = whole.unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4)
        assert (windows == image).flatten(2).all(-1).any()
    (held_out,) = build(resolution=64, crop=16).val_dataloader()
    middle = synthetic.draw(held_out.caption[0], 64)[24:40, 24:40]
    assert np.array_equal(held_out.image[0].permute(1, 2, 0).numpy(), middle)


@pytest.mark.parametrize("crop", [0, 17])
def test_a_crop_that_does_not_fit_the_picture_is_refused(crop: int):
    with pytest.raises(UserError, match=f"data.crop={crop} must be 1 to data.resolution=16 pixels"):
        build(crop=crop)
