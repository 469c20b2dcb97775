"""Stages applied in turn, 64 -> 256 -> 1024: the only place where more than one network exists."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from tqdm import tqdm

from imagen.errors import UserError
from imagen.fitting import Fitting
from imagen.offload import visiting
from imagen.sizes import Size, stage_sizes
from imagen.stage import GENERATE, Drawn, Stage
from imagen.task import Task
from imagen.text_encoder import TextEncoder
from imagen.types import Prediction, TextEmbedding

log = logging.getLogger(__name__)


@dataclass
class Samples:
    """What a cascade drew: for each stage, ``[p s 3 h w]``, s samples of each of p prompts."""

    prompts: list[str]
    by_stage: list[UInt8[Tensor, "p s 3 _ _"]]
    negative_prompts: list[str] | None = None

    @property
    def final(self) -> UInt8[Tensor, "p s 3 h w"]:
        return self.by_stage[-1]


class Cascade:
    """A base stage and any number of super-resolution stages, each enlarging what the one before it drew."""

    def __init__(self, stages: Sequence[Stage], encoder: TextEncoder) -> None:
        """Without a base stage they only enlarge pictures of the user's (``task.Upscale``).

        Raises: UserError if the stages' resolutions do not chain.
        """
        if not stages:
            raise UserError("stages is empty; name at least one run folder or exported .safetensors")
        for before, stage in pairwise(stages):
            if stage.low_resolution != before.resolution:
                chain = ", ".join(f"{s.low_resolution or 'noise'} -> {s.resolution}" for s in stages)
                raise UserError(f"stages do not chain ({chain}): each must start from what the one before it gives")
        self.stages = list(stages)
        self.encoder = encoder
        self._fitting = [Fitting(f"stage {stage.name}") for stage in stages]
        self._visits: torch.device | None = None

    @property
    def device(self) -> torch.device:
        """Where pictures are drawn."""
        return self.stages[0].device if self._visits is None else self._visits

    def to(self, device: torch.device | str, *, offload: bool = False) -> "Cascade":
        """Draw there from now on; with ``offload`` all but the network or encoder whose turn it is wait on the CPU.

        The pictures are the same, to the bit.
        """
        self._visits = torch.device(device) if offload else None
        for stage in self.stages:
            stage.denoiser.to("cpu" if offload else device)
        self.encoder.to("cpu" if offload else device)
        return self

    def compile(self) -> "Cascade":
        """Compile every stage's network, each size of batch and picture when it is first drawn.

        On a GPU a network is replayed as CUDA graphs unless it is offloaded, which gives its weights new places.
        """
        for stage in self.stages:
            stage.compile(graphs=self._visits is None and stage.device.type == "cuda")
        return self

    def first(self, count: int) -> "Cascade":
        """The first stages alone, where they are."""
        part = Cascade(self.stages[:count], self.encoder)
        part._visits = self._visits
        return part

    def last(self) -> "Cascade":
        """The last stage alone, where it is."""
        part = Cascade(self.stages[-1:], self.encoder)
        part._visits = self._visits
        return part

    def sample(
        self,
        prompts: Sequence[str],
        *,
        task: Task = GENERATE,
        negative_prompts: Sequence[str] | None = None,
        size: int | Sequence[int] | None = None,
        num_samples: int = 1,
        seed: int = 0,
        batch_size: int = 32,
        progress: bool = True,
    ) -> Samples:
        """Draw ``num_samples`` pictures of every prompt; an empty prompt is none, the network's null text.

        A picture is a function of (seed, prompt, sample number): alone or among others it is the same up to rounding.
        ``task`` is what is drawn, pictures from noise by default. ``negative_prompts``, one for all or one a prompt,
        are what guidance leads away from, instead of no text. ``size`` is that of the last stage's pictures, (height,
        width) or one side; its own resolution by default. A prompt that is longer than the encoder takes is warned of,
        with what was cut. ``batch_size`` pictures are drawn at once, fewer where a stage runs out of the GPU's memory.

        Raises: UserError on an empty prompt list, or a task or size that the stages do not suit.
        """
        if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise UserError(f"prompts={prompts!r} is not a list of at least one prompt, each a text")
        if num_samples < 1 or batch_size < 1:
            raise UserError(f"num_samples={num_samples} and batch_size={batch_size} must be at least 1")
        job = self._job(task, size, seed)
        if job.low_res is not None and len(job.low_res) not in (1, len(prompts)):
            raise UserError(
                f"{len(job.low_res)} pictures to enlarge for {len(prompts)} prompts: give one, or one for each prompt"
            )
        negatives = self._negatives(negative_prompts, len(prompts))
        self._warn_of_cuts([*prompts, *(negatives or [])])
        count = task.num_samples(num_samples)
        rows = zip(prompts, negatives or [""] * len(prompts), strict=True)
        wanted = [_Wanted(p, *row, number) for p, row in enumerate(rows) for number in range(count)]
        batches = [wanted[i : i + batch_size] for i in range(0, len(wanted), batch_size)]
        drawn: list[list[Tensor]] = [[] for _ in self.stages]
        total = len(wanted) * job.num_steps
        with tqdm(total=total, unit="step", desc="sampling", disable=not progress) as bar:
            for batch in batches:
                for pictures, kept in zip(self._sample_batch(batch, job, bar.update), drawn, strict=True):
                    kept.append(pictures)
        by_stage = [torch.cat(kept).unflatten(0, (len(prompts), count)) for kept in drawn]
        return Samples(list(prompts), by_stage, negatives)

    def _job(self, task: Task, size: int | Sequence[int] | None, seed: int) -> "_Job":
        first = self.stages[0]
        # the picture that is given has a place of its own in front, with no stride to keep to
        given = [] if first.low_resolution is None else [first.low_resolution]
        resolutions = [*given, *(stage.resolution for stage in self.stages)]
        sizes = stage_sizes(size, resolutions, [*(1 for _ in given), *(stage.stride for stage in self.stages)])
        low_res = task.low_res(*sizes[0])
        if first.low_resolution is not None and low_res is None:
            raise UserError(
                f"stages begins with a super-resolution stage ({first.low_resolution} -> {first.resolution}): put its "
                "base stage first, or enlarge a picture of your own with task=upscale image=photo.png"
            )
        if first.low_resolution is None and low_res is not None:
            raise UserError(
                f"stages begins with a base stage (noise -> {first.resolution}), which enlarges no picture: leave it "
                "out of stages for task=upscale"
            )
        stops = [*(stage.early_stop for stage in self.stages[1:]), math.inf]
        plans = [grid for stage, stop in zip(self.stages, stops, strict=True) for grid in stage.grids(task, stop)]
        own = sizes[-len(self.stages) :]
        return _Job(task, seed, low_res, own, stops, sum(task.num_steps(len(grid) - 1) for grid in plans))

    def _negatives(self, negative_prompts: Sequence[str] | None, count: int) -> list[str] | None:
        if negative_prompts is None:
            return None
        if isinstance(negative_prompts, str) or len(negative_prompts) not in (1, count):
            raise UserError(
                f"negative_prompts={negative_prompts!r} must be a list of one for all, or of one for each of the "
                f"{count} prompts"
            )
        if not any(stage.guidance.reads_null for stage in self.stages):
            log.warning(
                "negative_prompts do nothing where no stage is guided away from no text: give a weight other than 1, "
                "or another guidance"
            )
        return list(negative_prompts) * (count // len(negative_prompts))

    def _warn_of_cuts(self, prompts: list[str]) -> None:
        for prompt, cut in zip(prompts, self.encoder.cut(prompts), strict=True):
            if cut:
                limit = self.encoder.max_length
                shown = cut if len(cut) <= 100 else f"{cut[:100]}..."
                log.warning("prompt %r is longer than the encoder's %d tokens; cut: %r", prompt[:60], limit, shown)

    def _encode(self, batch: "list[_Wanted]") -> tuple[TextEmbedding, TextEmbedding | None]:
        """Prompts, and negative prompts if there are any. An empty one is marked absent, as training marks captions."""
        prompts, negatives = [wanted.prompt for wanted in batch], [wanted.negative for wanted in batch]
        with self._encoder_at_work():
            text = self._encode_once(prompts)
            text = text.dropped(_empty(prompts).to(text.mask.device))
            if _empty(negatives).all():
                return text, None
            # in place of an empty one the prompt, absent: to the network the very null text that guidance would take
            negative = self._encode_once([wanted.negative.strip() or wanted.prompt for wanted in batch])
            return text, negative.dropped(_empty(negatives).to(text.mask.device))

    def _encode_once(self, prompts: list[str]) -> TextEmbedding:
        """A row a prompt, each different prompt encoded once."""
        distinct = list(dict.fromkeys(prompts))
        return self.encoder.encode(distinct).rows([distinct.index(prompt) for prompt in prompts])

    def _sample_batch(
        self, batch: "list[_Wanted]", job: "_Job", advance: Callable[[int], object]
    ) -> list[UInt8[Tensor, "b 3 _ _"]]:
        told = _Told(batch, *self._encode(batch))
        pictures, drawn = [], None
        if job.low_res is not None:
            drawn = Drawn(job.low_res[[wanted.row % len(job.low_res) for wanted in batch]])
        for number, stage in enumerate(self.stages):
            with self._at_work(stage):
                draw = partial(self._draw, number, job, told, drawn, advance)
                drawn = Drawn.joined(self._fitting[number](draw, len(batch)))
            pictures.append(drawn.as_bytes(stage.name))
        return pictures

    def _draw(
        self,
        number: int,
        job: "_Job",
        told: "_Told",
        given: Drawn | None,
        advance: Callable[[int], object],
        rows: slice,
    ) -> Drawn:
        """Some rows of a batch by one stage, from what the stage before it, if any, has ``given``."""
        stage, told = self.stages[number], told.rows(rows)
        device, count, steps = stage.device, len(told.wanted), 0
        generators = [
            job.task.generator(job.seed, wanted.prompt, wanted.number, stage.resolution, device)
            for wanted in told.wanted
        ]

        def on_step(i: int, x: Float[Tensor, "b 3 h w"], prediction: Prediction) -> None:
            nonlocal steps
            steps += count
            advance(count)

        try:
            low_res, negative = given and given.rows(rows).to(device), told.negative and told.negative.to(device)
            cond = stage.condition(told.text.to(device), low_res, generators, negative)
            stop = job.stops[number]
            return stage.draw(cond, job.sizes[number], generators, task=job.task, early_stop=stop, on_step=on_step)
        except torch.OutOfMemoryError:
            advance(-steps)  # which are done again
            raise

    @contextmanager
    def _encoder_at_work(self) -> Iterator[None]:
        if self._visits is None:
            yield
            return
        self.encoder.to(self._visits)
        try:
            yield
        finally:
            self.encoder.to("cpu")

    @contextmanager
    def _at_work(self, stage: Stage) -> Iterator[None]:
        if self._visits is None:
            yield
            return
        try:
            with visiting(stage.denoiser, self._visits):
                yield
        finally:
            stage.guidance.to("cpu")  # which may have a network of its own


def _empty(prompts: list[str]) -> Bool[Tensor, " b"]:
    return torch.tensor([not prompt.strip() for prompt in prompts])


@dataclass(frozen=True)
class _Wanted:
    """One picture that is to be drawn; ``row`` is its prompt's."""

    row: int
    prompt: str
    negative: str
    number: int


@dataclass(frozen=True)
class _Told:
    """Some pictures, their prompts' texts and, if there are any, their negative prompts'."""

    wanted: list[_Wanted]
    text: TextEmbedding
    negative: TextEmbedding | None

    def rows(self, rows: slice) -> "_Told":
        return _Told(self.wanted[rows], self.text.rows(rows), self.negative and self.negative.rows(rows))


@dataclass(frozen=True)
class _Job:
    """What all pictures of one sampling share; ``low_res`` is what the first stage enlarges, one or one a prompt."""

    task: Task
    seed: int
    low_res: Float[Tensor, "_ 3 _ _"] | None
    sizes: list[Size]
    stops: list[float]
    num_steps: int
