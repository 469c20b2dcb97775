"""Which way a figure is better, and what it is called on an axis."""

HIGHER = ("clip_score", "retrieval", "precision", "recall", "psnr", "heldout_cosine")
"""Beginnings of names; every other figure is a distance, a loss or a cost, better where it is lower."""

CALLED = {
    "fid": "FID",
    "kid": "KID",
    "fd_dinov2": "FD-DINOv2",
    "cmmd": "CMMD",
    "fd_pixel": "Fréchet distance of pixels",
    "clip_score": "CLIP score",
    "retrieval_top10": "retrieval, share in the top 10",
    "heldout_loss": "held-out loss",
    "val/loss": "validation loss",
    "seconds": "training time, seconds",
    "parameters": "parameters",
}


def higher_is_better(name: str) -> bool:
    return name.startswith(HIGHER)


def called(name: str) -> str:
    """A figure's name for people."""
    return CALLED.get(name, name if "." in name else name.replace("_", " "))


def on_axis(name: str) -> str:
    """The name, and which way is better."""
    return f"{called(name)} ({'higher' if higher_is_better(name) else 'lower'} is better)"
