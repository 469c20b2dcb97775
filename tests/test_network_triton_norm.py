"""The Triton kernels against PyTorch's norm: as Python where there is no GPU, and on one where there is."""

import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed (Linux alone has it)")


def run(*command: str, **environment: str) -> None:
    """In a process of its own: Triton looks once whether it is to interpret, and type checks would stop tracing."""
    command = (sys.executable, "-W", "error", *command)
    subprocess.run(command, check=True, cwd=Path(__file__).parent, env={**os.environ, **environment})


def test_the_kernels_are_torchs_norm_with_its_gradients():
    run("norm_parity.py", "cpu", TRITON_INTERPRET="1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_the_kernels_are_torchs_norm_on_a_gpu():
    run("norm_parity.py", "cuda")


@pytest.mark.drill
@pytest.mark.parametrize("option", ["NoRecompute", "SelectiveRecompute", "FullRecompute"])
def test_a_network_of_kernels_recomputes_and_compiles_to_one_graph(option: str):
    program = f"""
    import torch
    from imagen.group_norm import TritonGroupNorm
    from imagen.recompute import {option}, NoRecompute
    from test_recompute import gradients, network_and_inputs
    torchs = gradients(*network_and_inputs("toy", NoRecompute()))
    network, inputs = network_and_inputs("toy", {option}())
    TritonGroupNorm().apply(network)
    found = gradients(network, inputs)
    network.zero_grad()
    network.compile(fullgraph=True, backend="aot_eager")
    compiled = gradients(network, inputs)
    assert found.keys() == compiled.keys() == torchs.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, torchs[name], atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(compiled[name], value, atol=1e-5, rtol=1e-4)
    """
    run("-c", textwrap.dedent(program), TRITON_INTERPRET="1")
