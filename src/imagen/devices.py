"""The device that a user names, what it could do at most, and what it was asked of memory."""

import platform
import re
import resource
import sys
from pathlib import Path

import torch

from imagen.errors import UserError

PEAK_FLOPS = {
    "B200": 2250e12,
    "GH200": 989.4e12,
    "H200": 989.4e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835.5e12,
    "H100": 989.4e12,
    "A100": 312e12,
    "A30": 165e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}
"""Dense bf16 FLOP/s by the makers' data sheets, sums in float32; the first name that a device's own contains counts."""

NO_PEAK = ("RTX 4090 D",)
"""Cut down from what the table has, without a figure of their makers'."""


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


def own_device(device: str | None, number: int) -> torch.device:
    """The device of that name; of several GPUs the one of this ``number``, unless one is named (cuda:3)."""
    picked = pick_device(device)
    if picked.type == "cuda" and picked.index is None:
        return torch.device("cuda", number % torch.cuda.device_count())
    return picked


def check_precision(precision: str, accelerator: str) -> None:
    """Raises: UserError if it is bf16's on GPUs that would only imitate it, slower than float32."""
    if not precision.startswith("bf16") or accelerator not in ("cuda", "gpu"):
        return
    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            f"trainer.precision={precision}, but {torch.cuda.get_device_name()} has no bf16: set "
            "trainer.precision=32-true"
        )


def peak_flops(name: str) -> float | None:
    """The dense bf16 peak of a GPU of that name; None where the table has none."""

    def is_named(known: str) -> bool:
        return re.search(rf"\b{known}\b", name) is not None

    return (
        None
        if any(map(is_named, NO_PEAK))
        else next((PEAK_FLOPS[known] for known in PEAK_FLOPS if is_named(known)), None)
    )


def machine_name(device: torch.device) -> str:
    """The model of the GPU, or that of the CPU with the number of torch's threads: what seconds depend on."""
    return device_name(device) if device.type == "cuda" else f"{device_name(device)}, {torch.get_num_threads()} threads"


def device_name(device: torch.device) -> str:
    """The GPU's or the CPU's name, as its maker has it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        said = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        said = None
    return " ".join(said.group(1).split()) if said else platform.processor() or platform.machine()


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that CUDA's allocator has given out, or of a CPU the process's resident peak, torch included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:  # not getrusage: on Linux its peak is also that of the process which started this one
        said = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        said = None
    if said:
        return 1024 * int(said.group(1))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
