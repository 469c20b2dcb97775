"""What computes the norms changes no name of a weight, and no number where there is no GPU."""

import sys
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch

from imagen import build
from imagen.cli import compose
from imagen.group_norm import TorchGroupNorm, TritonGroupNorm
from imagen.network import kernels
from imagen.network.blocks import GroupNorm

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed (Linux alone has it)")


@needs_triton
def test_kernels_go_into_the_network_and_its_average_and_leave_names_alone():
    module = build.build_module(compose("train", ["experiment=toy", "group_norm=triton"]))
    network = build.build_network(compose("train", ["experiment=toy"]))
    assert network.state_dict().keys() == module.denoiser.network.state_dict().keys()
    for trained in (module.denoiser.network, module.stage.denoiser.network):
        norms = [part for part in trained.modules() if isinstance(part, GroupNorm)]
        assert norms
        assert {norm.kernel.__name__ for norm in norms} == {"triton_group_norm"}


@needs_triton
def test_where_there_is_no_gpu_it_is_torchs_to_the_bit():
    found = []
    for choice in (TorchGroupNorm(), TritonGroupNorm()):
        norm = GroupNorm(8, silu=True)
        choice.apply(norm)
        x = torch.linspace(-1, 2, 2 * 8 * 9).view(2, 8, 3, 3).requires_grad_()
        out = norm(x, torch.linspace(0, 1, 32).view(2, 16))
        found.append((out, *torch.autograd.grad(out.square().sum(), (x, norm.weight))))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("triton", [None, ModuleType("triton")], ids=["missing", "older"])
def test_without_a_recent_triton_it_says_that_torch_computes_them(triton, monkeypatch, caplog):
    for name in [name for name in sys.modules if name.startswith(("imagen.network.triton_norm.", "triton."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", triton)  # the older one has no knobs; None is one that is not there
    norm = GroupNorm(8)
    TritonGroupNorm().apply(norm)
    assert norm.kernel is kernels.group_norm
    assert "Triton is not installed here or too old" in caplog.text
    assert len(caplog.records) == 1
