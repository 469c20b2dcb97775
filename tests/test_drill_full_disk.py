"""A disk that is really full: one sentence, nothing half, nothing lost, and with room it goes on to the same end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_prep_faults import HASH, prepared, raw, tree

from imagen.data.shards import stats_path

pytestmark = pytest.mark.drill

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "filter": ["safety=none", "min_size=16", "max_caption_length=200000"],
    "pack": ["sizes=[64]", "format=png", "shard_size=4", "validation=0"],
    "embed_text": HASH,
}

# $1 is to be a small disk, $2 what lies there at first, $3 and $4 where it is copied to when full and in the end
ON_A_SMALL_DISK = """
small=$1; begin=$2; full=$3; end=$4; shift 4
mount -t tmpfs -o size=64m tmpfs "$small" || exit 99
cp -r "$begin/." "$small"
used=$(($(du -sk "$small" | cut -f1) + ROOM))
mount -o remount,size=${used}k "$small" || exit 99
"$@"; status=$?
mkdir "$full"; cp -a "$small/." "$full"
[ $status = 1 ] || exit 98
mount -o remount,size=64m "$small"
"$@" || exit 97
mkdir "$end"; cp -a "$small/." "$end"
"""
ROOMS = {"filter": 70, "pack": 70, "embed_text": 40}  # kB: for the first shard, and not for the second, which is large


def namespace() -> list[str]:
    """How a command gets mounts of its own, which go with it; skipped where the machine lets nobody."""
    for command in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
        test = [*command, "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
        try:
            if subprocess.run(test, capture_output=True).returncode == 0:
                return command
        except FileNotFoundError:
            break
    pytest.skip("mounting a small disk takes unshare, and root or user namespaces")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("script", COMMANDS)
def test_a_full_disk(tmp_path: Path, script: str, workers: int):
    own_mounts = namespace()
    if script == "filter":
        source, begin = raw(tmp_path / "raw"), tmp_path / "begin"
        begin.mkdir()
    else:
        _, source, begin = prepared(script, tmp_path / "begin")
        begin.mkdir(exist_ok=True)
    small = tmp_path / "small"
    small.mkdir()
    places = [f"input={source}", f"{'output' if script == 'filter' else 'root'}={small}"][script == "embed_text" :]
    command = [sys.executable, f"data_prep/{script}.py", *places, *COMMANDS[script], f"num_workers={workers}"]
    shell = [*own_mounts, "sh", "-c", ON_A_SMALL_DISK, "sh", *map(str, (small, begin, tmp_path / "full"))]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "ROOM": str(ROOMS[script])}
    done = subprocess.run(
        [*shell, str(tmp_path / "end"), *command], cwd=ROOT, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith(f"error: {small}/")
    assert errors[0].endswith("cannot be used: No space left on device: make room and run the same command again")
    assert "Traceback" not in done.stderr

    full, end = tmp_path / "full", tmp_path / "end"
    assert not list(full.rglob("*.tmp"))
    before, after = tree(full), tree(end)
    marked = {str(tar.relative_to(full)) for tar in full.rglob("*.tar") if stats_path(tar).exists()}
    assert marked
    assert all(before[name] == after[name] for name in marked)
    assert set(after) > set(before)
    times = {name: (full / name).stat().st_mtime_ns for name in marked}
    assert {name: (end / name).stat().st_mtime_ns for name in marked} == times  # not written again

    unstopped = tmp_path / "unstopped"
    command = [one.replace(str(small), str(unstopped)) for one in command]
    subprocess.run(["cp", "-r", str(begin), str(unstopped)], check=True)
    subprocess.run(command, cwd=ROOT, env=variables, check=True, capture_output=True)
    assert tree(unstopped) == after
