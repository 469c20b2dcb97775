"""``train.py`` as more than one process: loading workers, ranks, and the signals that reach them all."""

import json
import os
import signal
import time
from pathlib import Path

import torch
from processes import running

from imagen.checkpoints import read_checkpoint

ROOT = Path(__file__).parents[1]
TOY = ["train.py", "experiment=toy", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1"]


def finish(command: list[str], log: Path) -> str:
    with running(command, ROOT, log) as process:
        assert process.wait(120) == 0, log.read_text()
    return log.read_text()


def test_a_scheduler_that_ends_the_whole_group_leaves_a_run_to_go_on_with(tmp_path: Path):
    command = [*TOY, f"output_dir={tmp_path}/outputs", "max_steps=60", "data.num_workers=2"]
    command += ["callback=[checkpoint]", "callback.checkpoint.every_n_steps=1000", "validate_every_n_steps=1000"]
    log = tmp_path / "log"
    with running(command, ROOT, log) as process:
        while not list(tmp_path.glob("outputs/*/*/metrics.jsonl")):
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM, log.read_text()
    (folder,) = tmp_path.glob("outputs/*/*")
    assert [path.name for path in (folder / "checkpoints").iterdir()] != []
    assert "from step" in finish(command, log)
    assert json.loads((folder / "done.json").read_text())["step"] == 60


def test_two_ranks_leave_one_run_and_resume_it_exactly(tmp_path: Path):
    command = [*TOY, "trainer.devices=2", "trainer.strategy=ddp", f"output_dir={tmp_path}/outputs"]
    command += ["max_steps=4", "validate_every_n_steps=2", "callback.checkpoint.every_n_steps=2", "sampler.num_steps=2"]
    command += ["null_text=empty_caption"]  # which the first rank encodes, and the other is given
    finish(command, tmp_path / "log")
    (folder,) = tmp_path.glob("outputs/*/*")
    assert (folder / "samples/step_0000004.png").is_file()
    rows = (folder / "metrics.jsonl").read_text()
    assert [row["step"] for row in map(json.loads, rows.splitlines()) if row["name"] == "val/loss"] == [2, 4]

    checkpoint = folder / "checkpoints/step_000000004.ckpt"
    whole = read_checkpoint(checkpoint)
    for made in (folder / "done.json", folder / "weights.safetensors"):
        made.unlink()
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    said = finish(command, tmp_path / "log")
    assert said.count("from step 2") == 2
    assert said.count("is damaged") == 1  # the first rank alone reads it through
    assert list(tmp_path.glob("outputs/*/*")) == [folder]
    assert (folder / "done.json").is_file()
    assert (folder / "metrics.jsonl").read_text() == rows
    for name, value in read_checkpoint(checkpoint)["state_dict"].items():
        assert torch.equal(value, whole["state_dict"][name]), name
