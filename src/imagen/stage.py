"""One trained denoiser and the way it is sampled: what a cascade is made of."""

import itertools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from imagen.conditioning_augmentation import ConditioningAugmentation
from imagen.data.pixels import to_uint8
from imagen.denoiser import Denoiser
from imagen.errors import UserError
from imagen.guidance import Guidance
from imagen.randomness import normal_from
from imagen.sampler import OnStep, Sampler
from imagen.schedule import NoiseSchedule
from imagen.sizes import Size
from imagen.spacing import Spacing
from imagen.task import Generate, Task
from imagen.threshold import Threshold
from imagen.types import Conditioning, Denoise, Prediction, TextEmbedding

GENERATE = Generate()


@dataclass
class Drawn:
    """One stage's pictures in [-1, 1] and, where it was to stop on the way to them, its unfinished sample there."""

    pictures: Float[Tensor, "b 3 h w"]
    unfinished: Float[Tensor, "b 3 h w"] | None = None

    def as_bytes(self, stage: str) -> UInt8[Tensor, "b 3 h w"]:
        """The pictures in 0..255, on the CPU. Raises: UserError naming the ``stage`` if they are not finite."""
        if not self.pictures.isfinite().all():
            raise UserError(
                f"what stage {stage} draws is not finite: most likely its training diverged; train it again with "
                "another setting, a lower optimizer.lr say"
            )
        return to_uint8(self.pictures).cpu()

    def rows(self, rows: slice) -> "Drawn":
        return Drawn(self.pictures[rows], None if self.unfinished is None else self.unfinished[rows])

    def to(self, device: torch.device | str) -> "Drawn":
        return Drawn(self.pictures.to(device), None if self.unfinished is None else self.unfinished.to(device))

    @classmethod
    def joined(cls, parts: "Sequence[Drawn]") -> "Drawn":
        """All of several parts, which one walk has drawn piece by piece."""
        unfinished = [part.unfinished for part in parts if part.unfinished is not None]
        return cls(torch.cat([part.pictures for part in parts]), torch.cat(unfinished) if unfinished else None)


