"""A training killed on two ranks with workers and resumed on one without: no sample twice, none left out."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import small_set
from processes import running

pytestmark = pytest.mark.drill

ROOT = Path(__file__).parents[1]
COUNTS, GLOBAL, STEPS = [10, 7, 12, 8], 6, 24  # 7 batches an epoch, the last of one sample
SCRIPT = f"""
import json, os, sys
sys.path.insert(0, {str(ROOT)!r})
from imagen.lightning_module import DiffusionModule

plain = DiffusionModule.training_step

def recording(self, batch, batch_idx):
    row = [self.trainer.global_step, batch.place.first, batch.key[: batch.place.count]]
    with open(os.environ["RECORD"] + f"-{{self.trainer.global_rank}}.jsonl", "a") as file:
        file.write(json.dumps(row) + "\\n")
    return plain(self, batch, batch_idx)

DiffusionModule.training_step = recording
if __name__ == "__main__":
    import train
    train.run()
"""
TRAIN = ["experiment=toy", "data=webdataset", "resolution=16", f"batch_size={GLOBAL}", f"max_steps={STEPS}"]
TRAIN += ["text_encoder.width=8", "text_encoder.max_length=16", "trainer.accelerator=cpu", "data.window=2"]
TRAIN += ["callback=[checkpoint]", "callback.checkpoint.every_n_steps=2", "validate_every_n_steps=1000"]
ONE, TWO = ["data.num_workers=0"], ["data.num_workers=2", "trainer.devices=2", "trainer.strategy=ddp"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("resume")
    small_set.write_split(made / "set", "train", COUNTS, size=16)
    small_set.write_split(made / "set", "val", [6], size=16)
    (made / "script.py").write_text(SCRIPT)
    return made


def command(folder: Path, name: str) -> list[str]:
    return [str(folder / "script.py"), *TRAIN, f"data.root={folder / 'set'}", f"output_dir={folder / name}"]


def trained_on(folder: Path, name: str) -> dict[int, list[str]]:
    """The keys of each step, rank after rank; what was killed within a step is not of one."""
    parts: dict[int, dict[int, list[str]]] = {}
    for file in sorted(folder.glob(f"{name}-*.jsonl")):
        for line in file.read_text().splitlines():
            step, first, keys = json.loads(line)
            parts.setdefault(step, {})[first] = keys
    return {step: [key for first in sorted(rows) for key in rows[first]] for step, rows in parts.items()}


def finish(folder: Path, name: str, record: str, options: list[str]) -> str:
    log = folder / f"{record}.log"
    with running([*command(folder, name), *options], ROOT, log, RECORD=str(folder / record)) as process:
        assert process.wait(200) == 0, log.read_text()
    return log.read_text()


@pytest.fixture(scope="module")
def unstopped(folder: Path) -> dict[int, list[str]]:
    finish(folder, "unstopped", "unstopped", ONE)
    return trained_on(folder, "unstopped")


def test_every_sample_is_trained_on_once_an_epoch(unstopped: dict[int, list[str]]):
    assert sorted(unstopped) == list(range(STEPS))
    epoch = [key for step in range(7) for key in unstopped[step]]
    assert sorted(epoch) == [f"{i:05}" for i in range(sum(COUNTS))]


@pytest.mark.parametrize("seed", range(3))
def test_killed_on_two_ranks_and_resumed_on_one(folder: Path, unstopped: dict[int, list[str]], seed: int):
    name, at = f"killed{seed}", random.Random(seed).randrange(4, STEPS - 3)
    first = folder / f"{name}-before-0.jsonl"
    log = folder / f"{name}.log"
    record = str(folder / f"{name}-before")
    with running([*command(folder, name), *TWO], ROOT, log, RECORD=record) as process:
        while not first.exists() or len(first.read_text().splitlines()) < at:
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    said = finish(folder, name, f"{name}-after", ONE)
    before, after = trained_on(folder, f"{name}-before"), trained_on(folder, f"{name}-after")
    resumed = min(after)
    assert 0 < resumed <= max(before) + 1, said  # killed right after a checkpoint, or later
    assert f"from step {resumed}" in said
    whole = {step: keys for step, keys in before.items() if step < max(before)}  # the last: one rank may not have begun
    assert {step: unstopped[step] for step in whole} == whole
    assert {step: unstopped[step] for step in range(resumed, STEPS)} == after
    assert before.keys() | after.keys() == unstopped.keys()
