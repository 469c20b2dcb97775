"""The state of the global generators: nothing here draws from them, but a network or callback of yours may."""

import random
from typing import Any

import numpy as np
import torch

RandomState = dict[str, Any]
"""Of one process, in plain containers and tensors, which a checkpoint can hold."""


def random_state() -> RandomState:
    """Python's, NumPy's, torch's and, where it is in use, CUDA's."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - the global one is meant
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def restore_random_state(state: RandomState) -> None:
    """Undo what was drawn since ``random_state``."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def random_states() -> list[RandomState]:
    """That of every process of the training, by rank. All call it at once."""
    if not torch.distributed.is_initialized():
        return [random_state()]
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, random_state())
    return states