@dataclass
class Stage:
    """One trained denoiser and the way it is sampled.

    ``low_resolution`` is None for a base stage; ``augmentation_level`` in [0, 1] is the noise put on the low-resolution
    picture at sampling (paper, appendix D.2); ``bf16`` runs the network under autocast; with ``graphs`` it was compiled
    into CUDA graphs.
    """

    name: str
    denoiser: Denoiser
    schedule: NoiseSchedule
    sampler: Sampler
    spacing: Spacing
    guidance: Guidance
    threshold: Threshold
    augmentation: ConditioningAugmentation
    augmentation_level: float
    resolution: int
    low_resolution: int | None
    bf16: bool
    graphs: bool = False

    @property
    def scale(self) -> int | None:
        """How many times a super-resolution stage enlarges; None for a base stage."""
        return None if self.low_resolution is None else self.resolution // self.low_resolution

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def stride(self) -> int:
        """What the sides of its pictures must be multiples of."""
        return cast(int, self.denoiser.network.stride)

    @property
    def early_stop(self) -> float:
        """The log-SNR at which it takes over the unfinished sample of the stage before, infinite if it does not."""
        return self.augmentation.early_stop(self.augmentation_level)

    def grid(self) -> Float[Tensor, " s"]:
        """The log-SNRs that sampling from pure noise visits."""
        return self.spacing.grid(self.schedule, self.sampler.num_steps)

    def grids(self, task: Task, early_stop: float) -> list[Float[Tensor, " _"]]:
        """The log-SNRs that the task visits: in two parts where it is to stop on the way, and gets there."""
        strength = torch.tensor(task.strength(self.scale is not None), dtype=torch.float64, device="cpu")
        start = self.schedule.logsnr(strength).item()
        grid = self.grid()
        if start > grid[0]:
            grid = torch.cat([_through(grid[:-1], start), grid[-1:]])
            grid = grid[grid >= start]
        if not grid[0] < early_stop < grid[-1]:
            return [grid]
        grid = torch.cat([grid[:1], _through(grid[1:-1], early_stop), grid[-1:]])
        return [grid[grid <= early_stop], grid[grid >= early_stop]]

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def round_weights(self) -> None:
        """Keep in bfloat16 what autocast would round to it at every call: less memory and time, the same pictures."""
        for module in self.denoiser.network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.to(torch.bfloat16)

    def compile(self, *, graphs: bool) -> None:
        """Compile the network in place, for each shape by itself; ``graphs`` replays it as CUDA graphs."""
        self.denoiser.network.compile(fullgraph=True, dynamic=False, mode="reduce-overhead" if graphs else None)
        self.graphs = graphs

    def guided_denoiser(self) -> Denoise:
        """The denoiser as one sampling calls it: guided, thresholded, in the stage's precision and on its device."""
        self.guidance.to(self.device)
        guided = self.guidance(_owned(self.denoiser) if self.graphs else self.denoiser)

        def denoise(x_t: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"], cond: Conditioning) -> Prediction:
            with self.autocast():  # around guidance, which may have a network of its own
                return guided(x_t, logsnr, cond)

        return self.threshold(denoise)

    @torch.no_grad()
    def sample(
        self,
        text: TextEmbedding,
        low_res: Float[Tensor, "b 3 hl wl"] | None,
        generators: list[torch.Generator],
    ) -> Float[Tensor, "b 3 h w"]:
        """Pictures in [-1, 1] of the stage's own resolution, or ``low_res`` in [-1, 1] enlarged."""
        given, size = None, (self.resolution, self.resolution)
        if low_res is not None and self.scale is not None:
            given, size = Drawn(low_res), (low_res.shape[-2] * self.scale, low_res.shape[-1] * self.scale)
        return self.draw(self.condition(text, given, generators), size, generators).pictures

    @torch.no_grad()
    def condition(
        self,
        text: TextEmbedding,
        low_res: Drawn | None,
        generators: list[torch.Generator],
        negative: TextEmbedding | None = None,
    ) -> Conditioning:
        """What the network is told at every step, in both halves of guidance.

        ``low_res`` is what a super-resolution stage enlarges, noised once; the unfinished sample in it, if any, has the
        noise already.
        """
        if self.scale is None:
            return Conditioning(text, negative=negative)
        assert low_res is not None
        level = torch.full((len(generators),), self.augmentation_level, device=low_res.pictures.device)
        noise = normal_from(generators, tuple(low_res.pictures.shape[1:]))
        corrupted, logsnr = self.augmentation(low_res.pictures, level, noise)
        if low_res.unfinished is not None:
            corrupted = low_res.unfinished
        return Conditioning(text, corrupted, logsnr, negative)

    @torch.no_grad()
    def draw(
        self,
        cond: Conditioning,
        size: Size,
        generators: list[torch.Generator],
        *,
        task: Task = GENERATE,
        early_stop: float = math.inf,
        on_step: OnStep | None = None,
    ) -> Drawn:
        """Pictures of ``size``, example i drawn with ``generators[i]`` alone.

        And the unfinished sample at log-SNR ``early_stop``, if the task's walk passes there. ``on_step`` is given each
        step's number in the whole of the walk, however the task and ``early_stop`` cut it in pieces.
        """
        count = itertools.count()

        def step(i: int, x: Float[Tensor, "b 3 h w"], prediction: Prediction) -> None:
            if on_step is not None:
                on_step(next(count), x, prediction)

        denoise, walk = self.guided_denoiser(), task.walk(self.sampler)
        first, *rest = self.grids(task, early_stop)
        x = task.start(normal_from(generators, (3, *size)), first[0].item())
        x, unfinished = walk(denoise, x, first, cond, generators, step), None
        for grid in rest:
            x, unfinished = walk(denoise, x, grid, cond, generators, step), x
        return Drawn(x.clamp(-1, 1), unfinished)


def _owned(denoise: Denoise) -> Denoise:
    """The same with predictions that last: the next replay of CUDA graphs writes where the one before it did."""

    def owned(x_t: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"], cond: Conditioning) -> Prediction:
        torch.compiler.cudagraph_mark_step_begin()
        said = denoise(x_t, logsnr, cond)
        return Prediction(said.x0.clone(), _copy(said.renoise_x0), _copy(said.gamma))

    return owned


def _copy(part: Tensor | None) -> Tensor | None:
    return None if part is None else part.clone()


def _through(levels: Float[Tensor, " _"], logsnr: float) -> Float[Tensor, " _"]:
    """The levels with the nearest to ``logsnr``, if there is any, moved there.

    Moved, not joined by it: a tiny step would blow up what a multistep sampler extrapolates over the next.
    """
    others = levels[(levels - logsnr).abs().argsort()[1:]]
    return torch.cat([others, levels.new_tensor([logsnr])]).sort().values
