import errno
from pathlib import Path

import pytest
import torch

from imagen.checkpoints import (
    DamagedError,
    check_whole,
    checkpoint_name,
    checkpoint_step,
    read_checkpoint,
    remove_checkpoint,
    set_aside,
    write_checkpoint,
)

STATE = {"imagen": {}, "w": torch.arange(100.0)}


def test_names_say_the_step_and_sort_as_steps_do():
    names = [checkpoint_name(step) for step in (7, 70, 1_000_000)]
    assert names == sorted(names)
    assert [checkpoint_step(Path(name)) for name in names] == [7, 70, 1_000_000]


def test_what_is_written_comes_back(tmp_path):
    write_checkpoint(STATE, tmp_path / "a.ckpt")
    assert torch.equal(read_checkpoint(tmp_path / "a.ckpt", mmap=True)["w"], STATE["w"])
    check_whole(tmp_path / "a.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damage_is_noticed(tmp_path, damage):
    path = tmp_path / "a.ckpt"
    write_checkpoint(STATE, path)
    content = bytearray(path.read_bytes())
    content[content.index(STATE["w"].numpy().tobytes()) + 50] ^= 1
    path.write_bytes({"cut": content[:-100], "flipped": content, "empty": b""}[damage])
    with pytest.raises(DamagedError, match=r"a\.ckpt' is damaged"):
        check_whole(path)
    aside = set_aside(path)
    assert aside.name == "a.ckpt.damaged"
    assert aside.exists()
    assert not path.exists()


def test_a_disk_that_fails_says_so_and_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    write_checkpoint(STATE, path)

    def full(state, file):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 4195264 vs 4195216")  # as torch does

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space") as error:
        write_checkpoint(STATE, path)
    assert error.value.filename == str(path)
    check_whole(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_of_several_processes_is_whole_with_what_is_written_last(tmp_path):
    folder = tmp_path / "a.ckpt"
    folder.mkdir()
    with pytest.raises(DamagedError, match=r"lacks meta\.pt"):
        check_whole(folder)
    torch.save({"imagen": {}, "global_step": 3}, folder / "meta.pt")
    check_whole(folder)
    assert read_checkpoint(folder)["global_step"] == 3


def test_files_and_folders_are_removed(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "part").touch()
    (tmp_path / "file").touch()
    for name in ("folder", "file", "gone"):
        remove_checkpoint(tmp_path / name)
    assert not list(tmp_path.iterdir())
