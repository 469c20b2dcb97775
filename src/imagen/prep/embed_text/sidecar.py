"""One tar of text embeddings to make: of which image tar, by which encoder, and whether it is there already."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

from imagen.data.index import index_path
from imagen.data.shards import stats_path
from imagen.data.tokens import caption_hash
from imagen.data.writer import read_stats
from imagen.errors import UserError
from imagen.files import Location

FORMAT = 1
"""Counts up when the same captions would be stored otherwise."""


@dataclass(eq=False)
class Sidecar:
    """``images`` holds ``captions`` captions, as its stats say; ``made`` is what the stats beside ``tar`` say, if any.

    What comes of it: ``found`` captions were read, and it was not written for the reason ``why`` ("whole", or what is
    wrong with ``images``), or it was, and ``stats`` is what its own stats say.
    """

    images: Location
    tar: Location
    fingerprint: dict[str, Any]
    storage: str
    captions: int
    made: dict[str, Any]
    recipe: dict[str, Any] = field(default_factory=dict)
    found: int = 0
    why: str = ""
    stats: dict[str, Any] = field(default_factory=dict)

    @property
    def looks_whole(self) -> bool:
        """Whether it was made by this encoder in this code; of which captions is not looked at."""
        return {**self.made.get("recipe", {}), "captions": None} == self._recipe(None)

    def is_whole(self, captions: dict[str, str]) -> bool:
        """Whether it was made by this very encoder, in this code, of these very captions, and is as long as then."""
        hashed = hashlib.sha256()
        for key, caption in captions.items():
            hashed.update(f"{key}\n{caption_hash(caption)}\n".encode())
        self.recipe = self._recipe(hashed.hexdigest())
        if self.made.get("recipe") != self.recipe or not index_path(self.tar).exists():
            return False
        return self.tar.exists() and self.tar.stat().st_size == self.made.get("bytes")

    def _recipe(self, captions: str | None) -> dict[str, Any]:
        return {"format": FORMAT, "encoder": self.fingerprint, "storage": self.storage, "captions": captions}


def caption_count(images: Location) -> int:
    """How many samples an image tar holds; UserError where its stats do not say."""
    count = read_stats(images).get("successes")
    if not isinstance(count, int):
        raise UserError(
            f"{stats_path(images)} does not say how many samples ('successes') its shard has: make it again"
        )
    return count
