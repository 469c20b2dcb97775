"""Milliseconds by kind of operation: torch.profiler's events, each told by its name and by what it is part of."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.profiler import DeviceType, ProfilerActivity, profile

RULES = {
    "optimizer": r"^(clip|optimizer)$",
    "EMA": r"^EMA$",
    "norm": r"norm(?!al)",
    "attention": r"attention|softmax|aten::(bmm|baddbmm)$",
    "convolution": r"convolution|conv\d",
    "matmul": r"aten::(mm|addmm|linear|matmul|mv|addmv|dot)$|gemm",
    "copy and cast": (
        r"aten::(copy_|_to_copy|to|clone|contiguous|cat|stack|pad|constant_pad_nd|select_backward|slice_backward|"
        r"index_select|index|gather|flip|repeat|repeat_interleave)$|mem(cpy|set)"
    ),
    "pointwise": (
        r"aten::(add|sub|mul|div|neg|exp|log|sin|cos|tanh|sigmoid|silu|relu|gelu|sqrt|rsqrt|square|pow|clamp|where|"
        r"masked_fill|addcmul|addcdiv|lerp|reciprocal|threshold|fill|zero|sum|mean|upsample\w*|avg_pool2d|adaptive\w*|"
        r"interpolate|silu_backward|avg_pool2d_backward|normal|uniform|rand\w*|ge|gt|le|lt|eq|ne|logical_\w+|"
        r"bitwise_\w+|minimum|maximum|sort|quantile|expm1|log1p|softplus|log_sigmoid\w*)_?$|triton"
    ),
}
"""The first kind counts whose pattern fits an event's name or that of something it is part of."""

KINDS = (*RULES, "other")

BY_OWN_NAME = ("convolution", "matmul", "copy and cast", "pointwise")
"""These do not hand their kind to what they call."""


def kind_of(names: list[str]) -> str:
    """The kind of an event, by its own name and then those that it is part of, innermost first."""
    for kind, pattern in RULES.items():
        if any(re.search(pattern, name, re.IGNORECASE) for name in (names[:1] if kind in BY_OWN_NAME else names)):
            return kind
    return "other"


def milliseconds_by_kind(call: Callable[[], Any], device: torch.device, parts: int = 1) -> dict[str, float]:
    """What one call takes, divided by the ``parts`` that it does: of the device's time, on a CPU the processor's."""
    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as profiled:
        call()
        if gpu:
            torch.cuda.synchronize(device)
    return {kind: round(us / 1000 / parts, 2) for kind, us in _totals(profiled.events() or [], gpu).items() if us}


def _totals(events: Iterable[Any], gpu: bool) -> dict[str, float]:
    totals = dict.fromkeys(KINDS, 0.0)
    for event in events:
        if event.device_type == DeviceType.CPU:  # a GPU's kernels count with what launched them
            totals[kind_of(list(_path(event)))] += event.self_device_time_total if gpu else event.self_cpu_time_total
    return totals


def _path(event: Any) -> Iterator[str]:
    while event is not None:
        yield event.name
        event = event.cpu_parent
