"""The real pictures: a stage's own set, or any folder of shards or files."""

import pytest
import torch
from PIL import Image
from small_set import write_split

from imagen import build
from imagen.cli import compose
from imagen.errors import UserError
from imagen.evaluation.reference import read_folder, read_set
from imagen.metric.pictures import InMemory


def test_a_set_made_in_memory_cannot_be_measured_against():
    cfg = compose("train", ["experiment=toy"])
    with pytest.raises(UserError, match="SyntheticModule"):
        read_set(build.build_data(cfg), build.build_encoder(cfg), build.build_encoder(cfg))


def test_any_folder_is_a_reference_cut_and_shrunk_as_the_loader_does(tmp_path, caplog):
    for number, size in ((1, (32, 16)), (2, (16, 16)), (3, (8, 40))):
        Image.new("RGB", size, (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "4.jpg").write_bytes(b"broken")
    (tmp_path / "notes.txt").write_text("no picture")
    found = read_folder(str(tmp_path), 16)
    assert len(found) == 2
    assert "2 of 4 pictures are left out, the first 3.png" in caplog.text
    assert [batch[:, 0, 0, 0].tolist() for batch in found.batches(1)] == [[1], [2]]
    assert found.digest == InMemory(torch.cat(list(found.batches(9))), ["", ""]).digest
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has neither shards nor pictures"):
        read_folder(str(tmp_path / "empty"), 16)
    with pytest.raises(UserError, match=r"no picture of 64 px that can be read, the first 1.png"):
        read_folder(str(tmp_path), 64)


def test_shards_are_a_reference_flat_or_packed_and_smaller_sizes_are_passed_over(tmp_path):
    for split, counts in (("train", [3, 2]), ("val", [2])):
        write_split(tmp_path, split, counts, size=8)
        write_split(tmp_path, split, counts, size=16)
    flat = read_folder(str(tmp_path / "train" / "images-16"), 8)
    assert flat.captions == [f"picture {i}" for i in range(5)]
    whole = read_folder(str(tmp_path), 8)
    assert [batch[:, 0, 0, 0].tolist() for batch in whole.batches(4)] == [[0, 1, 2, 3], [4, 0, 1]]
    assert read_folder(str(tmp_path), 16).captions == whole.captions
    assert read_folder(str(tmp_path), 16).digest != whole.digest
