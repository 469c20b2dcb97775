"""What files say of many shards, read at once."""

import threading
import time

from imagen.prep.gather import THREADS, gather, gather_done


def test_all_are_read_at_once_and_come_in_order():
    together = threading.Barrier(THREADS, timeout=20)  # broken, unless so many wait at a time

    def read(number):
        together.wait()
        time.sleep(0.001 * (THREADS - number))
        return number

    assert gather(read, range(THREADS)) == list(range(THREADS))


def test_what_is_missing_is_told(capsys):
    assert gather_done({"a": 0, "b": 1}.get, ["a", "b"]) == [0, 1]
    assert gather_done({"a": 0}.get, []) == []
    assert not capsys.readouterr().out
    assert gather_done({"a": 0}.get, ["a", "b", "c"]) is None
    assert "not done yet (shards still missing: 2)" in capsys.readouterr().out
