"""Adafactor (Shazeer & Stern 2018, arXiv 1804.04235) as the paper trains its base stage: optax's form and defaults."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from imagen.errors import UserError


class Adafactor(Optimizer):
    """Adam's second moments kept by rows and columns alone, no first moments, steps in proportion to the parameter.

    A step is ``lr * max(min_scale, RMS(parameter))`` times the gradient over the root of its second moment, that
    quotient scaled down to a root mean square of ``clip_threshold``. Moments decay by ``1 - step^-decay_rate``; ``eps``
    is added to squared gradients (algorithm 4). The two largest dimensions are factored where both are at least
    ``min_factored``, whatever other dimensions there are, so a 3x3 convolution keeps nine pairs of vectors; smaller
    parameters keep a second moment for each number. Weight decay is decoupled, as in ``torch.optim.AdamW``.

    No number is read by the host, and parameters may be sharded.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        decay_rate: float,
        eps: float,
        min_scale: float,
        clip_threshold: float,
        min_factored: int,
        weight_decay: float,
    ) -> None:
        """Raises: UserError naming a number that is out of range."""
        ranges = {
            "lr": (lr, lr >= 0),
            "decay_rate": (decay_rate, 0 < decay_rate <= 1),
            "eps": (eps, eps > 0),
            "min_scale": (min_scale, min_scale >= 0),
            "clip_threshold": (clip_threshold, clip_threshold > 0),
            "min_factored": (min_factored, min_factored >= 1),
            "weight_decay": (weight_decay, weight_decay >= 0),
        }
        for name, (value, fits) in ranges.items():
            if not fits:
                raise UserError(f"optimizer.{name}={value} is out of range for adafactor")
        super().__init__(params, {name: value for name, (value, _) in ranges.items()})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every parameter that has a gradient. Returns what ``closure``, if any, does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _move(parameter, parameter.grad.float(), self.state[parameter], group)
        return loss


def factored_dims(shape: torch.Size, least: int) -> tuple[int, int] | None:
    """The second largest and the largest dimension, where both are at least ``least``; of equal ones the later."""
    order = sorted(range(len(shape)), key=lambda dim: shape[dim])
    return (order[-2], order[-1]) if len(shape) > 1 and shape[order[-2]] >= least else None


def _move(parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    dims = factored_dims(parameter.shape, group["min_factored"])
    squared = gradient.square().add_(group["eps"])
    if dims is None:
        means = {"moment": squared}
    else:  # over the largest dimension, and over the other
        means = {"rows": squared.mean(dims[1], keepdim=True), "columns": squared.mean(dims[0], keepdim=True)}
    if not state:
        state.update(step=torch.tensor(0.0), **{name: torch.zeros_like(mean) for name, mean in means.items()})
    state["step"] += 1
    taken = state["step"].item() ** -group["decay_rate"]  # of the moment now; the step's counter lies in the host
    for name, mean in means.items():
        state[name] = torch.lerp(state[name], mean, taken)
    if dims is None:
        update = gradient * state["moment"].rsqrt()
    else:
        rows = state["rows"] / state["rows"].mean(dims[0], keepdim=True)
        update = gradient * rows.rsqrt() * state["columns"].rsqrt()
    size = group["lr"] * _rms(parameter).clamp(min=group["min_scale"])
    size = size / (_rms(update) / group["clip_threshold"]).clamp(min=1.0)
    if group["weight_decay"]:
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
    parameter.sub_(update.mul_(size))


def _rms(value: Tensor) -> Tensor:
    return value.float().square().mean().sqrt()
