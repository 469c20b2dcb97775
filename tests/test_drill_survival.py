"""What may go wrong while one trains: each ends in one sentence, with a run to go on with and nothing half-written."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import small_set
from processes import running
from test_drill_full_disk import namespace

from imagen.checkpoints import check_whole
from imagen.runs import RunFolder

pytestmark = pytest.mark.drill

ROOT = Path(__file__).parents[1]
TOY = ["train.py", "experiment=toy", "batch_size=4", "trainer.accelerator=cpu", "data.num_workers=0"]
TOY += ["callback=[checkpoint,guard]", "validate_every_n_steps=1000", "callback.checkpoint.every_n_steps=2"]
TWO = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
LONGEST = 60
"""Seconds that a surviving rank may take to end, on a busy machine; docs/survival.md says 10."""


def errors(log: str) -> list[str]:
    """What the run said of its end; nothing beside it that a user could take for more."""
    assert "Traceback" not in log, log
    return [line for line in log.splitlines() if line.startswith("error: ")]


def only_run(folder: Path) -> RunFolder:
    (found,) = folder.glob("toy/*")
    return RunFolder(found)


def check_resumable(run: RunFolder, at_least: int) -> None:
    assert len(run.all_checkpoints()) >= at_least
    for path in run.all_checkpoints():
        check_whole(path)
    assert not list(run.path.rglob(".*.tmp"))


def finish(command: list[str], log: Path) -> str:
    with running(command, ROOT, log) as process:
        assert process.wait(200) == 0, log.read_text()
    return log.read_text()


@contextmanager
def under_way(command: list[str], output: Path, log: Path, **environment: str) -> Iterator[subprocess.Popen]:
    """The command, from when it has a checkpoint on."""
    with running(command, ROOT, log, **environment) as process:
        while not list(output.glob("toy/*/checkpoints/*.ckpt")):
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        yield process


# $1 is to be a small disk, $2 what is done to it when there is a checkpoint
ON_A_DISK = """
small=$1; done=$2; shift 2
mount -t tmpfs -o size=256m tmpfs "$small" || exit 99
"$@" &
trap "kill -9 $! 2>/dev/null" EXIT
while [ -z "$(ls $small/toy/*/checkpoints/*.ckpt 2>/dev/null)" ]; do sleep 0.05; kill -0 $! || exit 98; done
case $done in
    full) dd if=/dev/zero of="$small/filler" bs=64k 2>/dev/null ;;
    read-only) mount -t tmpfs -o ro tmpfs $small/toy/*/checkpoints || exit 97 ;;
esac
wait $!; status=$?
case $done in full) rm "$small/filler" ;; read-only) umount $small/toy/*/checkpoints ;; esac
cp -a "$small" "$small.after"
exit $status
"""


@pytest.mark.parametrize(
    ("done", "said"), [("full", "No space left on device"), ("read-only", "Read-only file system")]
)
def test_a_disk_that_takes_no_more(tmp_path: Path, done: str, said: str):
    own_mounts, small = namespace(), tmp_path / "small"
    small.mkdir()
    command = [*TOY, f"output_dir={small}", "max_steps=100000"]
    shell = [*own_mounts, "sh", "-c", ON_A_DISK, "sh", str(small), done, sys.executable, *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(shell, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    (sentence,) = errors(ended.stderr)
    assert re.fullmatch(
        rf"error: {small}/\S+ cannot be used: {said}(: make room and run the same command again)?", sentence
    )
    run = only_run(tmp_path / "small.after")
    check_resumable(run, 1)
    newest = int(run.all_checkpoints()[-1].stem[-9:])
    (tmp_path / "small.after").rename(tmp_path / "outputs")
    checkpoint = only_run(tmp_path / "outputs").all_checkpoints()[-1]
    shorter = [*TOY, f"output_dir={tmp_path / 'outputs'}", f"max_steps={newest + 3}", f"resume={checkpoint}"]
    resumed = finish(shorter, tmp_path / "log")
    assert f"from step {newest}" in resumed


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_that_vanish(tmp_path: Path, workers: int):
    """The one that is open is read to its end; the next, which is not there, ends the run."""
    small_set.write_split(tmp_path / "set", "train", [200, 200], size=16)
    small_set.write_split(tmp_path / "set", "val", [6], size=16)
    command = [*TOY, "data=webdataset", f"data.root={tmp_path / 'set'}", "text_encoder.width=8", "data.window=1"]
    command += ["text_encoder.max_length=16", f"output_dir={tmp_path / 'outputs'}", "max_steps=200"]
    command += [f"data.num_workers={workers}"]
    log = tmp_path / "log"
    shards = {path: path.read_bytes() for path in (tmp_path / "set" / "train" / "images-16").glob("*.tar")}
    with under_way(command, tmp_path / "outputs", log) as process:
        for shard in shards:
            shard.unlink()
        assert process.wait(100) == 1, log.read_text()
    (sentence,) = errors(log.read_text())
    assert re.search(r"train/images-16/0000[01]\.tar", sentence)
    check_resumable(only_run(tmp_path / "outputs"), 1)
    for shard, content in shards.items():
        shard.write_bytes(content)
    assert "from step" in finish(command, log)


SPOILED = f"""
import math, os, sys
sys.path.insert(0, {str(ROOT)!r})
from imagen.lightning_module import DiffusionModule
plain = DiffusionModule.training_step
def spoiled(self, batch, batch_idx):
    first, last = map(int, os.environ["SPOILED"].split())
    here = first <= self.trainer.global_step <= last and self.trainer.global_rank == self.trainer.world_size - 1
    return plain(self, batch, batch_idx) * (math.nan if here else 1.0)
