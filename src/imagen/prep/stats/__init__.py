"""What a set of shards holds, as a page to look at and as numbers."""

from imagen.prep.stats.command import stats

__all__ = ["stats"]
