"""What a sample must be to be kept: one reason for each rule, judged from what was seen, never from the picture."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imagen.errors import UserError
from imagen.files import Location, locate
from imagen.safety import Safety, lookup, number

Seen = Mapping[str, Any]
"""What was seen of a sample: a row of ``look``'s table, its ``info`` as a dict."""

_HEX_DIGITS = (16, 64)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Thresholds; None asks nothing. Where several reasons hold, the first of ``reason`` counts.

    ``fields`` names, for each score, the fields of the json it is looked for in; a sample that has none passes.
    """

    min_size: int
    max_aspect: float
    min_spread: float
    max_caption_length: int
    min_similarity: float | None
    min_aesthetic: float | None
    max_watermark: float | None
    languages: Sequence[str] | None
    fields: Mapping[str, Sequence[str]]
    safety: Safety
    blocklist: frozenset[bytes]

    def __post_init__(self) -> None:
        for name, least in {"min_size": 1, "max_aspect": 1, "min_spread": 0, "max_caption_length": 1}.items():
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)} must be at least {least}")

    def reason(self, seen: Seen) -> str | None:
        """Why the sample goes, None if it may stay."""
        if seen["sha256"] in self.blocklist or seen["phash"] in self.blocklist:
            return "blocklist"
        if seen["fault"] is not None:
            return seen["fault"]
        return next((reason for reason, breaks in self._tests() if breaks(seen)), None)

    def _tests(self) -> Sequence[tuple[str, Callable[[Seen], bool]]]:
        return (
            ("unsafe", lambda seen: not self.safety.safe(seen["info"])),
            ("too small", lambda seen: min(seen["width"], seen["height"], seen["original"]) < self.min_size),
            ("extreme aspect", lambda seen: _aspect(seen) > self.max_aspect),
            ("near-constant", lambda seen: seen["spread"] < self.min_spread),
            ("empty caption", lambda seen: seen["caption_length"] == 0),
            ("overlong caption", lambda seen: seen["caption_length"] > self.max_caption_length),
            ("similarity", lambda seen: self._outside(seen, "similarity", least=self.min_similarity)),
            ("aesthetic", lambda seen: self._outside(seen, "aesthetic", least=self.min_aesthetic)),
            ("watermark", lambda seen: self._outside(seen, "watermark", most=self.max_watermark)),
            ("language", self._foreign),
        )

    def _outside(self, seen: Seen, score: str, least: float | None = None, most: float | None = None) -> bool:
        values = (number(seen["info"], field) for field in self.fields[score])
        value = next((value for value in values if value is not None), None)
        return value is not None and ((least is not None and value < least) or (most is not None and value > most))

    def _foreign(self, seen: Seen) -> bool:
        values = (lookup(seen["info"], field) for field in self.fields["language"])
        value = next((value for value in values if isinstance(value, str)), None)
        return self.languages is not None and value is not None and value not in self.languages

    def recipe(self) -> dict[str, Any]:
        """The rules as JSON can hold them: what a change of theirs is known by."""
        safety = {"class": type(self.safety).__name__, **vars(self.safety)}
        blocklist = hashlib.sha256(b"".join(sorted(self.blocklist))).hexdigest()[:16] if self.blocklist else None
        recipe = {**vars(self), "fields": dict(self.fields), "safety": safety, "blocklist": blocklist}
        return json.loads(json.dumps(recipe, default=sorted))


def _aspect(seen: Seen) -> float:
    return max(seen["width"], seen["height"]) / max(1, min(seen["width"], seen["height"]))


def read_blocklist(path: str | Location | None) -> frozenset[bytes]:
    """Hashes of pictures, one a line: 64 hex digits are the SHA-256 of stored bytes, 16 a pHash; ``#`` begins a note.

    Raises: UserError where the file cannot be read or a line is neither.
    """
    if path is None:
        return frozenset()
    try:
        lines = locate(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"blocklist={path} cannot be read ({error}): give a text file of hashes") from error
    hashes = set()
    for row, line in enumerate(lines, start=1):
        digits = line.partition("#")[0].strip()
        if not digits:
            continue
        try:
            if len(digits) not in _HEX_DIGITS:
                raise ValueError("length")
            hashes.add(bytes.fromhex(digits))
        except ValueError as error:
            raise UserError(
                f"blocklist={path} has on line {row} {digits[:80]!r}, which is no hash: a SHA-256 has 64 hex "
                "digits, a pHash 16"
            ) from error
    return frozenset(hashes)
