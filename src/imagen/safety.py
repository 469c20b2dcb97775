"""Which pictures may be trained on, by the score that their collection carries.

LAION's pictures have ``punsafe`` (a probability) or ``NSFW`` (a word), COYO's ``nsfw_score_opennsfw2``. What has no
score, or none that can be read, counts as unsafe: a collection must show that a picture is harmless.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from imagen.errors import UserError


def lookup(info: Mapping[str, Any], name: str) -> Any:
    """The field ``name`` of a sample's json, None if it has none; ``a.b`` is also looked for as ``b`` within ``a``."""
    if name in info:
        return info[name]
    outer, _, inner = name.partition(".")
    within = info.get(outer)
    return lookup(within, inner) if inner and isinstance(within, Mapping) else None


def number(info: Mapping[str, Any], name: str) -> float | None:
    """The field ``name`` if it is a number; NaN and what no float can hold are none."""
    value = lookup(info, name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if is_number else None


class Safety(ABC):
    """Judges a sample by its json alone."""

    @abstractmethod
    def safe(self, info: Mapping[str, Any]) -> bool:
        """Whether the sample may be kept."""


class NoSafety(Safety):
    """Keeps everything: for pictures that were judged by other means."""

    def safe(self, info: Mapping[str, Any]) -> bool:
        return True


class MaxScore(Safety):
    """Keeps what has a number in ``field`` of at most ``threshold``: probabilities of being unsafe, in [0, 1].

    LAION's ``punsafe`` comes from a classifier on CLIP's image embedding (Schuhmann et al. 2022, section 6.3).
    """

    def __init__(self, *, field: str, threshold: float) -> None:
        if not 0 <= threshold <= 1:
            raise UserError(f"safety.threshold={threshold} must be between 0 and 1, the highest score that is kept")
        self.field = field
        self.threshold = threshold

    def safe(self, info: Mapping[str, Any]) -> bool:
        score = number(info, self.field)
        return score is not None and score <= self.threshold


class AllowedWords(Safety):
    """Keeps what has one of the words ``allowed`` in ``field``: LAION-400M's ``NSFW`` says UNLIKELY, UNSURE or NSFW."""

    def __init__(self, *, field: str, allowed: Sequence[str]) -> None:
        if not allowed:
            raise UserError("safety.allowed=[] would drop every picture: name the words that are kept, e.g. [UNLIKELY]")
        self.field = field
        self.allowed = frozenset(allowed)

    def safe(self, info: Mapping[str, Any]) -> bool:
        word = lookup(info, self.field)
        return isinstance(word, str) and word in self.allowed
