import lightning
import pytest
import torch

from imagen.agreement import Agreement, Later


def test_numbers_come_back_a_step_later():
    later, number = Later(), torch.tensor([1.0])
    assert later.swap(number) is None
    number.fill_(2.0)
    assert later.swap(number) == [1.0]
    assert later.swap(None) == [2.0]
    assert later.swap(None) is None


@pytest.fixture
def trainer() -> lightning.Trainer:
    return lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)


def test_one_process_knows_at_once(trainer: lightning.Trainer):
    assert Agreement().largest(trainer, [15, 0]) == [15, 0]


def test_what_another_process_wishes_is_known_after_the_next_step(trainer: lightning.Trainer, monkeypatch):
    monkeypatch.setattr(lightning.Trainer, "world_size", 2)
    elsewhere = iter([[0, 0], [0, 7], [15, 0], [0, 0]])  # of each step

    def all_reduce(numbers: torch.Tensor, operation: object) -> None:
        assert operation == torch.distributed.ReduceOp.MAX
        numbers.copy_(torch.maximum(numbers, torch.tensor(next(elsewhere))))

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    agreement = Agreement()
    known = [agreement.largest(trainer, wishes) for wishes in ([0, 0], [0, 9], [0, 0], [0, 0])]
    assert known == [[0, 0], [0, 0], [0, 9], [15, 0]]
