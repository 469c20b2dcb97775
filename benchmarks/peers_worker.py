"""One peer's network in a process of its own environment: what benchmarks/peers.py starts and asks, line by line.

python benchmarks/peers_worker.py PEER TABLE: both as ``peers.py`` gives them. Reads one JSON object a line, such as
``{"step": "train", "batch": 1}``, and answers with one. Imports nothing of this project unless PEER is "imagen", since
the peers' environment has not got it.
"""

import argparse
import contextlib
import ctypes
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

Inputs = dict[str, Tensor]
"""What every peer is shown: x_t, low_res (at its own size), tokens and mask."""

Run = Callable[[nn.Module, Inputs], Tensor]
"""The forward pass of a peer's network."""


def imagen(table: dict[str, Any]) -> tuple[nn.Module, Run]:
    """This project's, as ``train.py`` builds it for the paper's experiment of the same name."""
    from imagen import build
    from imagen.cli import compose
    from imagen.types import Conditioning, TextEmbedding

    cfg = compose("train", [*table["overrides"], "data=synthetic"])
    network: Any = build.build_network(cfg)
    network.to(memory_format=torch.channels_last)

    def run(network: nn.Module, inputs: Inputs) -> Tensor:
        level = torch.zeros(len(inputs["x_t"]), device=inputs["x_t"].device)
        text = TextEmbedding(inputs["tokens"], inputs["mask"])
        low_res = inputs.get("low_res")
        return network(inputs["x_t"], level, Conditioning(text, low_res, None if low_res is None else level))

    return network, run


def imagen_pytorch(table: dict[str, Any]) -> tuple[nn.Module, Run]:
    """``SRUnet256`` or ``BaseUnet64``; at their own widths these are their defaults."""
    with _local_t5():
        from imagen_pytorch import BaseUnet64, SRUnet256  # pyright: ignore[reportMissingImports]

    kind = BaseUnet64 if table["low_resolution"] is None else SRUnet256
    return _lucid(kind, table, max_text_len=table["text_length"])


def minimagen(table: dict[str, Any]) -> tuple[nn.Module, Run]:
    """``Base`` or ``Super``."""
    from minimagen.Unet import Base, Super  # pyright: ignore[reportMissingImports]

    return _lucid(Base if table["low_resolution"] is None else Super, table)


