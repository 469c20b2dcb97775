"""What drawing costs: milliseconds a sampling step, pictures a second at the preset's number of steps, peak memory.

    python benchmarks/sample.py --presets demo_base16 imagen_base64_300m --batch-size 4

A step is one of the preset's own sampler with its own guidance and threshold; a few steps are timed, and pictures a
second are computed for as many as the preset takes. Weights are random, prompts of the encoder's full length; each
preset runs in a process of its own. Utilisation as in train_step.py, over the network's calls as they were made.
"""

from argparse import Namespace
from typing import Any

import torch
from common import at_least, rounded, timed
from kinds import milliseconds_by_kind
from omegaconf import DictConfig
from presets import parser_of_presets, run, text_of

from imagen import build
from imagen.cli import one_sentence
from imagen.denoiser import Denoiser
from imagen.devices import peak_memory
from imagen.randomness import generator_of
from imagen.stage import Stage
from imagen.summary import summarize


class Drawing:
    """One call draws a batch in ``steps`` steps of the preset's sampler; ``rows`` counts what its network was given."""

    def __init__(self, cfg: DictConfig, batch_size: int, steps: int, device: torch.device, *, compiled: bool) -> None:
        network = build.build_network(cfg).eval().requires_grad_(False).to(device)
        if cfg.channels_last:
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if compiled:
            network.compile(fullgraph=True)
        network.register_forward_pre_hook(self._count)
        denoiser = Denoiser(network, build.instantiate(cfg.parameterization))
        self.stage = Stage(cfg.name, denoiser, **build.sampling_parts(cfg))
        self.own_steps, self.stage.sampler.num_steps = self.stage.sampler.num_steps, steps
        self.text, self.low_res, self.rows = text_of(cfg, batch_size).to(device), None, 0
        if cfg.low_resolution is not None:
            self.low_res = torch.rand(batch_size, 3, cfg.low_resolution, cfg.low_resolution, device=device) * 2 - 1
        self.generators = [generator_of(0, i, device=device) for i in range(batch_size)]

    def _count(self, module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        self.rows += len(inputs[0])

    def __call__(self) -> None:
        self.stage.sample(self.text, self.low_res, self.generators)


def measure(cfg: DictConfig, options: Namespace, device: torch.device) -> dict[str, Any]:
    """The figures of one preset, of a step each; the peak is read before the profiler adds to it."""
    steps, batch_size = options.steps, options.batch_size
    drawing = Drawing(cfg, batch_size, steps, device, compiled=options.compile)
    drawing()
    drawing.rows = 0
    took = timed(drawing, device, options.rounds, warmup=0)
    memory, flops = peak_memory(device), summarize(cfg)["forward_flops"] * drawing.rows / options.rounds
    return {
        "batch_size": batch_size,
        "precision": cfg.trainer.precision,
        "images_per_s": rounded(batch_size * steps / took.median / drawing.own_steps),
        **{name: rounded(ms / steps) for name, ms in took.figures().items() if name.startswith("ms")},
        "rounds": options.rounds,
        "steps": drawing.own_steps,
        "timed_steps": steps,
        "tflops_per_s": rounded(flops / took.median / 1e12),
        "memory_mib": memory // 2**20,
        "ms_by_kind": milliseconds_by_kind(drawing, device, steps),
    }


def cost(cfg: DictConfig, options: Namespace, device: torch.device) -> tuple[float, float]:
    """Operations of the steps without guidance, and bytes of the weights."""
    counts = summarize(cfg)
    return counts["forward_flops"] * options.batch_size * options.steps, 4 * counts["parameters"]


def main() -> None:
    parser = parser_of_presets(__doc__)
    parser.add_argument("--batch-size", type=at_least(1), default=1, help="pictures drawn together")
    parser.add_argument("--steps", type=at_least(1), default=2, help="of the sampler, timed in each round")
    run("sample", __file__, parser.parse_args(), measure, cost)


if __name__ == "__main__":
    with one_sentence("train"):
        main()
