import errno
import json
import os
import socket
import subprocess
import sys
import tempfile

import pytest

from imagen.errors import UserError
from imagen.files import atomic_write, make_folder, read_json, write_json


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


def test_what_killed_processes_left_goes(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    host = socket.gethostname().replace(".", "-")
    stale = [f".a.tar.{host}.{dead.pid}.tmp", f".b.tar.{host}.{dead.pid}.tmp"]
    others = [
        f".a.tar.{host}.{os.getppid()}.tmp",
        f".a.tar.{host}2.{dead.pid}.tmp",
        f".a.{host}.{dead.pid}.tar",
        ".tmp",
    ]
    for name in (*stale, *others):
        (tmp_path / name).touch()
    with atomic_write(tmp_path / "a.tar") as temporary:
        temporary.touch()
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", *others}


def test_a_folder_is_looked_through_once_however_many_files_are_written(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    write_json(tmp_path / "a.json", 0)
    late = tmp_path / f".b.json.{socket.gethostname().replace('.', '-')}.{dead.pid}.tmp"
    late.touch()
    write_json(tmp_path / "b.json", 0)
    assert late.exists()


FULL = """
import resource, signal, sys
from imagen.files import atomic_write, write_array
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
def write_bytes(path):
    with atomic_write(path) as temporary:
        temporary.write_bytes(bytes(20_000))
def write_numbers(path):
    import numpy
    write_array(path, numpy.zeros(5_000))
def write_table(path):
    import pyarrow, pyarrow.parquet
    with atomic_write(path) as temporary:
        pyarrow.parquet.write_table(pyarrow.table({"a": list(range(50_000))}), temporary)
def write_in_a_bucket(path):
    with atomic_write("memory://full") as temporary:
        temporary.write_bytes(bytes(20_000))
try:
    locals()[sys.argv[1]](sys.argv[2])
except OSError as error:
    print(error.errno, error.filename)
"""


@pytest.mark.parametrize("how", ["bytes", "numbers", "table", "in_a_bucket"])
def test_the_error_of_a_full_disk_names_the_file(tmp_path, how):
    path = tmp_path / "a"
    command = [sys.executable, "-c", FULL, f"write_{how}", str(path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert said[0] == str(errno.EFBIG)
    assert said[1] == str(path) or (how == "in_a_bucket" and said[1].startswith(tempfile.gettempdir()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b""])
def test_a_json_file_that_is_damaged_is_named_with_the_remedy(tmp_path, content):
    write_json(tmp_path / "a.json", {"key": 1})
    assert read_json(tmp_path / "a.json", "") == {"key": 1}
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json is damaged: delete it, and wait"):
        read_json(tmp_path / "a.json", "wait")


def test_a_folder_that_cannot_be_made_names_its_argument(tmp_path):
    assert make_folder(tmp_path / "a" / "b", "output_dir").is_dir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=f"output_dir={path} cannot be made a folder"):
            make_folder(path, "output_dir")
