"""A real sweep, whole; killed in the middle and started again; by two workers at once: one table each time."""

import csv
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from processes import ROOT, on_two_ranks, running

from imagen.ablation.failures import failures
from imagen.runs import RunFolder

pytestmark = pytest.mark.drill

PROMPTS = ",".join(f"{colour} {thing}" for colour in ("red", "green", "blue") for thing in ("apple", "heart", "car"))
MEASURE = f'measure=["prompts=[{PROMPTS}]","metric=[fd_pixel,heldout_loss]"]'
SMALL = ["network.width=16", "max_steps=12", "validate_every_n_steps=12", "trainer.precision=32-true", MEASURE]
SCALE = {
    "prepare": [],
    "stages": {
        "base": {
            "experiment": "toy",
            "measure": ["metric=[fd_pixel,heldout_loss]", "metric.fd_pixel.components=4", "num_measured=8"],
            "plot": {"x": "heldout_loss", "y": "fd_pixel"},
        }
    },
}
ABLATION = {
    "figure": "nothing",
    "claim": "a lower rate trains better",
    "stage": "base",
    "toy": {
        "variants": {
            "far_too_high": {"optimizer.lr": 1e30, "max_steps": 24},
            "over_before_it_is_seen": {"optimizer.lr": 1e40, "max_steps": 6},  # which float32 does not hold
            "draws_nonetheless": {"optimizer.lr": 1e30, "max_steps": 6},  # what thresholding makes finite
            "usual": {"max_steps": 24},
        },
        "verdict": {
            "metric": "heldout_loss",
            "expected": "negative",
            "contrast": [{"of": {"variant": "usual"}, "less": {"variant": "far_too_high"}}],
        },
    },
}
NOT_THE_SAME = {"seconds", "seconds_per_step"}
"""Columns that say how long something took."""


def sweep(data: Path, folder: Path) -> list[str]:
    asked = ["ablation=text_layernorm", "scale=demo"]
    return ["train.py", "-m", *asked, *SMALL, f"data.root={data}", f"output_dir={folder}"]


def rows_of(data: Path, folder: Path) -> list[dict[str, str]]:
    """The report's rows, less what is of the moment."""
    command = ["-m", "imagen.report", *sweep(data, folder)[2:]]
    log = folder / "report.log"
    with running(command, ROOT, log) as process:
        assert process.wait(300) == 0, log.read_text()
    with (folder / "ablations" / "text_layernorm-demo" / "table.csv").open() as file:
        return [{key: row[key] for key in row if key not in NOT_THE_SAME} for row in csv.DictReader(file)]


def differing(rows: list[dict[str, str]], others: list[dict[str, str]]) -> list[str]:
    """In which columns of which rows two tables differ, which pytest would cut short."""
    assert len(rows) == len(others)
    pairs = [(i, key, a[key], b.get(key)) for i, (a, b) in enumerate(zip(rows, others, strict=True)) for key in a]
    return [f"row {i}, {key}: {one} and {other}" for i, key, one, other in pairs if one != other]


def wait_for(log: Path, said: str, seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while said not in (log.read_text() if log.exists() else ""):
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)


def test_a_search_goes_by_the_loss_on_held_out_pictures(tmp_path):
    small = ["experiment=toy", "max_steps=10", "validate_every_n_steps=10", f"output_dir={tmp_path}/runs"]
    search = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "optimizer.lr=choice(1e-6,1e-2)"]
    log = tmp_path / "search.log"
    with running(["train.py", "-m", *search, *small, f"hydra.sweep.dir={tmp_path}"], ROOT, log) as process:
        assert process.wait(300) == 0, log.read_text()
    best = OmegaConf.load(tmp_path / "optimization_results.yaml")
    last = [RunFolder(path.parent).last("val/loss") for path in (tmp_path / "runs").rglob("done.json")]
    assert best["best_value"] == min(value for value in last if value is not None)


def test_two_processes_of_torchrun_are_one_worker(tmp_path):
    data, folder, log = tmp_path / "openmoji", tmp_path / "runs", tmp_path / "sweep.log"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    two = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    with running([*torchrun, *sweep(data, folder), *two], ROOT, log) as process:
        assert process.wait(600) == 0, log.read_text()
    said = log.read_text()
    assert said.count("$ python data_prep/openmoji.py") == 1
    assert len(re.findall(r"^finished (\S+) at step", said, re.MULTILINE)) == 2
    assert "another worker" not in said
    assert len(rows_of(data, folder)) == 2 * 3
    with running([*torchrun, *sweep(data, folder), *two], ROOT, log) as process:
        assert process.wait(300) == 0, log.read_text()
    assert log.read_text().count("is finished; delete it") == 2 * 2


