import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from imagen import build
from imagen.cli import compose
from imagen.recompute import FullRecompute, NoRecompute, Recompute, SelectiveRecompute
from imagen.summary import example

OPTIONS = [NoRecompute(), SelectiveRecompute(), FullRecompute()]


def network_and_inputs(experiment: str, recompute: Recompute) -> tuple[nn.Module, tuple]:
    cfg = compose("train", [f"experiment={experiment}"])
    network = build.build_network(cfg)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():  # last layers begin at zero, and would let no gradient through
        parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    recompute.apply(network)
    x_t, logsnr, cond = example(cfg, cfg.resolution)
    return network, (torch.randn(x_t.shape, generator=generator), logsnr, cond)


def gradients(network: nn.Module, inputs: tuple) -> dict[str, Tensor]:
    network(*inputs).square().mean().backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("experiment", ["toy", "toy_sr32"])
@pytest.mark.parametrize("bf16", [False, True])
def test_gradients_are_the_same_to_the_bit(experiment, bf16):
    found = []
    for option in OPTIONS:
        network, inputs = network_and_inputs(experiment, option)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = network(*inputs)
        output.square().mean().backward()
        found.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    assert any(value.abs().max() > 0 for value in found[0].values())
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        assert all(torch.equal(value, found[0][name]) for name, value in other.items())


def backward_cost(option: Recompute) -> tuple[int, int]:
    """Operations of the backward pass, and bytes that autograd keeps for it by name (not those of kept results)."""
    network, inputs = network_and_inputs("toy", option)
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = network(*inputs).square().mean()
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    return counter.get_total_flops(), sum(kept)


def test_selective_repeats_no_convolution_and_full_repeats_all():
    (none, kept), (selective, kept_selective), (full, kept_full) = (backward_cost(option) for option in OPTIONS)
    assert selective < 1.05 * none < full
    assert full > 1.2 * none
    assert max(kept_selective, kept_full) < kept / 2


def test_names_of_weights_and_the_average_are_left_alone():
    module = build.build_module(compose("train", ["experiment=toy", "recompute=full"]))
    plain = build.build_module(compose("train", ["experiment=toy"]))
    assert module.state_dict().keys() == plain.state_dict().keys()
    assert not any("forward" in vars(layer) for layer in module.ema.network.modules())
    assert any("forward" in vars(layer) for layer in module.denoiser.network.modules())


@pytest.mark.drill
@pytest.mark.parametrize("option", [type(option).__name__ for option in OPTIONS])
def test_it_compiles_to_one_graph(option):
    """In a process of its own, without the checks of types, which break graphs."""
    program = f"""
    import torch
    from imagen import recompute
    from test_recompute import gradients, network_and_inputs
    network, inputs = network_and_inputs("toy", recompute.{option}())
    expected = gradients(network, inputs)
    network.zero_grad()
    network.compile(fullgraph=True, backend="aot_eager")
    found = gradients(network, inputs)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, cwd=Path(__file__).parent)
