import errno
from pathlib import Path

import pytest
import torch

from imagen.checkpoints import (
    PARTIAL,
    PARTS,
    SHARED,
    DamagedError,
    check_whole,
    checkpoint_name,
    checkpoint_step,
    read_checkpoint,
    remove_checkpoint,
    remove_partial,
    set_aside,
    size_and_crc,
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


def shared_folder(path: Path) -> Path:
    """As two processes write it together."""
    path.mkdir()
    parts = ("__0_0.distcp", "__1_0.distcp")
    for name in parts:
        (path / name).write_bytes(name.encode() * 1000)
    known = {name: size_and_crc(path / name) for name in parts}
    write_checkpoint({"imagen": {}, "global_step": 3, PARTS: known}, path / SHARED)
    return path


def test_a_folder_of_several_processes_is_whole_with_what_is_written_last(tmp_path):
    folder = shared_folder(tmp_path / "a.ckpt")
    check_whole(folder)
    assert read_checkpoint(folder)["global_step"] == 3
    write_checkpoint({"imagen": {}, "global_step": 3}, folder / SHARED)
    with pytest.raises(DamagedError, match="lists no parts"):
        check_whole(folder)
    (folder / SHARED).unlink()
    with pytest.raises(DamagedError, match=r"lacks meta\.pt"):
        check_whole(folder)


@pytest.mark.parametrize("name", ["__1_0.distcp", SHARED])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_damage_to_a_part_of_a_folder_is_noticed(tmp_path, name, damage):
    folder = shared_folder(tmp_path / "a.ckpt")
    content = bytearray((folder / name).read_bytes())
    content[content.index(b"distcp")] ^= 1
    (folder / name).write_bytes(content[:-100] if damage == "cut" else content)
    if damage == "gone":
        (folder / name).unlink()
    with pytest.raises(DamagedError, match=r"a\.ckpt' is damaged"):
        check_whole(folder)


def test_what_was_never_whole_is_removed(tmp_path):
    folder = shared_folder(tmp_path / "a.ckpt")
    shared_folder(tmp_path / f"b.ckpt{PARTIAL}")
    remove_partial(tmp_path)
    assert list(tmp_path.iterdir()) == [folder]


def test_files_and_folders_are_removed(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "part").touch()
    (tmp_path / "file").touch()
    for name in ("folder", "file", "gone"):
        remove_checkpoint(tmp_path / name)
    assert not list(tmp_path.iterdir())
