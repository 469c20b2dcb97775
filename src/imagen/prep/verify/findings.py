"""What a verification found, kept small: of each kind a count and the first few examples."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

EXAMPLES = 5

KINDS = {
    "unfinished shard": "a tar without its _stats.json: its writing was cut off",
    "missing folder": "the training split, its text embeddings, or what the other split has",
    "missing tar": "a shard of pictures that another size has, or that the stats promise",
    "missing sidecar": "a shard of pictures without its text embeddings",
    "extra tar": "text embeddings of no shard of pictures, or a shard beyond those that the stats promise",
    "missing file": "the parquet or the index that was written with the tar",
    "damaged tar": "it cannot be read to its end",
    "damaged stats": "a _stats.json that cannot be read",
    "damaged parquet": "it cannot be read, or its rows are not those of the tar",
    "damaged json": "a sample's json that cannot be read",
    "wrong count": "the stats count other samples than the tar holds",
    "wrong sha256": "the tar's bytes are not those that were written",
    "stale index": "the index is not what the tar's headers say",
    "duplicate key": "two samples of one shard with the same key",
    "missing member": "a sample without its picture or its caption",
    "missing key": "a sample that another folder of the split has, picture or embedding",
    "extra key": "a text embedding of no picture",
    "wrong caption": "not the caption that the embedding was made from, or that another size has",
    "undecodable picture": "a picture that no loader could decode",
    "wrong size": "a picture that is not of its folder's size, or its shard's shape",
    "wrong encoder": "embeddings by another encoder than their folder's name says",
    "damaged tokens": "a member that is no text embedding",
    "wrong shape": "an embedding that is not [n, d] with the encoder's width, of no token, or not in its folder's code",
    "not finite": "an embedding with undefined or infinite numbers",
    "other tokens": "encoded again, the caption gives other tokens than are stored",
}
"""Each kind of finding, and what it means."""


@dataclass
class Findings:
    """Counts and first examples of each kind, what was checked, and what could not be: sums, in any order."""

    found: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    checked: Counter[str] = field(default_factory=Counter)
    unchecked: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, where: str, detail: str = "") -> None:
        """Count one finding of a kind of ``KINDS``."""
        assert kind in KINDS, kind
        self.found[kind] += 1
        self._keep(kind, [_printable(f"{where}: {detail}" if detail else where)])

    def merge(self, other: "Findings") -> None:
        """Add what was found elsewhere."""
        self.found += other.found
        self.checked += other.checked
        self.unchecked += other.unchecked
        for kind, examples in other.examples.items():
            self._keep(kind, examples)

    def _keep(self, kind: str, examples: list[str]) -> None:
        kept = self.examples.setdefault(kind, [])
        kept += examples[: EXAMPLES - len(kept)]

    def table(self) -> str:
        """Kind, count and examples, a line each, in the order of ``KINDS``."""
        lines = []
        for kind in (kind for kind in KINDS if self.found[kind]):
            first, *others = self.examples[kind]
            lines.append(f"{kind:<20}{self.found[kind]:>8,}  {first}")
            lines += [f"{'':30}{example}" for example in others]
        return "\n".join([f"{'finding':<20}{'count':>8}  first examples", *lines])

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        found = {
            kind: {"count": self.found[kind], "means": KINDS[kind], "examples": self.examples[kind]}
            for kind in KINDS
            if self.found[kind]
        }
        return {"findings": found, "checked": dict(self.checked), "not_checked": dict(self.unchecked)}


def _printable(text: str) -> str:
    """A member's name may hold line ends, or bytes that are no text: neither belongs in a table."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
