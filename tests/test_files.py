import json

import pytest

from imagen.files import atomic_write, write_json


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
