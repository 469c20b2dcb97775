"""The numbers that an argument may be, said in its annotation, so that a config is held against it before any work."""

import math
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """From ``least`` to ``most``, both included; NaN is in none."""

    least: int | float
    most: int | float = math.inf

    def __contains__(self, value: int | float) -> bool:
        return self.least <= value <= self.most

    def __str__(self) -> str:
        """``at least 1``, ``between 0 and 1``."""
        return f"at least {self.least}" if self.most == math.inf else f"between {self.least} and {self.most}"


Natural = Annotated[int, Range(0)]
"""A whole number, 0 or more."""

Count = Annotated[int, Range(1)]
"""How many, or every how many: 1 or more."""
