"""Randomness with an address: every draw is a function of who asks for it, never of what was drawn before.

In training the address is (seed, step, position in the global batch); at sampling it is (seed, prompt, sample). Ranks,
gradient accumulation, workers and resuming change none of it.
"""

import hashlib
import json
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def seed_of(*address: int | str) -> int:
    """A 63-bit seed for an address; different addresses give unrelated seeds, on every machine and Python the same."""
    digest = hashlib.blake2b(json.dumps(address).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_of(*address: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that starts where ``address`` says."""
    return torch.Generator(device).manual_seed(seed_of(*address))


def normal_from(
    generators: list[torch.Generator], shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "b ..."]:
    """Standard normal noise, example i from generator i alone: neighbours in the batch change nothing."""
    return torch.stack([_normal(generator, shape, dtype) for generator in generators])


class BetweenGenerators(torch.Generator):
    """Its every draw of normal noise lies between two generators' draws: ``cos(a) first + sin(a) second``.

    a = ``way`` * pi / 2, so that 0 is the first, 1 the second, and all between, on the circle through two independent
    draws, is standard normal noise as well. Only ``normal_from`` knows of it.
    """

    def __new__(cls, first: torch.Generator, second: torch.Generator, way: float) -> "BetweenGenerators":
        return super().__new__(cls, first.device)  # pyright: ignore[reportCallIssue]  # the stub has only __init__

    def __init__(self, first: torch.Generator, second: torch.Generator, way: float) -> None:
        self.ends = (first, second)
        self.way = way


def _normal(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> Float[Tensor, "..."]:
    if isinstance(generator, BetweenGenerators):
        first, second = (_normal(end, shape, dtype) for end in generator.ends)
        angle = generator.way * math.pi / 2
        return math.cos(angle) * first + math.sin(angle) * second
    return torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)


@dataclass(frozen=True)
class TrainingAddress:
    """The draws of one local batch: rows ``first .. first + count`` of the global batch of one step.

    ``stream`` names what is drawn (time, noise, ...), so that streams are independent of one another.
    """

    seed: int
    step: int
    first: int
    count: int
    global_count: int
    device: torch.device | str = "cpu"

    def _global_uniform(self, stream: str) -> tuple[Float[Tensor, " g"], torch.Generator]:
        # small and drawn whole on the CPU: the same numbers on every rank, then cut to this rank's rows
        generator = generator_of(self.seed, self.step, stream)
        return torch.rand(self.global_count, generator=generator), generator

    def _local(self, values: Float[Tensor, " g"]) -> Float[Tensor, " b"]:
        return values[self.first : self.first + self.count].to(self.device, non_blocking=True)

    def uniform(self, stream: str) -> Float[Tensor, " b"]:
        """Independent draws from U(0, 1)."""
        return self._local(self._global_uniform(stream)[0])

    def stratified(self, stream: str) -> Float[Tensor, " b"]:
        """Draws from U(0, 1), one in each of ``global_count`` equal strata, in random order over the global batch."""
        within, generator = self._global_uniform(stream)
        stratum = torch.randperm(self.global_count, generator=generator)
        return self._local((stratum + within) / self.global_count)

    def normal(self, stream: str, shape: tuple[int, ...]) -> Float[Tensor, "b ..."]:
        """Standard normal noise of ``shape`` per example."""
        positions = range(self.first, self.first + self.count)
        generators = [generator_of(self.seed, self.step, stream, i, device=self.device) for i in positions]
        return normal_from(generators, shape)
