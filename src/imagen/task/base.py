"""What every task may change of a cascade's sampling: where a stage's walk begins, how it goes, and on whose noise."""

from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.randomness import generator_of
from imagen.sampler import OnStep, Sampler
from imagen.types import Conditioning, Denoise

Walk = Callable[
    [
        Denoise,
        Float[Tensor, "b 3 h w"],
        Float[Tensor, " s"],
        Conditioning,
        list[torch.Generator],
        OnStep | None,
    ],
    Float[Tensor, "b 3 h w"],
]
"""A sampler, or a sampler wrapped by a task: from x at the grid's first level to a sample at its last."""


class Task:
    """The same models put to another use. Every hook does by default what drawing from noise needs.

    ``prompts`` is what is drawn where the user names no prompt, as ``imagen.prompts.read_prompts`` takes it.
    """

    prompts: ClassVar[str | list[str]] = "demo"

    def num_samples(self, num_samples: int) -> int:
        """How many pictures a prompt gives where the user asked for ``num_samples``."""
        return num_samples

    def generator(
        self, seed: int, prompt: str, sample: int, resolution: int, device: torch.device | str
    ) -> torch.Generator:
        """The noise of one picture at the stage of ``resolution``."""
        return generator_of(seed, prompt, sample, resolution, device=device)

    def low_res(self, height: int, width: int) -> Float[Tensor, "_ 3 {height} {width}"] | None:
        """What the first stage, then a super-resolution one, enlarges, in [-1, 1]: one for all prompts or one for each.

        None where it enlarges none.
        """
        return None

    def strength(self, enlarging: bool) -> float:
        """The time in (0, 1] of its schedule at which a stage begins; ``enlarging``: a super-resolution stage."""
        return 1.0

    def start(self, noise: Float[Tensor, "b 3 h w"], logsnr: float) -> Float[Tensor, "b 3 h w"]:
        """Where the walk begins, at log-SNR ``logsnr``, out of standard normal noise."""
        return noise

    def walk(self, sampler: Sampler) -> Walk:
        """How the walk goes: the sampler itself, or a wrapper of it."""
        return sampler

    def num_steps(self, num_steps: int) -> int:
        """How many steps the wrapped sampler makes over a grid of ``num_steps`` steps."""
        return num_steps


class Generate(Task):
    """Pictures from noise and prompts: what a cascade is for."""
