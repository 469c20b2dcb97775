"""Extractors: the components are those of the pictures, a vision model's features those of transformers itself."""

import pytest
import torch
from pictures import random_pictures
from small_clip import save_small_clip

from imagen.errors import UserError
from imagen.metric.extractor import CLIP_MEAN, CLIP_STD, Inception, PixelComponents, VisionTransformer, pillow_bicubic
from imagen.metric.pictures import InMemory


def in_memory(images):
    return InMemory(images, [""] * len(images))


def test_components_keep_the_variance_of_the_first_principal_axes():
    images = random_pictures(200, 4)
    extractor = PixelComponents(in_memory(images), 6)
    features = extractor(images)
    pixels = (images.float() / 127.5 - 1).flatten(1)
    exact = torch.linalg.eigvalsh(torch.cov(pixels.T)).flip(0)[:6]
    torch.testing.assert_close(features.var(dim=0), exact, rtol=1e-3, atol=1e-5)
    assert features.mean(dim=0).abs().max() < 1e-4
    assert extractor.num_features == 6


def test_large_pictures_are_averaged_before_they_are_compared():
    small = random_pictures(40, 32)
    large = small.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    extractor = PixelComponents(in_memory(small), 4)
    torch.testing.assert_close(extractor(large), extractor(small), rtol=1e-4, atol=1e-4)


def test_the_same_pictures_give_the_same_identity():
    images = random_pictures(40, 4)
    one, same = (PixelComponents(in_memory(images), 4).identity() for _ in range(2))
    other = PixelComponents(in_memory(images[1:]), 4).identity()
    assert one == same != other


def test_fewer_pictures_than_components_are_refused():
    with pytest.raises(UserError, match="components=64 needs more than 10 real pictures"):
        PixelComponents(in_memory(random_pictures(10, 4)), 64)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_small_clip(tmp_path_factory.mktemp("clip"))


def test_clips_features_are_its_projected_embeddings(clip):
    from transformers import CLIPModel

    images = random_pictures(3, 16)
    extractor = VisionTransformer(str(clip), 16, CLIP_MEAN, CLIP_STD)
    mean, std = torch.tensor(CLIP_MEAN).view(3, 1, 1), torch.tensor(CLIP_STD).view(3, 1, 1)
    model = CLIPModel.from_pretrained(clip)
    expected = model.visual_projection(model.vision_model(pixel_values=(images / 255 - mean) / std).pooler_output)
    torch.testing.assert_close(extractor(images), expected)
    assert extractor.num_features == 12
    assert extractor.identity()["resize"] == "bicubic 16"


def test_dinov2_gives_its_class_token(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    images = random_pictures(2, 28)
    extractor = VisionTransformer(str(tmp_path), 28, (0.5,) * 3, (0.5,) * 3)
    expected = model(pixel_values=(images / 255 - 0.5) / 0.5).last_hidden_state[:, 0]
    torch.testing.assert_close(extractor(images), expected)


def test_what_is_missing_is_said_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="is no vision model that can be loaded"):
        VisionTransformer(str(tmp_path), 16, CLIP_MEAN, CLIP_STD)
    with pytest.raises(UserError, match="resize=squeeze is not a way to 299 px"):
        Inception(None, "squeeze")
    with pytest.raises(UserError, match="does not exist"):
        Inception(str(tmp_path / "weights.pth"), "legacy")


def test_pillows_resize_filters_before_it_shrinks():
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(32).expand(1, 3, 64, 64)
    small = pillow_bicubic(stripes, 16).float()
    assert (small[..., 1:-1] - 127.5).abs().max() < 8  # without a filter it would be stripes again
    assert torch.equal(pillow_bicubic(stripes, 64), stripes)
