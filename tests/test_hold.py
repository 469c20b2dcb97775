"""A lock is held by one process, waited for or not, and let go of with the block."""

import multiprocessing
import threading
import time

from imagen.hold import hold


def test_it_is_held_once(tmp_path):
    with hold(tmp_path / ".lock") as first, hold(tmp_path / ".lock") as second:
        assert first
        assert not second
    with hold(tmp_path / ".lock") as again:
        assert again


def test_whoever_waits_comes_next(tmp_path):
    came = []

    def later():
        with hold(tmp_path / ".lock", wait=True) as held:
            came.append((held, time.monotonic()))

    with hold(tmp_path / ".lock"):
        waiting = threading.Thread(target=later)
        waiting.start()
        time.sleep(0.1)
        let_go = time.monotonic()
    waiting.join(timeout=10)
    assert came[0][0]
    assert came[0][1] >= let_go


def _die_holding(path):
    hold(path).__enter__()
    multiprocessing.current_process().kill()


def test_a_killed_holder_lets_go(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_die_holding, args=(tmp_path / ".lock",))
    process.start()
    process.join(timeout=60)
    with hold(tmp_path / ".lock") as held:
        assert held
