"""Captions into sidecar shards: real tokens, the same keys, redone only where something changed."""

import json
import tarfile

import pytest
import torch
from data_prep_scripts import load
from tqdm import tqdm

from imagen.cli import compose
from imagen.data import shards
from imagen.errors import UserError
from imagen.text_encoder import Hash
from imagen.types import TextEmbedding

embed_text = load("embed_text")

CAPTIONS = {
    "train": [["a red heart", "", "dog"], ["dog", "a very long caption of nine words in all"]],
    "val": [["naïve café"]],
}


class Spy(Hash):
    """The hash encoder, writing down what it is asked."""

    def __init__(self, **hyper):
        super().__init__(**hyper)
        self.batches = []

    def encode(self, captions: list[str]) -> TextEmbedding:
        self.batches.append(captions)
        return super().encode(captions)


@pytest.fixture
def root(tmp_path):
    for split, tars in CAPTIONS.items():
        for i, captions in enumerate(tars):
            tar = tmp_path / split / "images-16" / f"{i:05}.tar"
            members = []
            for j, caption in reversed(list(enumerate(captions))):
                members += [(f"{i}{j}.png", b"no picture"), (f"{i}{j}.txt", caption.encode())]
            shards.write_tar(tar, members)
            shards.stats_path(tar).write_text(json.dumps({"successes": len(captions)}))
    return tmp_path


@pytest.fixture
def spy(monkeypatch):
    made = []

    def build(cfg):
        options = {key: value for key, value in cfg.text_encoder.items() if key != "_target_"}
        made.append(Spy(**options))
        return made[-1]

    monkeypatch.setattr(embed_text, "build_encoder", build)
    return made


def run(root, *overrides):
    small = ["text_encoder=hash", "text_encoder.width=4", "text_encoder.max_length=6"]
    embed_text.embed_set(compose("data_prep/embed_text", [f"root={root}", *small, *overrides]))


def folder(root, split="train", **changed):
    options = {"name": "hash", "width": 4, "max_length": 6} | changed
    return shards.find_text_folder(root, split, Hash(**options))


def test_sidecars_have_the_pictures_keys_and_the_encoders_tokens(root):
    run(root)
    encoder = Hash(name="hash", width=4, max_length=6)
    for split, tars in CAPTIONS.items():
        for i, captions in enumerate(tars):
            tar = folder(root, split) / f"{i:05}.tar"
            with tarfile.open(tar) as archive:
                names = archive.getnames()
            assert names == ["_encoder.json", *(f"{i}{j}.safetensors" for j in reversed(range(len(captions))))]
            assert shards.read_encoder(tar) == encoder.fingerprint()
            for key, member in shards.read_members(tar, ".safetensors"):
                caption = captions[int(key[1])]
                tokens, digest = shards.load_tokens(member)
                expected = encoder.encode([caption])
                assert digest == shards.caption_hash(caption)
                torch.testing.assert_close(tokens, expected.tokens[0].half(), rtol=0, atol=0)


def test_equal_captions_are_encoded_once_and_batches_are_of_like_length(root, spy):
    run(root, "batch_size=2")
    asked = [caption for batch in spy[0].batches for caption in batch]
    assert spy[0].batches[:2] == [["", "dog"], ["a red heart"]]
    assert sorted(asked) == sorted(caption for tars in CAPTIONS.values() for tar in tars for caption in tar)
    spy[0].batches.clear()
    encoded = embed_text.encode(spy[0], ["dog", "cat", "dog"], 8, tqdm(disable=True))
    assert spy[0].batches == [["cat", "dog"]]
    assert set(encoded) == {"cat", "dog"}


def test_a_second_run_encodes_nothing(root, spy, capsys):
    run(root)
    run(root)
    assert spy[1].batches == []
    said = capsys.readouterr().out
    assert "6 captions, 18 tokens" in said
    assert "every sidecar is there, nothing to encode" in said


def test_only_what_changed_is_redone(root, spy):
    run(root)
    text = folder(root)
    kept = (text / "00000.tar").stat().st_mtime_ns
    tar = root / "train" / "images-16" / "00001.tar"
    shards.write_tar(tar, [("10.png", b""), ("10.txt", b"a new caption")])
    run(root)
    assert spy[1].batches == [["a new caption"]]
    assert (text / "00000.tar").stat().st_mtime_ns == kept
    (text / "00000.tar").write_bytes((text / "00000.tar").read_bytes()[:1500])
    run(root)
    assert len(spy[2].batches) == 1
    assert len(list(shards.read_members(text / "00000.tar", ".safetensors"))) == 3


def test_another_encoder_has_another_folder(root):
    run(root)
    run(root, "text_encoder.max_length=5")
    assert folder(root) != folder(root, max_length=5)


def test_what_was_cut_is_told(root, capsys):
    run(root)
    said = capsys.readouterr().out
    assert "1 captions are longer than max_length=6" in said
    assert "'a very long caption of nine words in all' lost 'nine words in all'" in said


def test_unfinished_shards_are_passed_over_and_told(root, capsys):
    shards.stats_path(root / "train" / "images-16" / "00001.tar").unlink()
    run(root)
    assert [tar.name for tar in folder(root).glob("*.tar")] == ["00000.tar"]
    assert "passed over, without _stats.json" in capsys.readouterr().out


def test_processes_share_the_shards(root):
    for part in (0, 1):
        run(root, "parts=2", f"part={part}")
    assert len(list(root.rglob("text-*/*.tar"))) == 3
    with pytest.raises(UserError, match="part=2"):
        run(root, "parts=2", "part=2")


def test_tokens_that_do_not_fit_are_refused_and_nothing_is_left(root, spy, monkeypatch):
    def encode(self, captions):
        text = Hash.encode(self, captions)
        return TextEmbedding(text.tokens * 1e6, text.mask)

    monkeypatch.setattr(Spy, "encode", encode)
    with pytest.raises(UserError, match="infinite or undefined"):
        run(root)
    assert not list(root.rglob("text-*/*"))


def test_padding_may_be_undefined_but_is_not_stored(root, spy, monkeypatch):
    def encode(self, captions):
        text = Hash.encode(self, captions)
        return TextEmbedding(text.tokens.masked_fill(~text.mask[..., None], float("nan")), text.mask)

    monkeypatch.setattr(Spy, "encode", encode)
    run(root)
    for tar in root.rglob("text-*/*.tar"):
        for _, member in shards.read_members(tar, ".safetensors"):
            assert shards.load_tokens(member)[0].isfinite().all()


def test_no_pictures_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no \{train,val\}/images-<size>"):
        run(tmp_path)
    with pytest.raises(UserError, match="images-99"):
        run(tmp_path, "images=images-99")


def test_the_smallest_pictures_captions_are_read(root):
    cfg = compose("data_prep/embed_text", [f"root={root}"])
    for size in (4, 256):
        (root / "train" / f"images-{size}").mkdir()
    assert {split: path.name for split, path in embed_text.caption_folders(cfg).items()} == {
        "train": "images-4",
        "val": "images-16",
    }
