"""Extractors: the components are those of the pictures, a network's features those of its own library."""

import pytest
import torch
from pictures import random_pictures, resized_by_pillow
from small_clip import save_small_clip
from small_dinov2 import save_small_dinov2
from torch import nn

from imagen.errors import UserError
from imagen.metric.extractor import (
    CLIP_MEAN,
    CLIP_STD,
    RESIZES,
    Inception,
    PixelComponents,
    VisionTransformer,
    pillow_bicubic,
    to_square,
)
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
    from transformers import Dinov2Model

    model = Dinov2Model.from_pretrained(save_small_dinov2(tmp_path))
    images = random_pictures(2, 28)
    extractor = VisionTransformer(str(tmp_path), 28, (0.5,) * 3, (0.5,) * 3)
    expected = model(pixel_values=(images / 255 - 0.5) / 0.5).last_hidden_state[:, 0]
    torch.testing.assert_close(extractor(images), expected)


@pytest.mark.parametrize(("height", "width"), [(40, 40), (24, 36), (17, 9), (16, 16)])
def test_pictures_are_made_square_by_the_filter_of_pillow(height, width):
    images = random_pictures(2, 40)[..., :height, :width]
    torch.testing.assert_close(to_square(images, 16), resized_by_pillow(images, 16), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """An Inception network that was never trained, in a file as torch-fidelity's."""
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    with pytest.MonkeyPatch.context() as patch:  # it is made with weights alone, which it would download
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *args, **options: {})
        patch.setattr(nn.Module, "load_state_dict", lambda *args, **options: None)
        network = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    generator = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):  # so that features neither vanish nor explode
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
    torch.save(network.state_dict(), path)
    return path


def test_inceptions_features_are_torch_fidelitys_and_the_resize_is_a_part_of_them(inception):
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    images, large = random_pictures(1, 64), random_pictures(1, 299)
    extractors = [Inception(str(inception), resize) for resize in RESIZES]
    assert [extractor.identity()["resize"] for extractor in extractors] == ["legacy", "clean", "torchmetrics"]
    assert len({extractor.identity()["weights"] for extractor in extractors}) == 1
    legacy, clean, smooth = (extractor(images) for extractor in extractors)
    for features in (legacy, clean, smooth):
        assert features.shape == (1, 2048)
        assert features.isfinite().all()
    for one, other in ((legacy, clean), (clean, smooth), (smooth, legacy)):
        assert (one - other).norm() > 0.01 * one.norm()
    theirs = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(inception))
    torch.testing.assert_close(legacy, theirs(images)[0])
    for extractor in extractors:  # where there is nothing to be resized they are one
        torch.testing.assert_close(extractor(large), theirs(large)[0])


def test_what_is_missing_is_said_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="is no vision model that can be loaded"):
        VisionTransformer(str(tmp_path), 16, CLIP_MEAN, CLIP_STD)
    with pytest.raises(UserError, match="resize=squeeze is not a way to 299 px"):
        Inception(None, "squeeze")
    with pytest.raises(UserError, match="does not exist"):
        Inception(str(tmp_path / "weights.pth"), "legacy")


@pytest.mark.parametrize("content", [b"", b"weights", b"\x80\x02cos\nsystem\n."])
def test_a_file_that_holds_no_network_is_refused_in_a_sentence(tmp_path, monkeypatch, content):
    """Read as torch-fidelity reads it, which is not installed with the tests."""

    def read(name: str, features: list[str], path: str, antialias: bool) -> None:
        torch.load(path)

    monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3", read)
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"weights=\S+ is no Inception network, or damaged \(.+\): give the file"):
        Inception(str(tmp_path / "weights.pth"), "clean")


def test_pillows_resize_filters_before_it_shrinks():
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(32).expand(1, 3, 64, 64)
    small = pillow_bicubic(stripes, 16).float()
    assert (small[..., 1:-1] - 127.5).abs().max() < 8  # without a filter it would be stripes again
    assert torch.equal(pillow_bicubic(stripes, 64), stripes)
