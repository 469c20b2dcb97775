import json
import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from processes import free_port, running

from imagen.data.module import Loader, StreamModule, Unfit
from imagen.data.stream import Delivery, Fault, Sample, collate
from imagen.data.synthetic import SyntheticModule
from imagen.errors import UserError
from imagen.text_encoder import Hash
from imagen.types import Batch, Place

# of fork in a process with threads, which Python 3.12 warns of
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")

LIGHTNING_WARNINGS = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")


def synthetic(trainer: SimpleNamespace | None = None, **changed) -> SyntheticModule:
    plain = {"resolution": 4, "crop": None, "batch_size": 8, "seed": 0, "num_workers": 0}
    plain |= {"multiprocessing_context": None, "flip": False}
    module = SyntheticModule(Hash(name="hash", width=4, max_length=16), **(plain | changed))
    module.trainer = trainer  # type: ignore[assignment]
    module.setup()
    return module


def place(rank: int = 0, world: int = 1, step: int = 0, accumulate: int = 1) -> SimpleNamespace:
    """What the data modules ask a trainer for."""
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(
        global_rank=rank, world_size=world, global_step=step, accumulate_grad_batches=accumulate, strategy=strategy
    )


def keys(loader: Loader, batches: int) -> list[list[str]]:
    iterator = iter(loader)
    return [next(iterator).key for _ in range(batches)]


def faults(count: int, shard: str = "a.tar", first: int = 0) -> list[Fault]:
    return [Fault(shard, str(i), "no caption") for i in range(first, first + count)]


def same(batch: Batch) -> Batch:
    return batch


def test_a_single_unfit_sample_is_counted_once_and_stops_nothing(caplog: pytest.LogCaptureFixture):
    unfit = Unfit(total=200, allowed=0.001)
    for _ in range(50):
        unfit.add(64, faults(1))
    assert list(unfit.found) == [("a.tar", "0")]
    assert caplog.text.count("unfit sample 0 of a.tar: no caption") == 1


@pytest.mark.parametrize(("total", "limit"), [(200, 1), (1800, 1), (5000, 5), (10**6, 10)])
def test_more_than_one_in_a_thousand_stops_the_run(total: int, limit: int):
    unfit = Unfit(total, allowed=0.001)
    unfit.add(64, faults(limit - 1, "some.tar"))
    unfit.add(64, faults(1, "worst.tar"))
    with pytest.raises(UserError, match=r"0.001 allows.*no caption.*worst.tar"):
        unfit.add(64, faults(limit, "worst.tar", first=1))


def test_the_limit_grows_with_what_was_seen():
    unfit = Unfit(total=10**6, allowed=0.001)
    unfit.add(50_000, faults(50))
    with pytest.raises(UserError, match="51 of 50064 samples"):
        unfit.add(64, faults(1, first=50))


def test_each_rank_counts_its_share():
    unfit = Unfit(total=10**6, allowed=0.001, ranks=10)
    unfit.add(64, faults(1))
    with pytest.raises(UserError, match="2 of 1000 samples"):
        unfit.add(64, faults(1, first=1))


def test_the_worst_shards_come_first():
    unfit = Unfit(total=10, allowed=0.001)
    with pytest.raises(UserError, match=r"worst shards: c.tar \(9\), b.tar \(4\), d.tar \(2\): "):
        unfit.add(1, faults(1, "a.tar") + faults(4, "b.tar") + faults(9, "c.tar") + faults(2, "d.tar"))


def test_logging_of_unfit_samples_ends(caplog: pytest.LogCaptureFixture):
    Unfit(total=100, allowed=1.0).add(64, faults(90))
    assert len(caplog.records) == Unfit.LOGGED
    assert "counted, not logged" in caplog.records[-1].message


def test_a_worker_that_gave_up_stops_the_run():
    loader = Loader(lambda: [Delivery(None, faults(1))], Unfit(total=1, allowed=1.0), None, same)
    with pytest.raises(UserError, match=r"no fit sample among 1 in a row; .*worst shards: a.tar \(1\)"):
        next(iter(loader))


def test_a_loader_hands_over_batches_and_counts():
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    batch = collate([Sample(key, image, torch.zeros(1, 4), "a caption") for key in "abc"], False, Place(0, 3, 3, 3))
    unfit = Unfit(total=10, allowed=1.0)
    assert list(Loader(lambda: [Delivery(batch, faults(2))], unfit, 1, same)) == [batch]
    assert unfit.seen == 3
    assert len(unfit.found) == 2


