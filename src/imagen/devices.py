"""The device that a user names."""

import resource
import sys

import torch

from imagen.errors import UserError


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device of that name; for "auto" or None CUDA where present, else the CPU.

    Raises: UserError if there is no such device here.
    """
    if device is None or str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        picked = torch.device(device)
        torch.zeros(1, device=picked)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch that was built without CUDA
        there = ["auto", "cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise UserError(f"device={device} is not to be had here: give one of {', '.join(there)}") from error
    return picked


def peak_memory(device: torch.device) -> int:
    """The most bytes that tensors took of a GPU since the process began; of the CPU's memory, the process itself."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
