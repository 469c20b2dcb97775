"""Benchmarks of presets: each measured in a process of its own, and its figures recorded, or why there are none."""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from common import ceiling, free_memory, in_a_process, parser_of, prepare, record, rounded
from omegaconf import DictConfig, OmegaConf

from imagen.cli import compose
from imagen.errors import UserError
from imagen.types import TextEmbedding

PAPER = tuple(f"imagen_{size}" for size in ("base64_300m", "base64_500m", "base64_1b", "base64", "sr256", "sr1024"))
DEMO = ("demo_base16", "demo_sr64", "demo_sr256")

Measure = Callable[[DictConfig, argparse.Namespace, torch.device], dict[str, Any]]
"""The figures of a config; ``tflops_per_s`` among them."""

Cost = Callable[[DictConfig, argparse.Namespace, torch.device], tuple[float, float]]
"""The fewest operations and bytes that measuring a config takes, known before anything is built."""


def parser_of_presets(description: str | None) -> argparse.ArgumentParser:
    """A command line with what every benchmark of presets takes."""
    parser = parser_of(description)
    parser.add_argument("--presets", nargs="+", default=[*DEMO, *PAPER], help="names of experiments")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network, as compile=true does")
    parser.add_argument("--limit-s", type=float, default=90.0, help="what must take longer is not tried")
    parser.add_argument("--overrides", nargs="*", default=[], help="any.key=value of train.py, for all presets")
    parser.add_argument("--case", help="the entry's name if it is not to be the preset's, for overrides say")
    parser.add_argument("--here", action="store_true", help="measure one preset in this process and print JSON")
    return parser


def run(benchmark: str, script: str, options: argparse.Namespace, measure: Measure, cost: Cost) -> None:
    """Measure and record every preset; with ``--here`` measure the first alone, in this process."""
    device = prepare(options)
    if options.here:
        print(json.dumps(measure(config_of(options.presets[0], options.overrides), options, device)))
        return
    if options.case and len(options.presets) > 1:
        raise UserError(f"--case={options.case} names one entry: give one of --presets, not {len(options.presets)}")
    configs = {preset: config_of(preset, options.overrides) for preset in options.presets}
    rate = ceiling(device)
    for preset, cfg in configs.items():
        figures: dict[str, Any] = {"ceiling_tflops": rate and rounded(rate / 1e12)}
        least = cost(cfg, options, device)
        if reason := hindrance(*least, options.limit_s, rate, device):
            figures["not_run"] = reason
        else:
            figures |= in_a_process(script, [*sys.argv[1:], "--here", "--presets", preset])
        if rate and "tflops_per_s" in figures:
            figures["utilisation"] = rounded(figures["tflops_per_s"] * 1e12 / rate)
        case = options.case or f"{preset}{' compiled' if options.compile else ''}"
        path = record(benchmark, case, figures, device, options.results)
        print(f"{case}: {json.dumps(figures)}\nwritten to {path}", flush=True)


def hindrance(flops: float, size: float, limit_s: float, rate: float | None, device: torch.device) -> str | None:
    """Why something is not tried: it cannot end within ``limit_s`` or fit the memory; None if it might."""
    if rate is not None and flops / rate > limit_s:
        return f"{flops / 1e12:.1f} TFLOP cannot be done within {limit_s:.0f} s at {rate / 1e12:.2f} TFLOP/s"
    free = free_memory(device)
    if free is not None and size > 0.8 * free:
        return f"it needs over {size / 2**30:.0f} GiB of memory, and {free / 2**30:.0f} GiB are free"
    return None


def config_of(preset: str, overrides: list[str]) -> DictConfig:
    """The preset's config with ``overrides``, without loggers; its data set need not be there."""
    cfg = compose("train", [f"experiment={preset}", "logger=[]", *overrides])
    if OmegaConf.is_missing(cfg.data, "root"):
        cfg.data.root = "nowhere"
    return cfg


def text_of(cfg: DictConfig, size: int) -> TextEmbedding:
    """Random prompts of the encoder's full length."""
    length, width = cfg.text_encoder.max_length, cfg.text_encoder.width
    return TextEmbedding(torch.randn(size, length, width), torch.ones(size, length, dtype=torch.bool))
