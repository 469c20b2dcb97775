"""Stages applied in turn, 64 -> 256 -> 1024: the only place where more than one network exists."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from imagen.conditioning_augmentation import ConditioningAugmentation
from imagen.data.pixels import to_uint8
from imagen.denoiser import Denoiser
from imagen.errors import UserError
from imagen.guidance import Guidance
from imagen.randomness import generator_of, normal_from
from imagen.sampler import OnStep, Sampler
from imagen.schedule import NoiseSchedule
from imagen.spacing import Spacing
from imagen.text_encoder import TextEncoder
from imagen.threshold import Threshold
from imagen.types import Conditioning, Denoise, Prediction, TextEmbedding

log = logging.getLogger(__name__)


@dataclass
class Stage:
    """One trained denoiser and the way it is sampled.

    ``low_resolution`` is None for a base stage; ``augmentation_level`` in [0, 1] is the noise put on the low-resolution
    picture at sampling (paper, appendix D.2); ``bf16`` runs the network under autocast.
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

    @property
    def scale(self) -> int | None:
        """How many times a super-resolution stage enlarges; None for a base stage."""
        return None if self.low_resolution is None else self.resolution // self.low_resolution

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    def grid(self) -> Float[Tensor, " s"]:
        """The log-SNRs that sampling from pure noise visits."""
        return self.spacing.grid(self.schedule, self.sampler.num_steps)

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def guided_denoiser(self) -> Denoise:
        """The denoiser as one sampling calls it: guided, thresholded, in the stage's precision and on its device."""
        self.guidance.to(self.device)
        guided = self.guidance(self.denoiser)

        def denoise(x_t: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"], cond: Conditioning) -> Prediction:
            with self.autocast():  # around guidance, which may have a network of its own
                return guided(x_t, logsnr, cond)

        return self.threshold(denoise)

    @torch.inference_mode()
    def sample(
        self,
        text: TextEmbedding,
        low_res: Float[Tensor, "b 3 hl wl"] | None,
        generators: list[torch.Generator],
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """Pictures in [-1, 1], example i drawn with ``generators[i]`` alone.

        ``low_res`` in [-1, 1] is what a super-resolution stage enlarges; its noise is drawn once, and is the same for
        every step and for both halves of guidance.
        """
        if self.scale is None:
            shape, cond = (self.resolution, self.resolution), Conditioning(text)
        else:
            assert low_res is not None
            level = torch.full((len(generators),), self.augmentation_level, device=low_res.device)
            noise = normal_from(generators, tuple(low_res.shape[1:]))
            cond = Conditioning(text, *self.augmentation(low_res, level, noise))
            shape = (low_res.shape[-2] * self.scale, low_res.shape[-1] * self.scale)
        x = normal_from(generators, (3, *shape))
        return self.sampler(self.guided_denoiser(), x, self.grid(), cond, generators, on_step).clamp(-1, 1)


@dataclass
class Samples:
    """What a cascade drew: for each stage, ``[p s 3 h w]``, s samples of each of p prompts."""

    prompts: list[str]
    by_stage: list[UInt8[Tensor, "p s 3 _ _"]]

    @property
    def final(self) -> UInt8[Tensor, "p s 3 h w"]:
        return self.by_stage[-1]


class Cascade:
    """A base stage and any number of super-resolution stages, each enlarging what the one before it drew."""

    def __init__(self, stages: Sequence[Stage], encoder: TextEncoder) -> None:
        """Raises: UserError if the stages' resolutions do not chain."""
        if not stages:
            raise UserError("stages is empty; name at least one run folder or exported .safetensors")
        previous: int | None = None
        for stage in stages:
            if stage.low_resolution != previous:
                chain = ", ".join(f"{s.low_resolution or 'noise'} -> {s.resolution}" for s in stages)
                raise UserError(f"stages do not chain ({chain}): each must start from what the one before it gives")
            previous = stage.resolution
        self.stages = list(stages)
        self.encoder = encoder

    def to(self, device: torch.device | str) -> "Cascade":
        for stage in self.stages:
            stage.denoiser.to(device)
        self.encoder.to(device)
        return self

    def sample(
        self,
        prompts: Sequence[str],
        *,
        num_samples: int = 1,
        seed: int = 0,
        batch_size: int = 32,
        progress: bool = True,
    ) -> Samples:
        """Draw ``num_samples`` pictures of every prompt.

        A picture is a function of (seed, prompt, sample number): alone or among others it is the same up to rounding.

        A prompt that is longer than the encoder takes is warned of, with what was cut.

        Raises: UserError on an empty prompt list.
        """
        if isinstance(prompts, str) or not prompts:
            raise UserError(f"prompts={prompts!r} is not a list of at least one prompt")
        if num_samples < 1 or batch_size < 1:
            raise UserError(f"num_samples={num_samples} and batch_size={batch_size} must be at least 1")
        self._warn_of_cuts(list(prompts))
        wanted = [(prompt, number) for prompt in prompts for number in range(num_samples)]
        batches = [wanted[i : i + batch_size] for i in range(0, len(wanted), batch_size)]
        steps = len(batches) * sum(stage.sampler.num_steps for stage in self.stages)
        drawn: list[list[Tensor]] = [[] for _ in self.stages]
        with tqdm(total=steps, unit="step", desc="sampling", disable=not progress) as bar:
            for batch in batches:
                text = self.encoder.encode([prompt for prompt, _ in batch])
                for pictures, kept in zip(self._sample_batch(batch, text, seed, bar.update), drawn, strict=True):
                    kept.append(pictures)
        by_stage = [torch.cat(kept) for kept in drawn]
        return Samples(list(prompts), [p.unflatten(0, (len(prompts), num_samples)) for p in by_stage])

    def _warn_of_cuts(self, prompts: list[str]) -> None:
        for prompt, cut in zip(prompts, self.encoder.cut(prompts), strict=True):
            if cut:
                limit = self.encoder.max_length
                log.warning("prompt %r is longer than the encoder's %d tokens; cut: %r", prompt[:60], limit, cut)

    def _sample_batch(
        self, batch: list[tuple[str, int]], text: TextEmbedding, seed: int, advance: Callable[[], object]
    ) -> list[UInt8[Tensor, "b 3 _ _"]]:
        pictures: list[Tensor] = []
        low_res = None
        for stage in self.stages:
            device = stage.device
            generators = [generator_of(seed, p, number, stage.resolution, device=device) for p, number in batch]
            low_res = stage.sample(text.to(device), low_res, generators, lambda i, x, prediction: advance())
            pictures.append(to_uint8(low_res).cpu())
        return pictures
