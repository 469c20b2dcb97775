import pytest
import torch

from imagen.errors import UserError
from imagen.fitting import Fitting


class Memory:
    """Work that runs out of memory with more than ``room`` rows, and notes what was asked."""

    def __init__(self, room: int) -> None:
        self.room, self.asked = room, []

    def __call__(self, rows: slice) -> list[int]:
        self.asked.append((rows.start, rows.stop))
        if rows.stop - rows.start > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(range(rows.start, rows.stop))


@pytest.mark.parametrize(("room", "sizes"), [(8, [8]), (7, [4, 4]), (3, [2, 2, 2, 2]), (1, [1] * 8)])
def test_all_rows_are_done_once_and_in_order(room, sizes):
    parts = Fitting("stage base")(Memory(room), 8)
    assert [row for part in parts for row in part] == list(range(8))
    assert [len(part) for part in parts] == sizes


def test_what_did_not_fit_is_not_tried_again(caplog):
    fitting, memory = Fitting("stage sr2"), Memory(3)
    fitting(memory, 8)
    assert memory.asked[:3] == [(0, 8), (0, 4), (0, 2)]
    memory.asked.clear()
    fitting(memory, 5)
    assert memory.asked == [(0, 2), (2, 4), (4, 5)]
    assert "stage sr2: 8 at once do not fit in memory; 4 are tried" in caplog.text


def test_one_picture_that_does_not_fit_is_told_with_what_helps():
    with pytest.raises(UserError, match=r"stage sr2 does not fit .* offload=true"):
        Fitting("stage sr2")(Memory(0), 3)


def test_other_errors_are_not_out_of_memory():
    def fail(rows: slice) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        Fitting("x")(fail, 2)
