"""Points that give no rows, each with its reason and the command that makes it."""

from dataclasses import dataclass

from imagen.ablation.study import Point


@dataclass(frozen=True)
class Missing:
    """A point without rows, why, and what runs it."""

    name: str
    why: str
    command: str


def why_missing(point: Point, found: str, failure: dict[str, str] | None, command: str) -> Missing:
    """``found`` is how its folder looks, ``failure`` what the sweep noted when it failed."""
    if failure is None:
        return Missing(point.name, found, command)
    return Missing(point.name, f"failed: {failure['error']}", command)