def test_lengths():
    module = synthetic()
    assert len(module.val_dataloader()) == 4  # 28 pictures in batches of 8
    with pytest.raises(TypeError):
        len(module.train_dataloader())


@pytest.mark.parametrize(("world", "accumulate", "local"), [(1, 1, 8), (2, 1, 4), (1, 4, 2), (2, 4, 1)])
def test_the_batch_size_is_global(world: int, accumulate: int, local: int):
    module = synthetic(place(world=world, accumulate=accumulate))
    assert len(next(iter(module.train_dataloader()))) == local


@pytest.mark.parametrize(("world", "accumulate"), [(3, 1), (1, 5), (2, 3)])
def test_a_batch_that_does_not_divide_is_dealt_as_evenly_as_can_be(world: int, accumulate: int):
    counts = []
    for rank in range(world):
        iterator = iter(synthetic(place(rank=rank, world=world, accumulate=accumulate)).train_dataloader())
        counts += [next(iterator).place.count for _ in range(accumulate)]
    assert sum(counts) == 8
    assert max(counts) - min(counts) <= 1


def test_validation_batches_are_cut_as_training_is_and_have_every_picture_once():
    whole, cut = synthetic(place()), synthetic(place(accumulate=4))
    assert len(cut.val_dataloader()) == 4 * len(whole.val_dataloader())
    parts = [batch for batch in cut.val_dataloader() if batch.place.count]
    assert max(len(batch) for batch in parts) == 2
    found = [key for batch in parts for key in batch.key]
    assert found == [key for batch in whole.val_dataloader() for key in batch.key]


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_equals_unstopped(workers: int):
    unstopped = keys(synthetic(num_workers=workers).train_dataloader(), 31)
    for stop in (1, 26):
        resumed = synthetic(num_workers=workers)
        order = {"samples": 196, "batch_size": 8, "seed": 0, "window": 1}
        resumed.load_state_dict({"batches": stop, "order": order})
        assert resumed.state_dict() == {"batches": stop, "order": order}
        assert keys(resumed.train_dataloader(), 5) == unstopped[stop : stop + 5]


def test_the_trainers_own_count_says_where_the_stream_goes_on():
    module = synthetic(place())
    loader = module.train_dataloader()
    unstopped = keys(loader, 12)
    assert keys(loader, 2) == unstopped[:2]  # nothing trained, nothing lost
    module.trainer.global_step = 9  # type: ignore[union-attr]
    assert keys(loader, 3) == unstopped[9:12]
    accumulating = synthetic(place(step=3, accumulate=4))
    assert accumulating.state_dict()["batches"] == 3
    assert list(chain(*keys(accumulating.train_dataloader(), 4))) == unstopped[3]


def test_another_order_is_told(caplog: pytest.LogCaptureFixture):
    module = synthetic()
    with caplog.at_level(logging.WARNING):
        module.load_state_dict({"batches": 3, "order": synthetic(place(world=2), num_workers=3).state_dict()["order"]})
        assert not caplog.text
        module.load_state_dict({"batches": 3, "order": synthetic(batch_size=4).state_dict()["order"]})
    assert "another order" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_opening_a_loader_draws_nothing_from_the_global_random_state(workers: int):
    module = synthetic(num_workers=workers)
    before = torch.get_rng_state()
    next(iter(module.train_dataloader()))
    next(iter(module.val_dataloader()))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_leave_signals_to_the_trainer(number: signal.Signals):
    iterator = iter(synthetic(num_workers=1, multiprocessing_context="fork").train_dataloader())
    next(iterator)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, number)
    for _ in range(20):
        next(iterator)
    assert worker.is_alive()


def leave_workers_behind() -> None:
    left.append(iter(synthetic(num_workers=2, multiprocessing_context="fork").train_dataloader()))
    next(left[0])
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGSTOP)  # as if it hung


left: list[Iterator[Batch]] = []


def test_a_process_ends_with_workers_left_and_hanging():
    process = multiprocessing.get_context("fork").Process(target=leave_workers_behind)
    process.start()
    process.join(30)
    ended = process.exitcode
    process.kill()
    assert ended == 0


def test_an_unknown_start_method_is_refused():
    with pytest.raises(UserError, match=r"data.multiprocessing_context=thread must be null or one of .*spawn"):
        synthetic(multiprocessing_context="thread")


