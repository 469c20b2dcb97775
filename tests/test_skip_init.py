import pytest
import torch
from torch import nn

from imagen import build
from imagen.cli import compose
from imagen.runs import Weights
from imagen.skip_init import SkipInit


@pytest.mark.parametrize("experiment", ["toy", "toy_sr32"])
def test_a_network_is_rebuilt_without_drawing_its_first_weights(experiment, monkeypatch):
    cfg = compose("train", [f"experiment={experiment}", "null_text=learned"])
    module = build.build_module(cfg)
    weights = Weights(module.state_to_export(), build.run_config(cfg), {}, 0)

    def drawn(*args: object, **kwargs: object) -> None:
        raise AssertionError("a weight was drawn")

    for name in ("uniform_", "normal_"):
        monkeypatch.setattr(torch.Tensor, name, drawn)
    with pytest.raises(Exception, match="drawn"):
        build.build_network(cfg)
    rebuilt = build.load_stage(weights, "base").denoiser.network
    own = [*module.denoiser.network.named_parameters(), *module.denoiser.network.named_buffers()]
    again = dict([*rebuilt.named_parameters(), *rebuilt.named_buffers()])
    assert all(torch.equal(value, again[name]) for name, value in own)  # persistent or not
    assert not rebuilt.training
    assert not any(p.requires_grad for p in rebuilt.parameters())


def test_only_inside_nothing_is_drawn():
    with SkipInit():
        inside = nn.init.constant_(torch.zeros(3), 5.0)
    assert not inside.any()
    assert nn.init.constant_(torch.zeros(3), 5.0).all()
