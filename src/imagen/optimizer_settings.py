"""An optimizer's settings, which a checkpoint brings along with its state, set anew to what the config says."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def settings_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Each group's, ``initial_lr`` among them once a schedule was made."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def renew_settings(optimizer: Optimizer, scheduler: LRScheduler, settings: list[dict[str, Any]]) -> None:
    """Give ``settings`` to an optimizer and its schedule that took those of a checkpoint; the state stays.

    The rate is where the schedule stands, in proportion to the new base rate. Where nothing changed, nothing changes.
    """
    state = optimizer.state_dict()
    for group, own in zip(state["param_groups"], settings, strict=True):
        base, stood_at, new_base = group["initial_lr"], group["lr"], own["initial_lr"]
        group.update(own)
        group["lr"] = stood_at * (new_base / base) if base else new_base  # of a rate of 0 no proportion is known
    optimizer.load_state_dict(state)  # which also moves what a fused optimizer needs on its device
    scheduler.base_lrs = [own["initial_lr"] for own in settings]
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]


def lay_out_state(optimizer: Optimizer) -> None:
    """Lay the state of an optimizer in memory as its parameters lie: a fused one goes through both number by number.

    A checkpoint may come from a training whose parameters lay otherwise, contiguous ones instead of channels_last.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            laid_like_it = isinstance(value, Tensor) and value.shape == parameter.shape
            if laid_like_it and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
