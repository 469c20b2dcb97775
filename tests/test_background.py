import threading
from collections import OrderedDict

import pytest
import torch

import imagen.background
from imagen.background import CheckpointWriter, HostCopy
from imagen.checkpoints import read_checkpoint


def test_a_copy_is_of_the_moment_and_its_memory_is_used_again():
    weight = torch.arange(4.0)
    state = {"imagen": {"config": {"a": [1, 2]}}, "state": OrderedDict(w=weight), "list": [weight, (1, None)]}
    state["state"]._metadata = {"": {"version": 2}}
    copier = HostCopy()
    first = copier.take(state)
    weight.add_(1)
    state["imagen"]["config"]["a"].append(3)
    assert first["state"]["w"].tolist() == [0, 1, 2, 3]
    assert first["state"]._metadata == {"": {"version": 2}}
    assert first["imagen"]["config"]["a"] == [1, 2]
    assert first["list"][1] == (1, None)
    second = copier.take(state)
    assert second["state"]["w"].data_ptr() == first["state"]["w"].data_ptr()
    assert second["state"]["w"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("background", [False, True])
def test_a_checkpoint_is_of_the_moment_it_was_asked_for(tmp_path, monkeypatch, background):
    weight, told, begin = torch.zeros(3), [], threading.Event()
    plain = imagen.background.write_checkpoint

    def held_up(checkpoint, path):
        begin.wait(10)
        plain(checkpoint, path)

    monkeypatch.setattr(imagen.background, "write_checkpoint", held_up)
    writer = CheckpointWriter(lambda: told.append((tmp_path / "a.ckpt").exists()), background=background)
    if not background:
        begin.set()
    writer.save_checkpoint({"imagen": {}, "w": weight}, tmp_path / "a.ckpt")
    weight.add_(1)  # as training does
    writer.check()  # nothing is known of it yet
    begin.set()
    writer.wait()
    assert told == [True]
    assert read_checkpoint(tmp_path / "a.ckpt")["w"].tolist() == [0, 0, 0]
    writer.teardown()


@pytest.mark.parametrize("ask", ["check", "wait", "save"])
def test_what_goes_wrong_in_the_thread_reaches_training_once(tmp_path, ask):
    (tmp_path / "file").touch()
    writer = CheckpointWriter(lambda: None, background=True)
    writer.save_checkpoint({}, tmp_path / "file" / "a.ckpt")
    while not writer._writing.done():
        pass
    with pytest.raises(OSError, match="file"):
        {"check": writer.check, "wait": writer.wait}.get(ask, lambda: writer.save_checkpoint({}, tmp_path / "b"))()
    writer.wait()
    writer.teardown()
