"""Captions into sidecar shards: real tokens, the same keys, redone only where something changed."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from imagen.cli import CONF, compose
from imagen.data import shards, tokens
from imagen.data.index import TEXT_FIELDS, index_path, read_index
from imagen.errors import UserError
from imagen.files import locate
from imagen.prep.embed_text import command
from imagen.prep.embed_text.command import embed_set, embed_with
from imagen.prep.embed_text.encoding import Batch, Encoding, Rows
from imagen.text_encoder import Hash
from imagen.types import TextEmbedding

CAPTIONS = {
    "train": [["a red heart", "", "dog"], ["dog", "a very long caption of nine words in all"]],
    "val": [["naïve café"]],
}
AWKWARD = ["", "nul\0 inside", "שלום עולם, مرحبا", "word " * 20_000, "", "nul\0 inside"]


class Spy(Hash):
    """The hash encoder, writing down what it is asked."""

    def __init__(self, **hyper):
        super().__init__(**hyper)
        self.batches = []

    def encode_tokenized(self, tokenized: list[list[str]]) -> TextEmbedding:
        self.batches.append([" ".join(row[:-1]) for row in tokenized])
        return super().encode_tokenized(tokenized)

    @property
    def asked(self) -> list[str]:
        return sorted(caption for batch in self.batches for caption in batch)


class Loud(Hash):
    """Its tokens are ``loudness`` times as large; what is padding may be anything."""

    def __init__(self, loudness, padding=0.0, **hyper):
        super().__init__(**hyper)
        self.loudness, self.padding = loudness, padding

    def encode_tokenized(self, tokenized: list[list[str]]) -> TextEmbedding:
        text = super().encode_tokenized(tokenized)
        return TextEmbedding((text.tokens * self.loudness).masked_fill(~text.mask[..., None], self.padding), text.mask)


def write(root, sets):
    for split, tars in sets.items():
        for i, captions in enumerate(tars):
            tar = locate(root) / split / "images-16" / f"{i:05}.tar"
            members = []
            for j, caption in reversed(list(enumerate(captions))):
                members += [(f"{i}{j}.png", b"no picture"), (f"{i}{j}.txt", caption.encode())]
            shards.write_tar(tar, members)
            with shards.stats_path(tar).open("w") as stats:
                json.dump({"successes": len(captions)}, stats)


@pytest.fixture
def root(tmp_path):
    write(tmp_path, CAPTIONS)
    return tmp_path


def config(root, *overrides):
    small = ["text_encoder=hash", "text_encoder.width=4", "text_encoder.max_length=6"]
    return compose("data_prep/embed_text", [f"root={root}", *small, *overrides])


def run(root, *overrides, encoder=None):
    cfg = config(root, *overrides)
    if encoder is None:
        embed_set(cfg)
    else:
        embed_with(encoder, cfg)


def spy(max_length=6):
    return Spy(name="hash", width=4, max_length=max_length)


def folder(root, split="train", **changed):
    options = {"name": "hash", "width": 4, "max_length": 6} | changed
    return shards.find_text_folder(root, split, Hash(**options))


def sidecars(root):
    return sorted(root.rglob("text-*/*.tar"))


def report_of(root):
    (path,) = (root / "reports").iterdir()
    return json.loads(path.read_text())


@pytest.mark.parametrize(("storage", "processes"), [("fp16", 0), ("bf16", 0), ("int8", 0), ("fp16", 2)])
def test_sidecars_have_the_pictures_keys_and_the_encoders_tokens(root, storage, processes):
    run(root, f"storage={storage}", f"num_workers={processes}", "window=2", "batch_size=2")
    encoder = Hash(name="hash", width=4, max_length=6)
    for split, tars in CAPTIONS.items():
        for i, captions in enumerate(tars):
            tar = folder(root, split) / f"{i:05}.tar"
            with shards.open_tar(tar) as archive:
                names = archive.getnames()
            keys = [f"{i}{j}" for j in reversed(range(len(captions)))]
            assert names == ["_encoder.json", *(f"{key}.safetensors" for key in keys)]
            assert shards.read_encoder(tar) == encoder.fingerprint()
            for key, member in shards.read_members(tar, ".safetensors"):
                caption = captions[int(key[1])]
                exact = encoder.encode([caption])
                assert member == tokens.dump_tokens(exact.tokens[0][exact.mask[0]], caption, storage)
            assert index_path(tar).exists()
            index = read_index(tar, TEXT_FIELDS)
            assert [key.decode() for key in index["key"]] == keys
            content = tar.read_bytes()
            for row, (_, member) in zip(index, shards.read_members(tar, ".safetensors"), strict=True):
                offset, size = row["tokens"].tolist()
                assert content[offset : offset + size] == member


def test_equal_captions_are_encoded_once_over_all_shards(root):
    encoder = spy()
    run(root, encoder=encoder)
    assert encoder.asked == ["", "a red heart", "a very long caption of", "dog", "naïve café"]
    again = spy(max_length=7)
    run(root, "window=1", encoder=again)  # "dog" comes again in a later window
    assert again.asked == ["", "a red heart", "a very long caption of nine", "dog", "naïve café"]
    forgetful = spy(max_length=8)
    run(root, "window=1", "cache_mb=0", encoder=forgetful)
    assert forgetful.asked.count("dog") == 2
    members = [dict(shards.read_members(tar, ".safetensors")) for tar in sorted(folder(root).glob("*.tar"))]
    assert members[0]["02"] == members[1]["10"]


def test_batches_are_of_like_length_and_within_the_budget(tmp_path):
    write(tmp_path, {"train": [[" ".join("abcdef"[: i % 6 + 1]) + str(i) for i in range(60)]]})
    cfg = config(tmp_path, "text_encoder.max_length=20")
    encoder = Hash(name="hash", width=4, max_length=20)
    work, _ = command.find_work(cfg, encoder)
    encoding = Encoding(encoder, "fp16", batch_size=8, max_batch_tokens=30, window=100, cache_bytes=10**6)
    *batches, rows = encoding.prepared(work)
    assert isinstance(rows, Rows)
    lengths = []
    for batch in batches:
        assert isinstance(batch, Batch)
        longest = max(map(len, batch.tokenized))
        assert len(batch.entries) <= 8
        assert len(batch.entries) * longest <= 30
        lengths += [len(row) for row in batch.tokenized]
    assert len(lengths) == 60
    assert lengths == sorted(lengths, reverse=True)
    lonely = Encoding(encoder, "fp16", batch_size=8, max_batch_tokens=1, window=100, cache_bytes=10**6)
    assert [len(batch.entries) for batch in lonely.prepared(work) if isinstance(batch, Batch)] == [1] * 60


def test_a_second_run_encodes_nothing(root, capsys):
    run(root)
    encoder = spy()
    run(root, encoder=encoder)
    assert encoder.batches == []
    said = capsys.readouterr().out
    assert "6 captions, 18 tokens" in said
    assert "every sidecar is there, nothing to encode" in said


def test_only_what_changed_is_redone(root):
    run(root)
    text = folder(root)
    kept = (text / "00000.tar").stat().st_mtime_ns
    tar = root / "train" / "images-16" / "00001.tar"
    shards.write_tar(tar, [("10.png", b""), ("10.txt", b"a new caption")])
    encoder = spy()
    run(root, encoder=encoder)
    assert encoder.batches == [["a new caption"]]
    assert (text / "00000.tar").stat().st_mtime_ns == kept


def cut(tar):
    tar.write_bytes(tar.read_bytes()[:1500])


@pytest.mark.parametrize(
    "harm",
    [
        cut,
        lambda tar: tar.unlink(),
        lambda tar: shards.stats_path(tar).unlink(),
        lambda tar: shards.stats_path(tar).write_text("{"),
        lambda tar: index_path(tar).unlink(),
    ],
    ids=["cut", "no tar", "no stats", "broken stats", "no index"],
)
def test_what_is_not_whole_is_made_again(root, harm):
    run(root)
    whole = {tar: tar.read_bytes() for tar in sidecars(root)}
    harm(folder(root) / "00000.tar")
    encoder = spy()
    run(root, encoder=encoder)
    assert encoder.asked == ["", "a red heart", "dog"]
    assert {tar: tar.read_bytes() for tar in sidecars(root)} == whole


def test_a_stopped_run_goes_on_where_it_was(root):
    class Stopped(Spy):
        def encode_tokenized(self, tokenized):
            if self.batches:
                raise KeyboardInterrupt
            return super().encode_tokenized(tokenized)

    small = ("window=3", "batch_size=8")
    with pytest.raises(KeyboardInterrupt):
        run(root, *small, encoder=Stopped(name="hash", width=4, max_length=6))
    assert [tar.name for tar in sidecars(root)] == ["00000.tar"]
    assert not list(root.rglob("*.tmp"))
    encoder = spy()
    run(root, *small, encoder=encoder)
    assert encoder.asked == ["a very long caption of", "dog", "naïve café"]


def test_another_encoder_and_another_code_have_folders_of_their_own(root):
    run(root)
    run(root, "text_encoder.max_length=5")
    assert folder(root) != folder(root, max_length=5)
    run(root, "storage=int8")
    made = {path.name for path in shards.text_folders(root, "train")}
    assert f"{folder(root, max_length=5).name}" in made
    with pytest.raises(UserError, match=r"several text folders.*-int8.*data.text="):
        folder(root)


def test_what_was_cut_is_told(root, capsys):
    run(root)
    said = capsys.readouterr().out
    assert "1 captions are longer than max_length=6" in said
    assert "'a very long caption of nine words in all' lost 'nine words in all'" in said


def test_the_plan_is_told_before_and_the_report_after(root, capsys):
    run(root, "storage=int8")
    said = capsys.readouterr().out.splitlines()
    assert "6 captions in 3 of 3 shards, about 18 tokens" in said[0]
    assert "as int8; of a sample of 6 captions 5 are distinct" in said[0]
    mean = [line for line in said if "int8 loses" in line]
    report = report_of(root)
    assert report["captions"] == 6
    assert report["tokens"] == 18
    assert report["bytes"] == sum(tar.stat().st_size for tar in sidecars(root))
    assert f"loses {report['relative_error']['mean']:.2%}" in mean[0]
    assert f"at most {report['relative_error']['max']:.2%}" in mean[0]
    assert 0 < report["relative_error"]["mean"] <= report["relative_error"]["max"] < 0.02


def test_the_error_is_that_of_every_stored_token(root):
    run(root, "storage=int8")
    encoder, errors = Hash(name="hash", width=4, max_length=6), []
    for tars in CAPTIONS.values():
        for caption in [caption for tar in tars for caption in tar]:
            exact = encoder.encode([caption]).tokens[0]
            back, _ = tokens.load_tokens(tokens.dump_tokens(exact, caption, "int8"))
            errors += ((back - exact).norm(dim=-1) / exact.norm(dim=-1)).tolist()
    report = report_of(root)
    assert report["relative_error"]["mean"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert report["relative_error"]["max"] == pytest.approx(max(errors), rel=1e-4)


def test_unfinished_shards_are_passed_over_and_told(root, capsys):
    shards.stats_path(root / "train" / "images-16" / "00001.tar").unlink()
    run(root)
    assert [tar.name for tar in folder(root).glob("*.tar")] == ["00000.tar"]
    assert "passed over, without _stats.json" in capsys.readouterr().out


def test_damaged_shards_are_passed_over_and_told(root, capsys):
    tar = root / "train" / "images-16" / "00000.tar"
    tar.write_bytes(tar.read_bytes()[:1537])  # within the second member's content
    run(root)
    assert [tar.name for tar in folder(root).glob("*.tar")] == ["00001.tar"]
    assert "00000.tar is damaged" in capsys.readouterr().out
    assert len(report_of(root)["reasons"]["damaged"]) == 1


def test_workers_share_the_shards_and_any_report_tells_of_all(root):
    for index in (0, 1):
        run(root, "worker_count=2", f"worker_index={index}")
    assert len(sidecars(root)) == 3
    assert report_of(root)["captions"] == 6
    with pytest.raises(UserError, match="worker_index=2"):
        run(root, "worker_count=2", "worker_index=2")


@pytest.mark.parametrize("storage", ["fp16", "int8"])
def test_tokens_too_large_for_a_code_are_refused_and_nothing_is_left(root, storage):
    loud = Loud(1e9, name="hash", width=4, max_length=6)
    with pytest.raises(UserError, match=rf"storage={storage} cannot hold .*storage=bf16"):
        run(root, f"storage={storage}", encoder=loud)
    assert not list(root.rglob("text-*/*"))
    run(root, "storage=bf16", encoder=loud)
    assert len(sidecars(root)) == 3


def test_undefined_tokens_are_refused(root):
    with pytest.raises(UserError, match="gives infinite or undefined tokens"):
        run(root, "storage=bf16", encoder=Loud(float("nan"), name="hash", width=4, max_length=6))


@pytest.mark.parametrize("storage", tokens.STORAGES)
def test_padding_may_be_undefined_but_is_not_stored(root, storage):
    run(root, f"storage={storage}", encoder=Loud(1.0, float("nan"), name="hash", width=4, max_length=6))
    for tar in sidecars(root):
        for _, member in shards.read_members(tar, ".safetensors"):
            assert tokens.load_tokens(member)[0].isfinite().all()


def test_the_root_may_be_a_url():
    root = "memory://embed_text"
    write(root, CAPTIONS)
    run(root)
    encoder = spy()
    run(root, encoder=encoder)
    assert encoder.batches == []
    tar = folder(root) / "00000.tar"
    assert len(read_index(tar, TEXT_FIELDS)) == 3
    assert [key for key, _ in shards.read_members(tar, ".safetensors")] == ["02", "01", "00"]


def test_awkward_captions_and_members(tmp_path):
    write(tmp_path, {"train": [AWKWARD, []]})
    tar = tmp_path / "train" / "images-16" / "00000.tar"
    members = list(shards.read_members(tar, ".txt"))
    junk = [("00.pickle", b"\x80\x04\x95"), ("00.pyd", b"MZ"), ("../evil.pth", b"PK"), ("/abs.safetensors", b"x")]
    whole = [(f"{key}.txt", content) for key, content in members]
    shards.write_tar(tar, [*junk, *whole, ("06.txt", b"\xff\xfe not UTF-8")])
    shards.stats_path(tar).write_text(json.dumps({"successes": len(AWKWARD) + 1}))
    encoder = spy()
    run(tmp_path, encoder=encoder)
    made = dict(shards.read_members(folder(tmp_path) / "00000.tar", ".safetensors"))
    assert set(made) == {f"0{i}" for i in range(7)}
    for i, caption in enumerate(AWKWARD):
        assert tokens.load_tokens(made[f"0{i}"])[1] == tokens.caption_hash(caption)
    assert len(encoder.asked) == 5
    assert len(tokens.load_tokens(made["00"])[0]) == 1  # the empty caption has a token
    assert list(shards.read_members(folder(tmp_path) / "00001.tar", ".safetensors")) == []


def test_captions_that_the_shard_lost_are_counted(root, capsys):
    stats = shards.stats_path(root / "val" / "images-16" / "00000.tar")
    stats.write_text(json.dumps({"successes": 3}))
    run(root)
    assert report_of(root)["reasons"]["no caption that can be read"] == 2
    assert "no caption that can be read: 2 samples" in capsys.readouterr().out
    stats.write_text("{}")
    with pytest.raises(UserError, match="does not say how many samples"):
        run(root)


def test_no_pictures_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no \{train,val\}/images-<size>"):
        run(tmp_path)
    with pytest.raises(UserError, match="images-99"):
        run(tmp_path, "images=images-99")


@pytest.mark.parametrize("wrong", ["batch_size=0", "max_batch_tokens=0", "window=0", "cache_mb=-1", "storage=fp8"])
def test_settings_that_cannot_be_are_refused(root, wrong):
    with pytest.raises(UserError, match=wrong):
        run(root, wrong)


def test_the_smallest_pictures_captions_are_read(root):
    cfg = compose("data_prep/embed_text", [f"root={root}"])
    for size in (4, 256):
        (root / "train" / f"images-{size}").mkdir()
    assert {split: path.name for split, path in command.caption_folders(cfg).items()} == {
        "train": "images-4",
        "val": "images-16",
    }


def test_the_script_takes_its_share_from_torchrun(root):
    small = ["text_encoder=hash", "text_encoder.width=4", "text_encoder.max_length=6"]
    environment = {**os.environ, "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
    script = [sys.executable, str(CONF.parent / "data_prep" / "embed_text.py"), f"root={root}", *small]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=120, cwd=root, check=True)
    assert "2 captions" in done.stdout
    assert [tar.name for tar in sidecars(root)] == ["00001.tar"]
