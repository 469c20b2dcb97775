"""What raters compare: a trial for each prompt, control trials among them, and whose pictures are on which side."""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from imagen.prompt_files import Prompt

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Trial:
    """Two sets of pictures for one caption: all that a rater is shown."""

    id: str
    kind: str
    caption: str
    left: list[str]
    right: list[str]


@dataclass(frozen=True)
class Truth:
    """What a rater must not know: which side model A is on, or, of a control trial, which side is right."""

    kind: str
    prompt: str
    a_is: Side | None
    right_answer: Side | None = None


@dataclass(frozen=True)
class Comparison:
    """The pictures' file names of both models for one prompt."""

    prompt: Prompt
    a: list[str]
    b: list[str]


@dataclass(frozen=True)
class Control:
    """A control: a model's pictures for the prompt against spoilt ones of another prompt."""

    prompt: Prompt
    good: list[str]
    spoilt: list[str]


def choose_controls(prompts: Sequence[Prompt], num_controls: int, seed: int) -> list[tuple[Prompt, Prompt, bool]]:
    """``num_controls`` of each kind: the prompt, another whose pictures are spoilt, and whether A draws both.

    A kind with fewer prompts has as many controls as prompts.
    """
    rng = random.Random(f"controls {seed}")
    chosen = []
    for kind in kinds(prompts):
        own = [prompt for prompt in prompts if prompt.kind == kind]
        for number, prompt in enumerate(rng.sample(own, min(num_controls, len(own)))):
            others = [other for other in prompts if other.text != prompt.text] or [prompt]
            chosen.append((prompt, rng.choice(others), number % 2 == 0))
    return chosen


def make_trials(
    comparisons: Sequence[Comparison], controls: Sequence[Control], seed: int
) -> tuple[list[Trial], dict[str, Truth]]:
    """The trials in an order that says nothing, and the truth of each by its id.

    Within a kind A is on the left in one half of the trials, as near as can be, and so is what is right in controls.
    """
    rng = random.Random(f"sides {seed}")
    trials: list[Trial] = []
    truths: dict[str, Truth] = {}
    for kind in kinds([comparison.prompt for comparison in comparisons]):
        compared = [one for one in comparisons if one.prompt.kind == kind]
        for one, side in zip(compared, _sides(len(compared), rng), strict=True):
            identity = _identity(seed, kind, one.prompt.text, "comparison")
            trials.append(_trial(identity, one.prompt, one.a, one.b, side))
            truths[identity] = Truth(kind, one.prompt.text, a_is=side)
        checks = [one for one in controls if one.prompt.kind == kind]
        for one, side in zip(checks, _sides(len(checks), rng), strict=True):
            identity = _identity(seed, kind, one.prompt.text, "control")
            trials.append(_trial(identity, one.prompt, one.good, one.spoilt, side))
            truths[identity] = Truth(kind, one.prompt.text, a_is=None, right_answer=side)
    return sorted(trials, key=lambda trial: trial.id), truths


def kinds(prompts: Sequence[Prompt]) -> list[str]:
    """The kinds, in the order in which they are first met."""
    return list(dict.fromkeys(prompt.kind for prompt in prompts))


def study_identity(trials: Sequence[Trial], truths: dict[str, Truth]) -> str:
    """A hash of all of it, so that ratings are never read with the key of another study."""
    whole: list[Any] = [[asdict(trial), asdict(truths[trial.id])] for trial in trials]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:12]


def _sides(count: int, rng: random.Random) -> list[Side]:
    first: Side = rng.choice(("left", "right"))  # which has one more, of an odd number
    second: Side = "right" if first == "left" else "left"
    sides: list[Side] = [first if i % 2 == 0 else second for i in range(count)]
    rng.shuffle(sides)
    return sides


def _trial(identity: str, prompt: Prompt, first: list[str], second: list[str], side: Side) -> Trial:
    left, right = (first, second) if side == "left" else (second, first)
    return Trial(identity, prompt.kind, prompt.text, left, right)


def _identity(seed: int, *what: str) -> str:
    return hashlib.sha256(json.dumps([seed, *what]).encode()).hexdigest()[:12]
