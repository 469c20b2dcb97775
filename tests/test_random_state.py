import random

import numpy as np
import torch

from imagen.checkpoints import read_checkpoint, write_checkpoint
from imagen.random_state import random_states, restore_random_state


def draws() -> list[float]:
    return [random.gauss(0, 1), np.random.normal(), torch.randn(()).item()]  # noqa: NPY002


def test_generators_go_on_from_a_checkpoint(tmp_path):
    draws()
    (before,) = random_states()
    restore_random_state(before)
    expected = [draws() for _ in range(3)]
    write_checkpoint({"imagen": {}, "random_states": [before]}, tmp_path / "a.ckpt")
    (state,) = read_checkpoint(tmp_path / "a.ckpt")["random_states"]
    restore_random_state(state)
    assert [draws() for _ in range(3)] == expected
