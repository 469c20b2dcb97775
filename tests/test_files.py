import json

import pytest

from imagen.errors import UserError
from imagen.files import atomic_write, make_folder, write_json


def test_a_file_arrives_whole(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"b": "ü"})
    assert json.loads((tmp_path / "new" / "a.json").read_text(encoding="utf-8")) == {"b": "ü"}


def test_a_failed_write_leaves_what_was_there_and_nothing_beside(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_as_private_as_the_umask_says(tmp_path):
    def private(path) -> None:  # as safetensors does
        path.unlink(missing_ok=True)
        path.touch(0o600)

    (tmp_path / "plain").touch()
    with atomic_write(tmp_path / "a") as temporary:
        private(temporary)
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_that_cannot_be_made_names_its_argument(tmp_path):
    assert make_folder(tmp_path / "a" / "b", "output_dir").is_dir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=f"output_dir={path} cannot be made a folder"):
            make_folder(path, "output_dir")
