"""Answers counted: how often either model is preferred, by kind of prompt and question."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from imagen.human_eval.intervals import Share, share
from imagen.human_eval.ratings import QUESTIONS, Answer
from imagen.human_eval.trials import Truth

ALL = "all kinds"


@dataclass(frozen=True)
class Row:
    """Answers to one question on one kind of prompt; ``decided`` is A's share of A or B."""

    kind: str
    question: str
    raters: int
    prompts: int
    answers: int
    a: Share
    indifferent: Share
    b: Share
    decided: Share

    @property
    def preferred(self) -> str:
        """'a' or 'b' where the interval of A's share among the decided answers holds no half, else 'undecided'."""
        if self.decided.low > 0.5:
            return "a"
        return "b" if self.decided.high < 0.5 else "undecided"


def table(answers: Sequence[Answer], truths: dict[str, Truth]) -> list[Row]:
    """The rows of all kinds together and of each kind, in the order of ``truths``; control trials are no answers."""
    counted = [one for one in answers if truths[one.trial].a_is]
    kinds = list(dict.fromkeys(truth.kind for truth in truths.values() if truth.kind))
    rows = []
    for kind in [ALL, *kinds]:
        own = [one for one in counted if kind in (ALL, truths[one.trial].kind)]
        rows += [_row(kind, question, own, truths) for question in QUESTIONS if own]
    return rows


def _row(kind: str, question: str, answers: Sequence[Answer], truths: dict[str, Truth]) -> Row:
    given = np.array([_model(getattr(one, question), truths[one.trial]) for one in answers])
    who = np.array([one.rater for one in answers])
    a, indifferent, b = (share(given == model, who) for model in ("a", "indifferent", "b"))
    decided = given != "indifferent"
    return Row(
        kind,
        question,
        raters=len(set(who.tolist())),
        prompts=len({one.trial for one in answers}),
        answers=len(answers),
        a=a,
        indifferent=indifferent,
        b=b,
        decided=share(given[decided] == "a", who[decided]),
    )


def _model(answer: str, truth: Truth) -> str:
    if answer == "indifferent":
        return answer
    return "a" if answer == truth.a_is else "b"


def as_csv(rows: Sequence[Row]) -> str:
    """A row a kind and question; shares with the bounds of their intervals."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    shares = ("a", "indifferent", "b", "decided")
    columns = [f"{name}{bound}" for name in shares for bound in ("", "_low", "_high")]
    writer.writerow(["kind", "question", "raters", "prompts", "answers", *columns, "preferred"])
    for row in rows:
        numbers = [f"{number:.4f}" for name in shares for number in asdict(getattr(row, name)).values()]
        writer.writerow([row.kind, row.question, row.raters, row.prompts, row.answers, *numbers, row.preferred])
    return content.getvalue()
