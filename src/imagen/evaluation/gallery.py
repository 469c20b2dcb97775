"""Many prompts' pictures in a folder: drawn by any number of processes, taken up again where they stopped.

Prompts are cut into batches before the batches are dealt out, and a batch that is not whole is drawn anew: so the bits
of a picture depend neither on the number of processes nor on where they were stopped.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Float, UInt8
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from tqdm import tqdm

from imagen.cascade import Cascade
from imagen.data.pixels import to_float
from imagen.errors import UserError
from imagen.files import atomic_write, read_json, write_json
from imagen.image_grid import to_pil
from imagen.metric.pictures import InFiles, Pictures
from imagen.stage import GENERATE
from imagen.task import Task

SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's word for a picture that a trained model made."""


class Enlarge(Task):
    """The first stage, a super-resolution stage, is given a picture of its own for each prompt."""

    def __init__(self, given: UInt8[Tensor, "p 3 h w"]) -> None:
        self.given = given

    def low_res(self, height: int, width: int) -> Float[Tensor, "p 3 {height} {width}"]:
        return to_float(self.given)


@dataclass(frozen=True)
class Gallery:
    """``<folder>/<side>/<prompt>_<sample>.png`` for the pictures of every stage, and ``samples.json``.

    ``sides`` are the stages' resolutions; ``settings`` is all that decides the pictures beside the prompts, plain.
    ``given`` are pictures to enlarge, one a prompt, where the first stage is a super-resolution stage.
    """

    folder: Path
    prompts: Sequence[str]
    sides: Sequence[int]
    settings: Mapping[str, Any]
    num_samples: int
    batch_size: int
    seed: int
    given: Pictures | None = None

    def begin(self) -> None:
        """Make the folder and write ``samples.json``. Raises: UserError if it holds pictures of other settings."""
        path, wanted = self.folder / "samples.json", self.plan
        if not path.is_file():
            write_json(path, wanted)
            return
        there = read_json(path, "the same command draws on")
        if differing := [key for key in sorted(wanted) if there.get(key) != wanted[key]]:
            raise UserError(
                f"{self.folder} holds pictures of other settings ({', '.join(differing)}): delete it, or choose "
                "another output_dir"
            )

    @cached_property
    def plan(self) -> dict[str, Any]:
        """What ``samples.json`` says: all that decides the pictures, and their files; as JSON has it."""
        plan = {
            **self.settings,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "size": [self.sides[-1]] * 2,
            "given": None if self.given is None else self.given.digest,
            "pictures": [
                {"file": self._name(p, s, self.sides[-1]), "prompt": prompt, "negative_prompt": None, "sample": s}
                for p, prompt in enumerate(self.prompts)
                for s in range(self.num_samples)
            ],
        }
        return json.loads(json.dumps(plan))

    @cached_property
    def batches(self) -> list[range]:
        """Rows of ``prompts``, as many at a time as ``batch_size`` pictures are."""
        step, count = self.step, len(self.prompts)
        return [range(first, min(first + step, count)) for first in range(0, count, step)]

    @property
    def step(self) -> int:
        """How many prompts a batch is of."""
        return max(1, self.batch_size // self.num_samples)

    def missing(self) -> list[range]:
        """The batches of which a picture is missing."""
        return [batch for batch in self.batches if not all(path.is_file() for path in self._files(batch))]

    def draw(self, cascade: Cascade, worker_index: int, worker_count: int) -> None:
        """Draw this worker's share of the batches, as far as they are missing."""
        share, missing = self.batches[worker_index::worker_count], self.missing()
        todo = [batch for batch in share if batch in missing]
        tasks = self._tasks(todo)
        for batch, task in tqdm(tasks, desc=self.folder.name, unit="batch", total=len(todo), disable=not todo):
            samples = cascade.sample(
                [self.prompts[p] for p in batch],
                task=task,
                num_samples=self.num_samples,
                seed=self.seed,
                batch_size=self.batch_size,
                progress=False,
            )
            for side, pictures in zip(self.sides, samples.by_stage, strict=True):
                for p, row in zip(batch, pictures, strict=True):
                    for s, picture in enumerate(row):
                        self._save(picture, p, s, side)

    def _tasks(self, todo: Sequence[range]) -> Iterator[tuple[range, Task]]:
        """What is done in each of these batches."""
        if self.given is None:
            yield from ((batch, GENERATE) for batch in todo)
        elif todo:
            given = zip(self.batches, self.given.batches(self.step), strict=True)
            yield from ((batch, Enlarge(pictures)) for batch, pictures in given if batch in todo)

    def pictures(self, side: int) -> InFiles:
        """The whole gallery at one stage's resolution, each picture with its prompt."""
        rows = [(p, s) for p in range(len(self.prompts)) for s in range(self.num_samples)]
        files = [self.folder / self._name(p, s, side) for p, s in rows]
        return InFiles(files, [self.prompts[p] for p, _ in rows])

    def _save(self, picture: Any, p: int, s: int, side: int) -> None:
        said = {
            "Description": self.prompts[p],
            "Source": "AI generated",
            "DigitalSourceType": SOURCE,
            "seed": str(self.seed),
            "sample": str(s),
            "config": ", ".join(self.settings.get("configs", [])),
        }
        info = PngInfo()
        for key, value in said.items():
            info.add_itxt(key, value)
        with atomic_write(self.folder / self._name(p, s, side)) as temporary:
            to_pil(picture).save(temporary, format="PNG", pnginfo=info)

    def _files(self, batch: range) -> list[Path]:
        return [
            self.folder / self._name(p, s, side) for p in batch for s in range(self.num_samples) for side in self.sides
        ]

    def _name(self, p: int, s: int, side: int) -> str:
        return f"{side}/{p:05d}_{s}.png"
