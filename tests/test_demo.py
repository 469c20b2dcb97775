import signal
import sys

import pytest

from imagen import demo
from imagen.cli import compose


def test_the_demos_stages_chain_and_read_one_set_with_one_encoder():
    configs = [compose("train", [f"experiment={name}"]) for name in demo.STAGES]
    chain = [(cfg.low_resolution, cfg.resolution) for cfg in configs]
    assert chain == [(None, 16), (16, 64), (64, 256)]
    assert {cfg.data.root for cfg in configs} == {demo.DATA}
    assert {cfg.text_encoder.name for cfg in configs} == {"minilm"}


def test_a_step_that_fails_ends_the_demo_with_its_command():
    with pytest.raises(SystemExit, match=r"train\.py nonsense.* ended with status 1"):
        demo._run("train.py", "nonsense=1")


def test_ctrl_c_waits_for_the_script_in_hand_however_long_it_saves():
    # the whole process group has the signal: here the script sends it on, and takes its time
    child = "import os, signal, sys, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(0.5); sys.exit(130)"
    before = signal.getsignal(signal.SIGINT)
    assert demo._wait([sys.executable, "-c", child]) == (130, signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_script_that_was_stopped_stops_the_demo_with_its_status(monkeypatch, capsys):
    monkeypatch.setattr(demo, "_wait", lambda command: (130, 0))
    with pytest.raises(SystemExit) as stopped:
        demo._run("train.py")
    assert stopped.value.code == 130
    assert "goes on from there" in capsys.readouterr().err
