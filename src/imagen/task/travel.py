"""From one seed's picture to another's: the noise moves, the prompt stays."""

import torch

from imagen.errors import UserError
from imagen.randomness import BetweenGenerators, generator_of
from imagen.task.base import Task


class Travel(Task):
    """``frames`` pictures of each prompt, the first drawn as by the seed itself, the last as by ``to_seed``.

    All noise, at the start and in the steps, at every stage, lies on the circle between the two seeds' (spherical
    interpolation, DDIM, arXiv 2010.02502, section 5.3), so that stochastic samplers travel as smoothly as others, and
    each frame is a fair sample. Raises: UserError on fewer than two frames.
    """

    def __init__(self, *, to_seed: int, frames: int) -> None:
        if frames < 2:
            raise UserError(f"frames={frames} must be at least 2: the two seeds' own pictures")
        self.to_seed = to_seed
        self.frames = frames

    def num_samples(self, num_samples: int) -> int:
        if num_samples != 1:
            raise UserError(f"num_samples={num_samples} must be 1 in travel, which draws frames={self.frames} a prompt")
        return self.frames

    def generator(
        self, seed: int, prompt: str, sample: int, resolution: int, device: torch.device | str
    ) -> torch.Generator:
        start, end = (generator_of(own, prompt, 0, resolution, device=device) for own in (seed, self.to_seed))
        return BetweenGenerators(start, end, sample / (self.frames - 1))
