"""Raters' files, as the page saves them: read, checked, one answer a rater and trial."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagen.human_eval.trials import Truth

FORMAT = "imagen human evaluation 1"
QUESTIONS = ("quality", "alignment")
ANSWERS = ("left", "indifferent", "right")


@dataclass(frozen=True)
class Answer:
    """What one rater said of one trial, in sides."""

    rater: str
    trial: str
    quality: str
    alignment: str


@dataclass(frozen=True)
class Rater:
    """How many of a rater's answers to control trials are right."""

    name: str
    controls_right: int
    controls: int

    def attentive(self, least: float) -> bool:
        """Whether the share that is right is at least ``least``; without control trials only if that asks for none."""
        return self.controls_right >= least * self.controls if self.controls else least == 0


def files_in(paths: Iterable[Path]) -> list[Path]:
    """The files themselves and, of folders, their .json files."""
    return [file for path in paths for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]


@dataclass(frozen=True)
class Ratings:
    """A rater's file: when it was begun and saved, each in an order of time, its answers, what is wrong with others."""

    started: str
    saved: str
    answers: list[Answer]
    faults: list[str]


def read_ratings(path: Path, study: str, trials: Iterable[str]) -> Ratings:
    """A file's answers to ``trials``. Raises: ValueError, saying in words why it is no file of this study."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError("is not JSON: ask for the file again") from error
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise ValueError(f"is not what the page saves ({FORMAT!r})")
    if saved.get("study") != study:
        raise ValueError(f"is of the study {saved.get('study')!r}, not of {study!r}")
    rater, entries = saved.get("rater"), saved.get("answers")
    if not isinstance(rater, str) or not rater.strip() or not isinstance(entries, list):
        raise ValueError("has no rater, or no answers")
    known = set(trials)
    faults = [fault for entry in entries if (fault := _fault(entry, known))]
    fit = [entry for entry in entries if not _fault(entry, known)]
    answers = [Answer(rater.strip(), entry["trial"], entry["quality"], entry["alignment"]) for entry in fit]
    return Ratings(str(saved.get("started")), str(saved.get("saved")), answers, faults)


def _fault(entry: Any, known: set[str]) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get("trial"), str) or entry["trial"] not in known:
        return "has an answer to a trial that the study does not have"
    if any(entry.get(question) not in ANSWERS for question in QUESTIONS):
        return f"has an answer to trial {entry['trial']} that is none of {', '.join(ANSWERS)}"
    return ""


def latest(files: Iterable[Ratings]) -> list[Answer]:
    """One answer a rater and trial: of several files of one rater the one saved last says it."""
    in_time = sorted(files, key=lambda ratings: ratings.saved)
    return list({(one.rater, one.trial): one for ratings in in_time for one in ratings.answers}.values())


def namesakes(files: Iterable[Ratings]) -> dict[str, int]:
    """Names that answer trials in two ways, in files begun at different times, each with how many trials.

    Two people may have given one name, or one has begun anew. Of files begun at one time the later is a correction.
    """
    said: dict[tuple[str, str], dict[str, Answer]] = {}
    for ratings in sorted(files, key=lambda ratings: ratings.saved):
        for one in ratings.answers:
            said.setdefault((one.rater, one.trial), {})[ratings.started] = one
    return dict(Counter(rater for (rater, _), answers in said.items() if len({*answers.values()}) > 1))


def raters(answers: Iterable[Answer], truths: dict[str, Truth]) -> list[Rater]:
    """Every rater, by name, with both questions of each control trial counted."""
    counts: dict[str, list[bool]] = {}
    for one in answers:
        right = truths[one.trial].right_answer
        own = counts.setdefault(one.rater, [])
        own += [given == right for given in (one.quality, one.alignment)] if right else []
    return [Rater(name, sum(counts[name]), len(counts[name])) for name in sorted(counts)]
