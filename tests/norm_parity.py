"""The Triton norm against PyTorch's in float64, forward and gradients: a program, to be interpreted or on a GPU.

TRITON_INTERPRET=1 python norm_parity.py cpu
python norm_parity.py cuda
"""

import sys
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from imagen.network.blocks import GroupNorm
from imagen.network.triton_norm.operation import _group_norm, triton_group_norm

SMALL = ((2, 12, 5, 7), (1, 32, 16, 16), (1, 192, 4, 3), (1, 8, 68, 68))
"""Channels and pixels that are no powers of two, one tile and several."""

LARGE = ((4, 128, 256, 256), (2, 1536, 16, 16), (2, 576, 64, 64))

LAYOUTS = (torch.channels_last, torch.contiguous_format)

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Largest difference over the largest number."""


def close(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], tolerance: float) -> None:
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        error = (a.double() - b.double()).abs().max() / b.double().abs().max()
        assert error < tolerance, f"result {i}: {error:.2e} of the largest number"


def compare(device: str, shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype, silu: bool) -> None:
    """A module's output, and its gradients of input, weight, bias, scale and shift."""
    norm = GroupNorm(shape[1], silu=silu).to(device)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    norm.kernel = triton_group_norm
    x = (torch.randn(shape, device=device) + 3).to(dtype).contiguous(memory_format=layout).requires_grad_()
    scale, shift = (torch.randn(shape[:2], device=device, requires_grad=True) for _ in range(2))
    upstream = torch.randn(shape, device=device).to(dtype)  # channels first, whatever x is

    out = norm(x, torch.cat([scale, shift], dim=1))
    want = F.group_norm(x.double(), norm.num_groups, norm.weight.double(), norm.bias.double())
    want = want * (1 + scale.double()[:, :, None, None]) + shift.double()[:, :, None, None]
    want = F.silu(want) if silu else want

    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=layout)
    inputs = (x, norm.weight, norm.bias, scale, shift)
    found = (out, *torch.autograd.grad(out, inputs, upstream))
    close(found, (want, *torch.autograd.grad(want, inputs, upstream.double())), TOLERANCE[dtype])


def a_large_mean(device: str) -> None:
    """Sums of squares alone would lose what is left after the mean."""
    x = torch.randn(1, 8, 48, 48, device=device) + 1000
    one = torch.ones(1, 8, device=device)
    want = F.group_norm(x.double(), 2)
    close((triton_group_norm(x, 2, one, 0 * one, False),), (want,), 1e-3)


def parts_in_between(device: str) -> None:
    """Inputs with gaps, as a slice of channels has, and gains that are one for all examples."""
    whole = torch.randn(2, 16, 6, 6, device=device).contiguous(memory_format=torch.channels_last)
    x, gain = whole[:, 4:12].requires_grad_(), torch.randn(8, device=device, requires_grad=True)
    out = triton_group_norm(x, 2, gain.expand(2, -1), torch.zeros(2, 8, device=device), True)
    want = F.silu(F.group_norm(x.double(), 2, gain.double()))
    found, wanted = (torch.autograd.grad(a.square().sum(), (x, gain)) for a in (out, want))
    close((out, *found), (want, *wanted), 1e-5)


def what_torch_asks_of_an_operation(device: str) -> None:
    """Its schema, shapes without numbers, autograd and tracing, on which torch.compile relies."""
    for layout in LAYOUTS:
        x = torch.randn(2, 8, 4, 6, device=device).contiguous(memory_format=layout).requires_grad_()
        gain = torch.randn(8, device=device).expand(2, -1).requires_grad_()
        torch.library.opcheck(_group_norm, (x, 2, gain, torch.randn(2, 8, device=device, requires_grad=True), True))


if __name__ == "__main__":
    torch.manual_seed(0)
    device = sys.argv[1]
    for case in product(SMALL if device == "cpu" else SMALL + LARGE, LAYOUTS, TOLERANCE, (True, False)):
        compare(device, *case)
    a_large_mean(device)
    parts_in_between(device)
    what_torch_asks_of_an_operation(device)
