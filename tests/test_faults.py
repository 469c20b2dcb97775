import pytest
import torch

from imagen.faults import Rollback, append_row, read_batch, read_rollbacks, robust_score, save_batch, training_seed
from imagen.faults import write_rollbacks as write
from imagen.types import Batch, Place, TextEmbedding


def test_a_batch_comes_back_as_it_was(tmp_path):
    text = TextEmbedding(torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.bool))
    image = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    batch = Batch(image, text, torch.tensor([True, False]), ["a", "b"], ["ein Käse", "b"], Place(2, 2, 6, 6))
    back, known = read_batch(save_batch(tmp_path, "step", batch, {"step": 3, "loss": "nan"}))
    assert known == {"step": 3, "loss": "nan"}
    assert torch.equal(back.image, batch.image)
    assert torch.equal(back.text.tokens, text.tokens)
    assert (back.key, back.caption, back.place) == (batch.key, batch.caption, batch.place)


def test_every_way_back_draws_otherwise_and_is_forgotten_with_the_run_it_was_of(tmp_path):
    rollbacks = [Rollback(30, 20), Rollback(50, 40)]
    write(tmp_path, rollbacks)
    assert read_rollbacks(tmp_path, 40) == rollbacks
    assert read_rollbacks(tmp_path, 30) == rollbacks[:1]
    assert training_seed(7, []) == 7
    assert len({training_seed(7, rollbacks[:count]) for count in range(3)}) == 3


def test_a_score_is_not_moved_by_the_spikes_before():
    window = torch.randn(401, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    assert abs(robust_score(3.0, window) - 3.0) < 0.3
    assert abs(robust_score(3.0, [*window, 1e6, 1e9]) - 3.0) < 0.3


@pytest.mark.parametrize("size", [1e-3, 1.0, -50.0])
def test_where_all_losses_are_alike_a_small_change_is_no_spike_and_a_large_one_is(size):
    window = [size] * 60
    assert robust_score(size + 1e-4 * abs(size), window) < 1
    assert robust_score(size + 0.1 * abs(size), window) == pytest.approx(100)
    assert robust_score(0.1, [0.0] * 60) > 1e6  # of nothing there is no part


def test_rows_are_added(tmp_path):
    for step in range(2):
        append_row(tmp_path / "faults" / "a.jsonl", {"step": step})
    assert (tmp_path / "faults" / "a.jsonl").read_text() == '{"step": 0}\n{"step": 1}\n'
