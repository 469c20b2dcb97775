"""What a config builds, without building it: python -m imagen.summary experiment=... [--json | --markdown].

Everything runs on the meta device: shapes and counts are exact, nothing is computed and next to no memory is used.
"""

import json
import sys
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from imagen import build
from imagen.activations import Activations, width_of
from imagen.cli import compose, one_sentence
from imagen.errors import UserError
from imagen.types import Conditioning, TextEmbedding


def summarize(cfg: DictConfig) -> dict[str, Any]:
    """Counts for one picture with a prompt of the encoder's full length.

    - ``forward_flops``: convolutions, matrix products and attention, a multiply-add as two.
    - ``training_flops``: the same of one training picture (or crop of one), forward and backward.
    - ``activation_bytes``: what one training picture keeps for the backward pass, two bytes a number under bfloat16.
    - ``ema_bytes``, ``optimizer_bytes``: states beside the parameters.
    - ``shapes``: the outputs of the network's parts.
    """
    build.check(cfg)
    with torch.device("meta"):
        network = build.build_network(cfg)
        inputs, trained = example(cfg, cfg.resolution), example(cfg, cfg.data.get("crop") or cfg.resolution)
    ema = build.instantiate(cfg.ema, network)
    own = {id(parameter) for parameter in network.parameters()}
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "forward_flops": _forward_flops(network, inputs),
        "training_flops": _training_flops(network, trained),
        "activation_bytes": _activation_bytes(cfg, network, trained),
        "ema_bytes": sum(_bytes(p) for p in ema.parameters() if id(p) not in own),
        "optimizer_bytes": _optimizer_bytes(cfg, network),
        "shapes": _shapes(network, inputs),
    }


def example(cfg: DictConfig, side: int) -> tuple[Tensor, Tensor, Conditioning]:
    """A network's inputs for one picture of ``side`` pixels, on the default device: x_t, logsnr, conditioning."""
    length, width = cfg.text_encoder.max_length, cfg.text_encoder.width
    text = TextEmbedding(torch.zeros(1, length, width), torch.ones(1, length, dtype=torch.bool))
    cond = Conditioning(text)
    if cfg.low_resolution is not None:
        low = side * cfg.low_resolution // cfg.resolution
        cond = Conditioning(text, torch.zeros(1, 3, low, low), torch.zeros(1))
    return torch.zeros(1, 3, side, side), torch.zeros(1), cond


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _forward_flops(network: nn.Module, inputs: tuple[Any, ...]) -> int:
    with FlopCounterMode(display=False) as counter:
        network(*inputs)
    return counter.get_total_flops()


def _training_flops(network: nn.Module, inputs: tuple[Any, ...]) -> int:
    with FlopCounterMode(display=False) as counter:
        network(*inputs).sum().backward()
    network.zero_grad()
    return counter.get_total_flops()


def _activation_bytes(cfg: DictConfig, network: nn.Module, inputs: tuple[Any, ...]) -> int:
    activations = Activations(network)
    with activations:
        network(*inputs)
    return activations.kept_bytes()["none"] // width_of(cfg)


def _optimizer_bytes(cfg: DictConfig, network: nn.Module) -> int:
    optimizer = build.instantiate(cfg.optimizer)(network.parameters())
    for group in optimizer.param_groups:
        group["fused"] = False  # which the meta device has not
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    network.zero_grad()
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(_bytes(state) for state in states)


def _shapes(network: nn.Module, inputs: tuple[Any, ...]) -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = {}
    hooks = []
    for name, module in network.named_modules():
        if name and name.count(".") <= 1:

            def record(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                if isinstance(output, Tensor):
                    shapes[name] = list(output.shape)

            hooks.append(module.register_forward_hook(record))
    with torch.no_grad():
        shapes["output"] = list(network(*inputs).shape)
    for hook in hooks:
        hook.remove()
    return shapes


def markdown_row(name: str, summary: dict[str, Any]) -> str:
    """The summary as a row of docs/sizes.md: parameters, GFLOP, and activations, average and optimizer in GiB."""
    gibibytes = [f"{summary[f'{part}_bytes'] / 2**30:.2f}" for part in ("activation", "ema", "optimizer")]
    cells = [f"`{name}`", f"{summary['parameters']:,}", f"{summary['forward_flops'] / 1e9:,.0f}", *gibibytes]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the summary as a table, or with --json as JSON."""
    arguments = [a for a in sys.argv[1:] if not a.startswith("-")]
    options = {a for a in sys.argv[1:] if a.startswith("-")}
    if options & {"--help", "-h"}:
        print(f"{__doc__}\nThe overrides are those of train.py: python train.py --help shows them.")
        return
    with one_sentence("train"):
        if unknown := sorted(options - {"--json", "--markdown"}):
            raise UserError(f"{unknown[0]} is not an option: there are --json, --markdown and --help")
        cfg = compose("train", arguments)
        summary = summarize(cfg)
    if "--json" in options:
        print(json.dumps(summary, indent=2))
        return
    if "--markdown" in options:
        print(markdown_row(cfg.name, summary))
        return
    for name, shape in summary["shapes"].items():
        print(f"{name:<40} {' x '.join(map(str, shape))}")
    print()
    print(f"parameters       {summary['parameters'] / 1e6:12.2f} M")
    print(f"forward          {summary['forward_flops'] / 1e9:12.2f} GFLOP a picture")
    print(f"training         {summary['training_flops'] / 1e9:12.2f} GFLOP a picture, forward and backward")
    for name in ("activation", "ema", "optimizer"):
        per = " a picture in training" if name == "activation" else ""
        print(f"{name:<16} {summary[f'{name}_bytes'] / 2**20:12.1f} MiB{per}")


if __name__ == "__main__":
    main()
