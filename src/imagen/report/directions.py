"""Which way a figure is better, as far as its metric says, and what it is called on an axis."""

from collections.abc import Mapping, Sequence

from imagen.ablation.table import COST
from imagen.report.measured import Measured

Directions = Mapping[str, str]
"""``higher`` or ``lower`` by the figure's name; of those that are not in it nothing is known."""

CALLED = {
    "fid": "FID",
    "kid": "KID",
    "fd_dinov2": "FD-DINOv2",
    "cmmd": "CMMD",
    "fd_pixel": "Fréchet distance of pixels",
    "clip_score": "CLIP score",
    "retrieval_top10": "retrieval, share in the top 10",
    "heldout_top10": "retrieval of held-out captions, share in the top 10",
    "heldout_loss": "held-out loss",
    "val/loss": "validation loss",
    "seconds": "training time, seconds",
    "seconds_per_step": "seconds a step",
    "parameters": "parameters",
}


def directions_of(measured: Sequence[Measured]) -> dict[str, str]:
    """What the metrics said of their figures where they were measured; costs and losses of training are lower."""
    found = {**dict.fromkeys(COST, "lower"), "val/loss": "lower"}
    for one in measured:
        for told in one.told:
            found |= told.get("directions", {})
    return found


def called(name: str) -> str:
    """A figure's name for people."""
    return CALLED.get(name, name if "." in name else name.replace("_", " "))


def on_axis(name: str, directions: Directions) -> str:
    """The name, and which way is better where that is known."""
    return f"{called(name)} ({directions[name]} is better)" if name in directions else called(name)