DiffusionModule.training_step = spoiled
if __name__ == "__main__":
    import train
    train.run()
"""


@pytest.mark.parametrize("ranks", [1, 2])
def test_losses_that_are_no_numbers(tmp_path: Path, ranks: int):
    """One is skipped by all ranks, though one alone met it; many take the run back twice, then end it."""
    (tmp_path / "train.py").write_text(SPOILED)
    options = [*TOY[1:], *(TWO if ranks == 2 else []), "callback.guard.max_in_a_row=3", "callback.checkpoint.keep=9"]
    command = [str(tmp_path / "train.py"), *options, f"output_dir={tmp_path / 'outputs'}", "max_steps=12"]
    log = tmp_path / "log"
    with running(command, ROOT, log, SPOILED="6 99") as process:
        assert process.wait(200) == 1, log.read_text()
    said = log.read_text()
    assert said.count("going back to the ") == 2
    assert len(set(errors(said))) == 1
    assert "3 steps in a row, the last of them 9, had no finite loss or gradient even after going back 2 times" in said
    run = only_run(tmp_path / "outputs")
    check_resumable(run, 1)
    saved = {path.name for path in run.faults.glob("*.safetensors")}
    assert saved == {f"step_{step:09d}_rank_{rank}_part_0.safetensors" for step in (7, 8, 9) for rank in range(ranks)}
    with running(command, ROOT, log, SPOILED="8 8") as process:
        assert process.wait(200) == 0, log.read_text()
    assert json.loads(run.done.read_text())["step"] == 12


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_rank_that_dies(tmp_path: Path, how: signal.Signals):
    command, log = [*TOY, *TWO, f"output_dir={tmp_path / 'outputs'}", "max_steps=100000"], tmp_path / "log"
    with under_way(command, tmp_path / "outputs", log, PYTHONFAULTHANDLER="") as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (rank,) = [int(child) for child in children if b"train.py" in Path(f"/proc/{child}/cmdline").read_bytes()]
        os.kill(rank, how)
        died = time.monotonic()
        status = process.wait(LONGEST)
        print(f"the other rank ended {time.monotonic() - died:.1f} s later")
    assert status == 1, log.read_text()
    (sentence,) = errors(log.read_text())
    assert "another process of this training has ended or no longer answers" in sentence
    assert ("Fatal Python error: Segmentation fault" in log.read_text()) == (how == signal.SIGSEGV)
    check_resumable(only_run(tmp_path / "outputs"), 1)


def test_ranks_wait_for_the_checkpoint_of_the_first(tmp_path: Path):
    """It takes longer than a launcher needs to see that another rank ended, and to kill the first for it."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
import imagen.background
plain = imagen.background.write_checkpoint
def slow(checkpoint, path):
    time.sleep(12)
    plain(checkpoint, path)
imagen.background.write_checkpoint = slow
if __name__ == "__main__":
    import train
    train.run()
""")
    options = [*TOY[1:], *TWO, "callback.checkpoint.every_n_steps=100000", "trainer.log_every_n_steps=1"]
    command = [str(script), *options, f"output_dir={tmp_path / 'outputs'}", "max_steps=100000"]
    log = tmp_path / "log"
    with running(command, ROOT, log) as process:
        while not list(tmp_path.glob("outputs/toy/*/metrics.jsonl")):
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)
        told = time.monotonic()
        assert process.wait(LONGEST) == 128 + signal.SIGTERM, log.read_text()
    assert time.monotonic() - told > 12
    assert errors(log.read_text()) == []
    check_resumable(only_run(tmp_path / "outputs"), 1)


def test_five_hundred_steps_leak_nothing(tmp_path: Path):
    """Neither memory, to 1 %, nor open files, with everything that goes on beside a training going on often."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import json, os, sys
sys.path.insert(0, {str(ROOT)!r})
from imagen.callback import Guard
plain = Guard.on_train_batch_end
def watched(self, trainer, *args):
    plain(self, trainer, *args)
    if trainer.global_step % 20 == 0:
        resident = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        row = [trainer.global_step, resident, len(os.listdir("/proc/self/fd"))]
        open(os.environ["WATCHED"], "a").write(json.dumps(row) + "\\n")
Guard.on_train_batch_end = watched
if __name__ == "__main__":
    import train
    train.run()
""")
    often = ["callback=[progress,checkpoint,guard,sample_grid,loss_by_logsnr]", "callback.checkpoint.every_n_steps=20"]
    often += ["callback.sample_grid.every_n_steps=20", "sampler.num_steps=2", "validate_every_n_steps=20"]
    command = [str(script), *TOY[1:], *often, "max_steps=700", f"output_dir={tmp_path / 'outputs'}"]
    log, watched = tmp_path / "log", tmp_path / "watched.jsonl"
    with running(command, ROOT, log, WATCHED=str(watched)) as process:
        assert process.wait(600) == 0, log.read_text()
    rows = [json.loads(line) for line in watched.read_text().splitlines()]
    then, now = ([row for row in rows if first <= row[0] < first + 100] for first in (200, 601))
    before, after = (sorted(row[1] for row in part)[len(part) // 2] for part in (then, now))
    print(f"resident {before / 2**20:.1f} MiB at step 250, {after / 2**20:.1f} MiB at step 650")
    assert after < 1.01 * before
    assert max(row[2] for row in now) <= max(row[2] for row in then)