def test_a_process_that_fails_alone_leaves_no_other_waiting(tmp_path):
    """The first never gets into the training that the second waits for it in."""
    script = tmp_path / "first_fails.py"
    script.write_text(
        "import runpy\n"
        "from datetime import timedelta\n"
        "from types import SimpleNamespace\n"
        "import torch.distributed\n"
        "from imagen import training\n"
        "from imagen.ablation import run\n"
        "from imagen.errors import UserError\n"
        "def train(cfg):\n"
        "    if torch.distributed.get_rank() == 0:\n"
        "        raise UserError('the disk of rank 0 is gone')\n"
        "    with training._naming_the_others(SimpleNamespace(world_size=2)):\n"
        "        torch.distributed.barrier()\n"
        "run.train, run.SOON = train, timedelta(seconds=3)\n"
        "runpy.run_path('train.py', run_name='__main__')\n"
    )
    point = ["experiment=lab_base16", "variant=without", "sweep=text_layernorm-demo", f"output_dir={tmp_path}/runs"]
    command = [str(script), *point, "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    said, statuses = on_two_ranks([command] * 2, tmp_path, 120)
    assert statuses == [1, 1], said
    assert "error: another process of this sweep has ended, or never came" in said[0]
    assert "error: another process of this training has ended" in said[1]
    (noted,) = failures(tmp_path / "runs" / "ablations" / "text_layernorm-demo").values()
    assert noted["error"] == "the disk of rank 0 is gone"


@pytest.fixture
def clone(tmp_path) -> Path:
    """The project with a scale and an ablation of one's own."""
    for name in ("conf", "src/imagen"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", tmp_path)
    for name, said in {"scale/toy": SCALE, "ablation/rate": ABLATION}.items():
        (tmp_path / "conf" / f"{name}.yaml").write_text(yaml.safe_dump(said, sort_keys=False))
    return tmp_path


def test_a_point_that_diverged_is_one_sentence_and_the_rest_goes_on(clone):
    asked, own = ["ablation=rate", "scale=toy"], {"PYTHONPATH": str(clone / "src")}
    log, folder = clone / "said.log", clone / "outputs" / "ablations" / "rate-toy"
    with running(["train.py", "-m", *asked], clone, log, **own) as process:
        assert process.wait(300) == 1, log.read_text()
    said = log.read_text()
    assert "Traceback" not in said
    early = r"10 steps in a row, .* had no finite loss or gradient even after going back 2 times: .* a lower optimizer"
    late = r"what stage base draws is not finite: most likely its training diverged; .* a lower optimizer.lr say"
    assert re.search(rf"^failed: far_too_high-s0: {early}", said, re.MULTILINE)
    assert re.search(rf"^failed: over_before_it_is_seen-s0: {late}", said, re.MULTILINE)
    assert "2 of 4 points are there: python -m imagen.report ablation=rate scale=toy" in said
    assert said.endswith("error: 2 of 4 points failed; the same command runs these again\n")

    with running(["-m", "imagen.report", *asked], clone, log, **own) as process:
        assert process.wait(300) == 0, log.read_text()
    said, page = log.read_text(), (folder / "report.html").read_text()
    for name, why in {"far_too_high": early, "over_before_it_is_seen": late}.items():
        assert re.search(rf"^missing: {name}-s0: failed: {why}", said, re.MULTILINE)
        assert re.search(why, page)
    with (folder / "table.csv").open() as file:
        assert [row["variant"] for row in csv.DictReader(file)] == ["draws_nonetheless", "usual"]
    assert "note: draws_nonetheless-s0, all: no heldout_loss, since heldout_loss is inf" in said
    assert (folder / "figure.png").is_file()


def test_killed_or_shared_a_sweep_ends_with_the_table_of_an_unbroken_one(tmp_path):
    data = tmp_path / "openmoji"
    logs = {name: tmp_path / f"{name}.log" for name in ("whole", "killed", "again", "first", "second")}

    with running(sweep(data, tmp_path / "one"), ROOT, logs["whole"]) as process:
        assert process.wait(600) == 0, logs["whole"].read_text()
    whole = rows_of(data, tmp_path / "one")
    assert len(whole) == 2 * 3
    assert all(float(row["heldout_loss"]) > 0 for row in whole)

    with running(sweep(data, tmp_path / "two"), ROOT, logs["killed"]) as process:
        wait_for(logs["killed"], "#1 :")  # the second point has begun
        wait_for(logs["killed"], "training:")
        os.killpg(process.pid, signal.SIGKILL)
    half = rows_of(data, tmp_path / "two")
    assert [row for row in whole if row["variant"] == "with_norm"] == half
    with running(sweep(data, tmp_path / "two"), ROOT, logs["again"]) as process:
        assert process.wait(600) == 0, logs["again"].read_text()
    assert differing(rows_of(data, tmp_path / "two"), whole) == []

    with (
        running(sweep(data, tmp_path / "three"), ROOT, logs["first"]) as first,
        running(sweep(data, tmp_path / "three"), ROOT, logs["second"]) as second,
    ):
        assert [first.wait(600), second.wait(600)] == [0, 0], logs["first"].read_text() + logs["second"].read_text()
    trained = re.findall(
        r"^finished (\S+) at step", logs["first"].read_text() + logs["second"].read_text(), re.MULTILINE
    )
    assert len(trained) == len(set(trained)) == 2, "no point by both"
    assert differing(rows_of(data, tmp_path / "three"), whole) == []