def _lucid(kind: Any, table: dict[str, Any], **more: Any) -> tuple[nn.Module, Run]:
    """The two share their keywords: the one began as a copy of the other."""
    low_res = table["low_resolution"] is not None
    channels, attention = table["channels"], tuple(table["attention"])
    network = kind(
        dim=channels[0],
        dim_mults=tuple(width // channels[0] for width in channels),
        num_resnet_blocks=tuple(table["num_res_blocks"]),
        layer_attns=attention,
        layer_cross_attns=attention,
        text_embed_dim=table["text_width"],
        lowres_cond=low_res,
        **more,
    )

    def run(network: nn.Module, inputs: Inputs) -> Tensor:
        time, options = torch.full((len(inputs["x_t"]),), 0.5, device=inputs["x_t"].device), {}
        if "low_res" in inputs:
            size = inputs["x_t"].shape[-1]
            enlarged = nn.functional.interpolate(inputs["low_res"], size=(size, size), mode="nearest")
            options = {"lowres_cond_img": enlarged, "lowres_noise_times": time}
        return network(inputs["x_t"], time, text_embeds=inputs["tokens"], text_mask=inputs["mask"], **options)

    return network, run


def diffusers(table: dict[str, Any]) -> tuple[nn.Module, Run]:
    """diffusers' U-Net with the settings of DeepFloyd's IF: blocks at full resolution, text in every self-attention."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    low_res = table["low_resolution"] is not None
    down = tuple("SimpleCrossAttnDownBlock2D" if on else "ResnetDownsampleBlock2D" for on in table["attention"])
    up = tuple("SimpleCrossAttnUpBlock2D" if on else "ResnetUpsampleBlock2D" for on in reversed(table["attention"]))
    width = 4 * table["channels"][0]
    network = UNet2DConditionModel(
        sample_size=table["resolution"],
        in_channels=6 if low_res else 3,
        out_channels=6,
        block_out_channels=table["channels"],
        layers_per_block=table["num_res_blocks"],
        down_block_types=down,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=up,
        encoder_hid_dim=table["text_width"],
        cross_attention_dim=width,
        attention_head_dim=64,
        addition_embed_type="text",
        addition_embed_type_num_heads=64,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
        class_embed_type="timestep" if low_res else None,
    )

    def run(network: nn.Module, inputs: Inputs) -> Tensor:
        x, options = inputs["x_t"], {}
        times = torch.full((len(x),), 500, device=x.device)
        if "low_res" in inputs:
            enlarged = nn.functional.interpolate(inputs["low_res"], size=x.shape[2:], mode="bilinear")
            x, options = torch.cat([x, enlarged], dim=1), {"class_labels": times}
        return network(x, times, inputs["tokens"], encoder_attention_mask=inputs["mask"], return_dict=False, **options)[
            0
        ]

    return network, run


PEERS = {f.__name__: f for f in (imagen, imagen_pytorch, diffusers, minimagen)}
PACKAGES = {"imagen": "imagen-lab", "imagen_pytorch": "imagen-pytorch"}


@contextlib.contextmanager
def _local_t5() -> Iterator[None]:
    """Stand where the names of T5's configurations are folders, so that importing the peer asks no hub for them."""
    from transformers import T5Config

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name, width in (("small", 512), ("base", 768), ("large", 1024), ("xl", 2048), ("xxl", 4096)):
            T5Config(d_model=width).save_pretrained(Path("google") / f"t5-v1_1-{name}")
        yield


def draw_inputs(table: dict[str, Any], batch: int, device: torch.device) -> Inputs:
    """Random pictures and prompts of full length."""
    side, low = table["resolution"], table["low_resolution"]
    inputs = {
        "x_t": torch.randn(batch, 3, side, side, device=device),
        "tokens": torch.randn(batch, table["text_length"], table["text_width"], device=device),
        "mask": torch.ones(batch, table["text_length"], dtype=torch.bool, device=device),
    }
    return inputs if low is None else inputs | {"low_res": torch.randn(batch, 3, low, low, device=device)}


class Meter:
    """Seconds and peak memory of what is done inside; on the CPU the process's resident memory (Linux)."""

    def __init__(self, device: torch.device):
        self.device = device

    def __enter__(self) -> "Meter":
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            with open("/proc/self/clear_refs", "w") as clear:
                clear.write("5")  # the peak begins anew
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            self.peak = torch.cuda.max_memory_allocated()
        self.seconds = time.perf_counter() - self.start
        if self.device.type == "cpu":
            with open("/proc/self/status") as status:
                self.peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024


def serve(peer: str, table: dict[str, Any]) -> None:
    """Build the network, say what it is, then do what each line asks for."""
    answers, sys.stdout = sys.stdout, sys.stderr  # peers print greetings
    device = torch.device(os.environ.get("PEERS_DEVICE", "cpu"))
    torch.manual_seed(0)
    network, run = PEERS[peer](table)
    network.to(device)

    def forward(batch: int) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return run(network, draw_inputs(table, batch, device))

    def train(batch: int) -> None:
        network.zero_grad(set_to_none=True)
        forward(batch).float().square().mean().backward()

    def sample(batch: int) -> None:
        with torch.inference_mode():
            forward(batch)

    with torch.no_grad(), FlopCounterMode(display=False) as counter:  # inference mode hides autocast from the counter
        forward(1)
    hello = {
        "version": version(PACKAGES.get(peer, peer)),
        "torch": torch.__version__,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "forward_flops": counter.get_total_flops(),
    }
    print(json.dumps(hello), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        network.zero_grad(set_to_none=True)
        with Meter(device) as meter:
            {"train": train, "sample": sample}[asked["step"]](asked["batch"])
        print(json.dumps({"seconds": meter.seconds, "peak_bytes": meter.peak}), file=answers, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("table", type=json.loads, help="an entry of SIZES in peers.py, with text's width and length")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    serve(options.peer, options.table)
