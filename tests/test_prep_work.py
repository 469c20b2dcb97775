"""Work spread over processes and machines."""

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import processes
import pytest

from imagen.errors import UserError
from imagen.prep import work
from imagen.prep.work import Workers


def double(number):
    return 2 * number, os.getpid()


def refuse(number):
    if number == 2:
        raise UserError("number=2 is refused")
    return number


def test_shares_are_disjoint_and_whole():
    shares = [Workers(0, index, 3).share(range(10)) for index in range(3)]
    assert sorted(item for share in shares for item in share) == list(range(10))
    for index, share in enumerate(shares):
        assert sorted(share + Workers(0, index, 3).others(range(10))) == list(range(10))
    assert max(map(len, shares)) - min(map(len, shares)) == 1


@pytest.mark.parametrize("processes", [0, 2])
def test_every_item_is_done_once(processes):
    results = list(Workers(processes, 0, 1).map(double, range(5), what="doubling"))
    assert sorted(value for value, _ in results) == [0, 2, 4, 6, 8]
    assert (os.getpid() in {process for _, process in results}) == (processes == 0)


@pytest.mark.parametrize("processes", [0, 1])
def test_an_error_reaches_the_caller(processes):
    with pytest.raises(UserError, match="number=2 is refused"):
        list(Workers(processes, 0, 1).map(refuse, range(5), what="refusing"))


@pytest.mark.parametrize("bad", [(-1, 0, 1), (0, 1, 1), (0, -1, 2), (0, 0, 0)])
def test_bad_numbers_are_refused(bad):
    with pytest.raises(UserError, match=r"num_workers=|worker_index="):
        Workers(*bad)


ORPHANS = """
import os, sys, time
from pathlib import Path
from imagen.prep.work import Workers
def stay(name):
    Path(name).write_text(str(os.getpid()))
    time.sleep(600)
if __name__ == "__main__":
    list(Workers(2, 0, 1).map(stay, sys.argv[1:], what="staying"))
"""


def lives(process: int) -> bool:
    """Whether it is there and has not ended already, unmissed by whoever inherited it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(true, seconds):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_a_parent_that_is_killed(tmp_path, how):
    (tmp_path / "orphans.py").write_text(ORPHANS)
    files = [tmp_path / "0", tmp_path / "1"]
    with processes.running(["orphans.py", *map(str, files)], tmp_path, tmp_path / "log") as parent:
        assert until(lambda: all(file.exists() and file.read_text() for file in files), 60)
        workers = [int(file.read_text()) for file in files]
        assert all(map(lives, workers))
        parent.send_signal(how)
        parent.wait(10)
        assert until(lambda: not any(map(lives, workers)), 10 * work.POLL)


def test_a_result_costs_the_same_however_many_still_wait(monkeypatch):
    """Threads in place of processes, which would take most of the time to start and to be sent to."""
    monkeypatch.setattr(work, "ProcessPoolExecutor", lambda count, *_: ThreadPoolExecutor(count))
    started = time.monotonic()
    assert sorted(Workers(1, 0, 1).map(abs, range(20_000), what="counting")) == list(range(20_000))
    assert time.monotonic() - started < 20  # minutes, if each looked at all others


def test_who_stops_listening_stops_the_work(tmp_path):
    results = Workers(1, 0, 1).map(touch, [tmp_path / f"{i:03}" for i in range(200)], what="touching")
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert 1 <= len(list(tmp_path.iterdir())) < 100


def touch(path):
    time.sleep(0.01)
    path.touch()