def test_every_picture_once_an_epoch():
    module = synthetic(batch_size=7)  # 196 = 28 batches
    batches = keys(module.train_dataloader(), 56)
    first, second = (list(chain(*part)) for part in (batches[:28], batches[28:]))
    assert sorted(first) == sorted(second) == [f"{i:03}" for i in range(196)]
    assert first != second


class Recorder(lightning.LightningModule):
    """One weight; remembers the keys of its batches."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.keys: list[list[str]] = []
        self.val_keys: list[str] = []

    def training_step(self, batch, batch_idx):
        self.keys.append(batch.key)
        return self.layer(batch.image.float().mean()[None]).mean()

    def validation_step(self, batch, batch_idx):
        self.val_keys += batch.key

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-9)


def fit(root: Path, steps: int, checkpoint: Path | None = None, workers: int = 0, **options) -> Recorder:
    module, data = Recorder(), synthetic(num_workers=workers)
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        callbacks=[ModelCheckpoint(root, every_n_train_steps=3, save_top_k=-1)],
        enable_progress_bar=False,
        enable_model_summary=False,
        check_val_every_n_epoch=None,
        default_root_dir=root,
        **options,
    )
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return module


@LIGHTNING_WARNINGS
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_trainer_resumes_exactly(tmp_path: Path, workers: int):
    options = {"val_check_interval": 4, "accumulate_grad_batches": 2, "workers": workers}
    unstopped = fit(tmp_path, 6, **options)
    assert len(unstopped.keys) == 12
    assert sorted(set(unstopped.val_keys)) == [f"{i:03}" for i in range(28)]
    (checkpoint,) = tmp_path.glob("*step=3.ckpt")
    assert fit(tmp_path / "again", 6, checkpoint, **options).keys == unstopped.keys[6:]


@LIGHTNING_WARNINGS
def test_lightnings_epochs_do_not_start_over(tmp_path: Path):
    plain = fit(tmp_path, 6, val_check_interval=100).keys
    assert fit(tmp_path / "short", 6, val_check_interval=2, limit_train_batches=2).keys == plain


# all under the guard: a spawned worker imports the script again, and needs none of it
SCRIPT = """
if __name__ == "__main__":
    import json, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    import lightning
    from test_data_module import Recorder, synthetic

    data = synthetic(batch_size=14, num_workers=1, multiprocessing_context="spawn")
    options = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = lightning.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_steps=14, limit_val_batches=0,
                                **options)
    module = Recorder()
    trainer.fit(module, data)
    Path(sys.argv[2], f"{trainer.global_rank}.json").write_text(json.dumps(module.keys))
"""

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
SRUN = {"SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
SRUN |= {"SLURM_NNODES": "1", "SLURM_NODEID": "0"}


SLOW = [pytest.param(launcher, marks=pytest.mark.drill) for launcher in ("torchrun", "srun")]


@pytest.mark.parametrize("launcher", ["lightning", *SLOW])
def test_two_processes_under(launcher: str, tmp_path: Path):
    # spawned workers know nothing of torch.distributed: the rank must be handed to them
    (tmp_path / "script.py").write_text(SCRIPT)
    command = ["script.py", str(Path(__file__).parent), str(tmp_path)]
    places: list[dict[str, str]] = [{}]
    if launcher == "torchrun":
        command = [*TORCHRUN, *command]
    elif launcher == "srun":  # which starts every rank itself
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        places = [{**SRUN, **address, "SLURM_PROCID": rank, "SLURM_LOCALID": rank} for rank in ("0", "1")]
    logs = [tmp_path / f"{number}.log" for number in range(len(places))]
    with ExitStack() as ranks:
        started = [
            ranks.enter_context(running(command, tmp_path, log, **where))
            for log, where in zip(logs, places, strict=True)
        ]
        for process, log in zip(started, logs, strict=True):
            assert process.wait(120) == 0, log.read_text()
    made = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for rank in range(2):
        assert made[rank] == keys(synthetic(place(rank, world=2), batch_size=14).train_dataloader(), 14)
    assert sorted(chain(*made[0], *made[1])) == [f"{i:03}" for i in range(196)]


def test_stream_module_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        StreamModule(Hash(name="hash", width=4, max_length=16))  # type: ignore[abstract,call-arg]
