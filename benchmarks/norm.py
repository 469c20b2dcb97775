"""The norm with scale, shift and SiLU, forward and backward: PyTorch's operations, those compiled, our Triton kernels.

    python benchmarks/norm.py --batch-size 32

Shapes are those of a preset's norms through which most bytes go. GB/s are of the bytes that no form can do without
(the input twice, its gradient, output and upstream once each, in bf16), their share is of the rate at which the
device copies: what it says is how far a form is from costing nothing but these.
"""

from argparse import Namespace
from collections import Counter
from importlib.util import find_spec
from typing import Any

import torch
from common import Timing, parser_of, prepare, record, rounded, timed
from presets import config_of
from torch import Tensor

from imagen import build
from imagen.group_norm import TritonGroupNorm
from imagen.network.blocks import GroupNorm
from imagen.summary import example

PRESETS = ("imagen_base64_300m", "imagen_base64", "imagen_sr256", "imagen_sr1024")

PASSES = 5
"""Of a tensor as large as the input: read it, write the output; read it and the upstream gradient, write its own."""

COPIED = 2**28
"""Bytes of the copy that memory's rate is measured with."""


def shapes(preset: str, count: int) -> list[tuple[int, int, int]]:
    """Channels, height and width of the norms with SiLU through which most numbers go, the most first."""
    cfg = config_of(preset, [])
    found: Counter[tuple[int, int, int]] = Counter()
    with torch.device("meta"):
        network = build.build_network(cfg)
        inputs = example(cfg, cfg.data.get("crop") or cfg.resolution)

    def note(module: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
        channels, height, width = given[0].shape[1:]
        found[channels, height, width] += given[0].numel()

    for module in network.modules():
        if isinstance(module, GroupNorm) and module.silu:
            module.register_forward_pre_hook(note)
    network(*inputs)
    return [shape for shape, _ in found.most_common(count)]


def copy_rate(device: torch.device, rounds: int) -> float:
    """Bytes a second, read and written, of a large copy: the best of the rounds."""
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED / timed(lambda: target.copy_(source), device, rounds).low


def measure(
    shape: tuple[int, int, int], batch_size: int, device: torch.device, rounds: int, rate: float
) -> dict[str, Any]:
    """Milliseconds of each form, by turns, its GB/s and their share of ``rate``."""
    x = torch.randn(batch_size, *shape, dtype=torch.bfloat16, device=device)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    scale_shift = torch.randn(batch_size, 2 * shape[0], device=device, requires_grad=True)
    upstream = torch.randn_like(x)
    torch.compiler.reset()  # each shape by itself, as a network of fixed sizes compiles
    names = ("eager", "compiled", *(["triton"] if device.type == "cuda" and find_spec("triton") else []))
    forms = {name: GroupNorm(shape[0], silu=True).to(device) for name in names}
    forms["compiled"].compile(fullgraph=True, dynamic=False)
    if "triton" in forms:
        TritonGroupNorm().apply(forms["triton"])

    def step(norm: GroupNorm) -> tuple[Tensor, ...]:
        return torch.autograd.grad(norm(x, scale_shift), (x, scale_shift, norm.weight, norm.bias), upstream)

    for norm in forms.values():
        step(norm)
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, norm in forms.items():
            seconds[name] += timed(lambda norm=norm: step(norm), device, 1).seconds
    size = PASSES * x.numel() * x.element_size()
    figures: dict[str, Any] = {}
    for name, taken in seconds.items():
        timing = Timing(taken)
        figures |= {f"{name}_{key}": value for key, value in timing.figures().items() if key != "rounds"}
        figures |= {f"{name}_gb_per_s": rounded(size / timing.median / 1e9)}
        figures |= {f"{name}_share": rounded(size / timing.median / rate)}
    return figures


def run(options: Namespace) -> None:
    device = prepare(options)
    batch_size = options.batch_size or (32 if device.type == "cuda" else 1)
    rate = copy_rate(device, 10)
    for preset in options.presets:
        for shape in shapes(preset, options.shapes):
            case = f"{preset} {shape[0]}×{shape[1]}×{shape[2]}"
            figures = {"batch_size": batch_size, "copy_gb_per_s": rounded(rate / 1e9), "rounds": options.rounds}
            figures |= measure(shape, batch_size, device, options.rounds, rate)
            path = record("norm", case, figures, device, options.results)
            print(f"{case}: {figures}\nwritten to {path}", flush=True)


def main() -> None:
    parser = parser_of(__doc__)
    parser.set_defaults(rounds=20)
    parser.add_argument("--presets", nargs="+", default=PRESETS, help="names of experiments")
    parser.add_argument("--shapes", type=int, default=2, help="how many of each preset")
    parser.add_argument("--batch-size", type=int, help="pictures; else 1 on a CPU and 32 on a GPU")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
