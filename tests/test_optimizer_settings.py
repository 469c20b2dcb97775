import copy

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from imagen.optimizer_settings import lay_out_state, renew_settings, settings_of


def made(lr: float, fused: bool = False):
    """A warm-up of four steps, and two groups, the second with a decay of its own."""
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    groups = [{"params": weights[:1]}, {"params": weights[1:], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99 if fused else 0.9), weight_decay=lr, fused=fused)
    return optimizer, LambdaLR(optimizer, lambda step: min(1.0, step / 4))


def stepped(optimizer, scheduler, times: int) -> None:
    for _ in range(times):
        for group in optimizer.param_groups:
            for weight in group["params"]:
                weight.grad = torch.full_like(weight, 0.5)
        optimizer.step()
        scheduler.step()


def taken_over(lr: float, fused: bool = False, from_lr: float = 0.1):
    """An optimizer of ``lr`` and its schedule, where one of ``from_lr`` stood after two steps."""
    before = made(from_lr)
    stepped(*before, 2)
    optimizer, scheduler = made(lr, fused)
    settings = settings_of(optimizer)
    optimizer.load_state_dict(copy.deepcopy(before[0].state_dict()))
    scheduler.load_state_dict(before[1].state_dict())
    renew_settings(optimizer, scheduler, settings)
    return optimizer, scheduler, before


def test_a_changed_setting_takes_effect_where_the_schedule_stands():
    optimizer, scheduler, before = taken_over(0.02, fused=True)
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    assert decays == [0.02, 0.0]
    assert all(group["fused"] and group["betas"] == (0.9, 0.99) for group in optimizer.param_groups)
    assert scheduler.get_last_lr() == pytest.approx([0.01, 0.01])  # half the warm-up is over
    for new, old in zip(optimizer.state.values(), before[0].state.values(), strict=True):
        assert all(torch.equal(new[key], old[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    stepped(optimizer, scheduler, 1)
    assert scheduler.get_last_lr() == pytest.approx([0.015, 0.015])


def test_where_nothing_changed_the_rate_is_the_same_to_the_bit():
    optimizer, scheduler, (old, old_scheduler) = taken_over(0.1)
    for times in (0, 1, 1):
        stepped(optimizer, scheduler, times)
        stepped(old, old_scheduler, times)
        assert optimizer.param_groups[0]["lr"] == old.param_groups[0]["lr"]
        assert scheduler.state_dict() == old_scheduler.state_dict()


def test_a_run_without_a_rate_is_given_one():
    optimizer, scheduler, _ = taken_over(0.02, from_lr=0.0)
    assert optimizer.param_groups[0]["lr"] == 0.02
    stepped(optimizer, scheduler, 1)
    assert scheduler.get_last_lr() == pytest.approx([0.015, 0.015])


def test_state_that_lay_otherwise_moves_a_fused_optimizers_weights_as_if_it_had_not():
    gradient = torch.linspace(-1, 1, 72).view(4, 2, 3, 3).contiguous(memory_format=torch.channels_last)
    moved = []
    for contiguous in (False, True):
        weight = torch.nn.Parameter(torch.ones(4, 2, 3, 3).contiguous(memory_format=torch.channels_last))
        optimizer = torch.optim.AdamW([weight], lr=0.1, eps=1e-3, fused=True)
        for step in range(2):
            weight.grad = gradient * 0.1**step
            optimizer.step()
            if contiguous:
                state = optimizer.state[weight]
                state.update({name: state[name].contiguous() for name in ("exp_avg", "exp_avg_sq")})
                lay_out_state(optimizer)
                assert state["exp_avg"].stride() == weight.stride()
        moved.append(weight.detach())
    assert torch.equal(*moved)
