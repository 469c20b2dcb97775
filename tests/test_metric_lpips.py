"""LPIPS: torchmetrics' own numbers on the same network, and one sentence for weights that are missing or another's."""

import re

import pytest
import torch
from pictures import random_pictures
from torch import nn

from imagen.errors import UserError
from imagen.metric.base import Enlarged, Subject
from imagen.metric.lpips import LPIPS, PerceptualDistance, alexnet_features, load_alexnet, load_heads
from imagen.metric.pictures import InMemory


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """An AlexNet that was never trained, in a file as torchvision's, with the layers that are not asked for."""
    torch.manual_seed(0)
    network = alexnet_features()
    state = {f"features.{key}": value for key, value in network.state_dict().items()}
    path = tmp_path_factory.mktemp("lpips") / "alexnet.pth"
    torch.save(state | {"classifier.1.bias": torch.zeros(3)}, path)
    return path


def subject(drawn, given, truth):
    sets = [InMemory(images, [""] * len(images)) for images in (drawn, given, truth)]
    missing = lambda: pytest.fail("is not to be asked for")  # noqa: E731
    return Subject(sets[0], sets[2], missing, {"real": Enlarged(*sets)}, missing)


def test_it_is_torchmetrics_distance(weights, monkeypatch):
    import torchmetrics.functional.image.lpips as theirs

    # its AlexNet is torchvision's, which is not here: it takes the same layers from a stand-in
    whole = nn.Sequential(*load_alexnet(str(weights)), nn.MaxPool2d(3, stride=2))
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda net, pretrained: whole)
    a, b = random_pictures(3, 64), random_pictures(3, 64).flip(-1) // 2
    expected = theirs._LPIPS(net="alex")(a.float() / 127.5 - 1, b.float() / 127.5 - 1).flatten()
    torch.testing.assert_close(PerceptualDistance(load_alexnet(str(weights)), load_heads())(a, b), expected)


def test_it_is_the_mean_over_pictures_whatever_the_batches_and_zero_to_itself(weights):
    truth, given = random_pictures(5, 32), random_pictures(5, 16)
    own = LPIPS(weights=str(weights), batch_size=2)
    assert own.measure(subject(truth, given, truth)) == {"lpips_real": 0.0}
    figures = own.measure(subject(truth // 2, given, truth))
    assert figures["lpips_real"] == pytest.approx(own.values()["lpips_real"].mean().item())
    assert own.counts() == {"lpips_real": 5}
    assert re.fullmatch("[0-9a-f]{32}", str(own.provenance()["weights"]))
    whole = LPIPS(weights=str(weights), batch_size=5).measure(subject(truth // 2, given, truth))
    assert whole["lpips_real"] == pytest.approx(figures["lpips_real"], rel=1e-5)


def test_what_is_missing_or_unfit_is_said_in_one_sentence(weights, tmp_path, monkeypatch):
    truth = random_pictures(2, 16)
    with pytest.raises(UserError, match="needs pictures of 32 px and more, and these have 16"):
        LPIPS(weights=str(weights), batch_size=2).measure(subject(truth, truth, truth))
    with pytest.raises(UserError, match=r"cannot be read from weights=/no/such.pth"):
        load_alexnet("/no/such.pth")
    torch.save({"other.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other.pth is no AlexNet"):
        load_alexnet(str(tmp_path / "other.pth"))
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    with pytest.raises(UserError, match=r"text.pth is no AlexNet"):
        load_alexnet(str(tmp_path / "text.pth"))

    def offline(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"cannot be downloaded \(no network\): give metric.lpips.weights="):
        load_alexnet(None)
