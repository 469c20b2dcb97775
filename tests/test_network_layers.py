import pytest
import torch

from imagen import build
from imagen.cli import compose
from imagen.network.layers import layers_of


@pytest.mark.parametrize("network", ["unet_toy", "efficient_unet_toy", "unet_sr_toy"])
def test_layers_hold_nearly_all_parameters_each_once(network):
    low = [] if network == "unet_toy" else ["low_resolution=8"]
    with torch.device("meta"):
        built = build.build_network(compose("train", ["experiment=toy", f"network={network}", *low]))
    layers = list(layers_of(built))
    assert len(layers) > 4
    inside = [id(parameter) for layer in layers for parameter in layer.parameters()]
    assert len(inside) == len(set(inside))
    outside = {name.split(".")[0] for name, p in built.named_parameters() if id(p) not in set(inside)}
    assert outside <= {"embedding", "conv_in", "downsample", "upsample", "norm_out", "conv_out"}
