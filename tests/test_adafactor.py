"""Adafactor: torch's own where both factor alike, the paper's algorithm on convolutions, little state."""

import pytest
import torch
from torch import nn

from imagen.adafactor import Adafactor, factored_dims
from imagen.errors import UserError

DEFAULTS = {
    "lr": 1e-2,
    "decay_rate": 0.8,
    "eps": 1e-30,
    "min_scale": 1e-3,
    "clip_threshold": 1.0,
    "min_factored": 4,
    "weight_decay": 0.0,
}


def gradients(*shape: int, count: int = 8):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) * torch.linspace(0.1, 3, shape[-1]) for _ in range(count)]


def trained(start: torch.Tensor, make, steps):
    parameter = nn.Parameter(start.clone())
    optimizer = make([parameter])
    for gradient in steps:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach(), optimizer


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7,), (3, 5)])
def test_matrices_and_vectors_move_as_by_torchs_adafactor(shape, weight_decay):
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    least = 4 if min(shape) >= 4 else 1
    own, _ = trained(
        start,
        lambda p: Adafactor(p, **DEFAULTS | {"weight_decay": weight_decay, "min_factored": least}),
        gradients(*shape),
    )
    theirs, _ = trained(
        start,
        lambda p: torch.optim.Adafactor(p, lr=1e-2, eps=(1e-18, 1e-3), weight_decay=weight_decay),
        gradients(*shape),
    )
    torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-7)


def test_a_convolution_is_factored_over_its_channels_at_every_place_of_the_kernel():
    """Algorithm 4 by hand, in float64: at each of the kernel's places rows and columns of channels."""
    start = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    steps = gradients(6, 5, 3, 3)
    own, optimizer = trained(start, lambda p: Adafactor(p, **DEFAULTS), steps)
    expected = start.double()
    rows, columns = torch.zeros(5, 3, 3).double(), torch.zeros(6, 3, 3).double()
    for t, gradient in enumerate(steps, 1):
        squared = gradient.double() ** 2 + 1e-30
        rows, columns = rows.lerp(squared.mean(0), t**-0.8), columns.lerp(squared.mean(1), t**-0.8)
        moment = columns[:, None] * rows[None] / rows.mean(0)
        update = gradient / moment.sqrt()
        update = update / max(1.0, update.square().mean().sqrt().item())
        expected = expected - 1e-2 * max(1e-3, expected.square().mean().sqrt().item()) * update
    torch.testing.assert_close(own.double(), expected, rtol=1e-5, atol=1e-7)
    (state,) = optimizer.state.values()
    assert sum(value.numel() for value in state.values()) == 9 * (6 + 5) + 1


def test_the_layout_in_memory_changes_nothing():
    start = torch.randn(6, 5, 3, 3)
    laid = [trained(start, lambda p: Adafactor(p, **DEFAULTS), gradients(6, 5, 3, 3))[0]]
    other = start.contiguous(memory_format=torch.channels_last)
    laid.append(trained(other, lambda p: Adafactor(p, **DEFAULTS), gradients(6, 5, 3, 3))[0])
    torch.testing.assert_close(*laid, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("shape", "dims"),
    [((8, 9), (0, 1)), ((9, 8), (1, 0)), ((8, 8, 3, 3), (0, 1)), ((3, 9), None), ((9,), None), ((), None)],
)
def test_the_two_largest_dimensions_are_factored_where_they_are_large(shape, dims):
    assert factored_dims(torch.Size(shape), 8) == dims


def test_a_state_that_is_saved_goes_on_as_if_it_had_not_been():
    steps = gradients(6, 9)
    whole, _ = trained(torch.ones(6, 9), lambda p: Adafactor(p, **DEFAULTS), steps)
    half, optimizer = trained(torch.ones(6, 9), lambda p: Adafactor(p, **DEFAULTS), steps[:4])
    parameter = nn.Parameter(half)
    other = Adafactor([parameter], **DEFAULTS)
    other.load_state_dict(optimizer.state_dict())
    for gradient in steps[4:]:
        parameter.grad = gradient
        other.step()
    assert torch.equal(parameter.detach(), whole)


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"decay_rate": 0.0}, {"eps": 0.0}, {"min_factored": 0}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match=f"optimizer.{next(iter(wrong))}="):
        Adafactor([nn.Parameter(torch.zeros(2))], **DEFAULTS | wrong)
