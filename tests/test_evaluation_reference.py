"""The real pictures: a stage's own set, or any folder of shards or files."""

import pytest
import torch
from lightning import LightningDataModule
from PIL import Image
from small_set import ENCODER, write_split

from imagen import build
from imagen.cli import compose
from imagen.data.reader import read_shard
from imagen.data.synthetic import draw, split_captions
from imagen.errors import UserError
from imagen.evaluation import reference
from imagen.evaluation.reference import read_folder, read_set
from imagen.metric.pictures import InMemory


def test_a_set_made_in_memory_is_measured_against_as_any_other():
    cfg = compose("train", ["experiment=toy", "text_encoder=hash"])
    encoder = build.build_encoder(cfg)
    own = read_set(build.build_data(cfg), encoder, encoder)
    assert own.val.captions == split_captions("val")
    assert (len(own.train), len(own.whole)) == (196, 224)
    (whole,) = own.whole.batches(224)
    picture = torch.from_numpy(draw(own.val.captions[0], cfg.resolution)).permute(2, 0, 1)
    assert torch.equal(whole[196], picture)
    with pytest.raises(UserError, match="data=LightningDataModule is not of conf/data"):
        read_set(LightningDataModule(), encoder, encoder)


def data_of(root):
    options = ["data=webdataset", f"data.root={root}", "resolution=8", "text_encoder=hash"]
    cfg = compose("train", ["experiment=toy", *options])
    cfg.text_encoder.width, cfg.text_encoder.max_length = ENCODER.width, ENCODER.max_length
    return build.build_data(cfg)


def test_a_split_is_read_when_it_is_asked_for_and_a_large_one_each_time_anew(tmp_path, monkeypatch):
    write_split(tmp_path, "train", [5])
    write_split(tmp_path, "val", [3])
    read = []
    monkeypatch.setattr(
        reference, "read_shard", lambda shard, text: read.append(shard.images) or read_shard(shard, text)
    )
    one, other = (read_set(data_of(tmp_path), ENCODER, ENCODER) for _ in range(2))
    reds = [batch[:, 0, 0, 0].tolist() for batch in one.val.batches(2)]
    assert reds == [[0, 1], [2]]
    assert {path.parts[-3] for path in read} == {"val"}
    assert len(read) == 1  # what is small is kept
    monkeypatch.setattr(reference, "MOST_IN_MEMORY", 2 * 3 * 8 * 8)
    assert [batch[:, 0, 0, 0].tolist() for batch in other.val.batches(2)] == reds
    assert len(read) == 3
    assert other.val.digest == one.val.digest
    assert other.whole.digest == one.whole.digest


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
