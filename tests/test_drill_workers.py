"""filter, pack and embed_text write the same bytes however their work is spread, killed on the way or not."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import running
from raw_shards import encoded, sample, scene, write_raw

from imagen.data.shards import stats_path

pytestmark = pytest.mark.drill

ROOT = Path(__file__).parents[1]
SHARDS, SAMPLES = 7, 5
STEPS = {  # what each script is given, by the name of its output's argument
    "filter": ["safety=none", "min_size=16", "max_caption_repeats=6"],
    "pack": ["sizes=[16,32]", "shard_size=6", "validation=6", "format=jpg"],
    "embed_text": ["text_encoder=hash", "storage=int8"],
}

Spread = Callable[[list[str]], Sequence[list[str]]]


def torchrun(arguments: list[str]) -> list[list[str]]:
    return [["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *arguments]]


def swept(launcher: str) -> Spread:
    def commands(arguments: list[str]) -> list[list[str]]:
        script, *settings = arguments
        return [[script, "-m", "worker_index=0,1", "worker_count=2", f"hydra/launcher={launcher}", *settings]]

    return commands


WAYS: dict[str, Spread] = {
    "processes": lambda arguments: [[*arguments, "num_workers=2"]],
    "two commands at once": lambda arguments: [[*arguments, f"worker_index={i}", "worker_count=2"] for i in range(2)],
    "torchrun": torchrun,
    "multirun": swept("basic"),
    "submitit": swept("submitit_local"),
}


def single(arguments: list[str]) -> list[list[str]]:
    return [arguments]


def run(command: list[str], cwd: Path) -> str:
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *command]
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def arguments(script: str, raw: Path, folder: Path) -> list[str]:
    """The command of a step of the chain in ``folder``."""
    places = {
        "filter": [f"input={raw}", f"output={folder / 'clean'}"],
        "pack": [f"input={folder / 'clean'}", f"root={folder / 'set'}"],
        "embed_text": [f"root={folder / 'set'}"],
    }
    return [str(ROOT / "data_prep" / f"{script}.py"), *places[script], *STEPS[script]]


def step(script: str, raw: Path, folder: Path, spread: Spread) -> None:
    commands = spread(arguments(script, raw, folder))
    folder.mkdir(exist_ok=True)
    with ThreadPoolExecutor() as pool:
        said = list(pool.map(lambda command: run(command, folder), commands))
    for _ in range(2):  # the filter's phases: what others had not done is done by the same command again
        if script != "filter" or (folder / "clean" / "reports" / "filter.json").exists():
            break
        assert len(commands) > 1 or spread is not single, said
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda command: run(command, folder), commands))


def chain(raw: Path, folder: Path, spread: Spread) -> dict[str, bytes]:
    for script in STEPS:
        step(script, raw, folder, spread)
    return tree(folder)


TIMES = ("duration", "start_time", "end_time")


def tree(folder: Path) -> dict[str, bytes]:
    """Name and content of all that the chain wrote; of stats all but the times, of reports but how many did it."""
    found = {}
    for path in sorted(path for part in ("clean", "set") for path in (folder / part).rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.name.endswith("_stats.json"):
            stats = json.loads(content)
            content = json.dumps({name: value for name, value in stats.items() if name not in TIMES}).encode()
        elif path.suffix == ".json":
            report = json.loads(content.decode().replace(str(folder), "<folder>"))
            report["config"] = {k: v for k, v in report["config"].items() if not k.startswith(("num_w", "worker_"))}
            content = json.dumps(report).encode()
        found[str(path.relative_to(folder))] = content
    return found


def same(made: dict[str, bytes], wanted: dict[str, bytes]) -> None:
    assert made.keys() == wanted.keys()
    assert [name for name in made if made[name] != wanted[name]] == []


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards from the web, with copies and captions that repeat across them."""
    folder = tmp_path_factory.mktemp("raw")
    for shard in range(SHARDS):
        samples = []
        for i in range(SAMPLES):
            number = shard * SAMPLES + i
            copied, repeated = i == 3, i == 4
            content = encoded(scene(64, 48, 1000 if copied else number), quality=90 + shard if copied else 95)
            caption = "Image not available" if repeated else None
            samples.append(sample(f"{shard:05}{i:04}", content, caption=caption))
        write_raw(folder, shard, samples)
    return folder


@pytest.fixture(scope="module")
def alone(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process writes."""
    made = chain(raw, tmp_path_factory.mktemp("alone") / "made", single)
    assert len([name for name in made if name.endswith(".tar")]) > 15
    return made


@pytest.mark.parametrize("way", WAYS)
def test_however_work_is_spread_the_same_is_written(
    raw: Path, alone: dict[str, bytes], tmp_path: Path, way: str
) -> None:
    if way == "submitit":
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install hydra-submitit-launcher")
    same(chain(raw, tmp_path / "made", WAYS[way]), alone)


def heavy(folder: Path) -> Path:
    """Pictures that take a while, for a kill to come in between."""
    rng = np.random.default_rng(0)
    for shard in range(SHARDS):
        pictures = [Image.fromarray(rng.integers(0, 256, (400, 500, 3), dtype=np.uint8)) for _ in range(30)]
        write_raw(folder, shard, [sample(f"{shard:05}{i:04}", encoded(one)) for i, one in enumerate(pictures)])
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return heavy(tmp_path_factory.mktemp("large"))


@pytest.fixture(scope="module")
def unstopped(large: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unstopped") / "made"
    chain(large, folder, single)
    return folder


WRITTEN = {"filter": "clean/*.tar", "pack": "set/*/images-*/*.tar", "embed_text": "set/*/text-*/*.tar"}


@pytest.mark.parametrize("script", STEPS)
def test_killed_in_the_middle_and_run_again_the_same_is_written(
    large: Path, unstopped: Path, tmp_path: Path, script: str
) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    for before in list(STEPS)[: list(STEPS).index(script)]:
        step(before, large, folder, single)
    command = arguments(script, large, folder)
    with running(command, folder, tmp_path / "log") as process:
        while not list(folder.glob(WRITTEN[script])):
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    whole = [tar for tar in folder.glob(WRITTEN[script]) if stats_path(tar).exists()]
    assert len(whole) < len(list(unstopped.glob(WRITTEN[script])))  # it was in the middle
    times = {tar: tar.stat().st_mtime_ns for tar in whole}
    run(command, folder)
    assert {tar: tar.stat().st_mtime_ns for tar in whole} == times
    for after in list(STEPS)[list(STEPS).index(script) + 1 :]:
        step(after, large, folder, single)
    same(tree(folder), tree(unstopped))
    assert not list(folder.rglob("*.tmp"))
