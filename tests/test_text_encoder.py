"""Text encoders against transformers' own output, with tiny models made here; nothing is downloaded."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from imagen.cli import CONF
from imagen.errors import UserError
from imagen.text_encoder import T5, Bert, Clip, Hash, MiniLM, fingerprint8

CAPTIONS = ["a red heart", "woman astronaut on a blue background", "", "flag of France"]


def tiny(cls, folder: Path, **changed):
    hyper = {"name": "tiny", "path": str(folder), "revision": None, "width": 32, "max_length": 32, "dtype": "fp32"}
    return cls(**(hyper | changed))


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory) -> Path:
    """A whole T5 v1.1 (encoder and decoder) with the files that the hub's have: spiece.model and no tokenizer.json."""
    from transformers import T5Config, T5ForConditionalGeneration

    folder, spiece = tmp_path_factory.mktemp("t5"), io.BytesIO()
    options = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "hard_vocab_limit": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=iter(CAPTIONS * 20), model_writer=spiece, vocab_size=60, **options
    )
    (folder / "spiece.model").write_bytes(spiece.getvalue())
    tokenizer = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"extra_ids": 0}))
    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    torch.manual_seed(0)
    config = T5Config(**sizes, feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory) -> Path:
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    words = sorted({word for caption in CAPTIONS for word in caption.lower().split()})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=30, max_position_embeddings=40, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    """A whole CLIP, both towers, as the hub's are."""
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    letters = sorted({letter for caption in CAPTIONS for letter in caption.lower() if letter != " "})
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    text = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    ends = {"bos_token_id": len(vocabulary) - 2, "eos_token_id": len(vocabulary) - 1}
    text |= {"vocab_size": len(vocabulary), "max_position_embeddings": 40, **ends}
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision | {"image_size": 8, "patch_size": 8})
    CLIPModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(params=["t5", "bert", "clip", "hash"])
def encoder(request):
    if request.param == "hash":
        return Hash(name="hash", width=32, max_length=32)
    cls = {"t5": T5, "bert": Bert, "clip": Clip}[request.param]
    return tiny(cls, request.getfixturevalue(f"{request.param}_folder"))


def test_importing_costs_no_transformers():
    code = "import sys, imagen.text_encoder, imagen.data.shards; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_shape_range_and_device(encoder):
    text = encoder.encode(CAPTIONS)
    assert text.tokens.shape == (4, text.mask.shape[1], encoder.width)
    assert text.tokens.dtype == torch.float32
    assert text.tokens.isfinite().all()
    assert (text.tokens[~text.mask] == 0).all()
    assert (text.mask.sum(1) >= 1).all(), "an empty caption has a token too"
    assert (text.mask.long().diff(dim=1) <= 0).all(), "real tokens come first"
    assert not text.tokens.requires_grad
    assert encoder.to("cpu").device.type == "cpu"


def test_neighbours_and_padding_change_nothing(encoder):
    together = encoder.encode(CAPTIONS)
    for i, caption in enumerate(CAPTIONS):
        alone = encoder.encode([caption])
        assert alone.mask.all()
        torch.testing.assert_close(together.tokens[i][together.mask[i]], alone.tokens[0], rtol=1e-5, atol=1e-5)


def test_autocast_of_the_caller_changes_nothing(encoder):
    plain = encoder.encode(CAPTIONS).tokens
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(encoder.encode(CAPTIONS).tokens, plain, rtol=0, atol=0)


def test_no_caption_is_refused(encoder):
    with pytest.raises(UserError, match="empty list"):
        encoder.encode([])


def test_fingerprint_says_what_is_declared_and_more(encoder):
    fingerprint = encoder.fingerprint()
    assert encoder.declared().items() <= fingerprint.items()
    assert set(fingerprint) == {"kind", "name", "layer", "width", "max_length", "dtype", "weights", "tokenizer"}
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert len(fingerprint8(fingerprint)) == 8
    assert fingerprint8(dict(reversed(fingerprint.items()))) == fingerprint8(fingerprint)


def test_t5_is_transformers_t5(t5_folder):
    from transformers import AutoTokenizer, T5EncoderModel

    batch = AutoTokenizer.from_pretrained(t5_folder)(CAPTIONS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = T5EncoderModel.from_pretrained(t5_folder).eval()(**batch).last_hidden_state
    text = tiny(T5, t5_folder).encode(CAPTIONS)
    assert torch.equal(text.mask, batch["attention_mask"].bool())
    torch.testing.assert_close(text.tokens[text.mask], expected[text.mask], rtol=0, atol=0)


def test_t5_tokenizes_as_sentencepiece_does(t5_folder):
    spiece = sentencepiece.SentencePieceProcessor(model_file=str(t5_folder / "spiece.model"))
    for caption in CAPTIONS:
        ids = tiny(T5, t5_folder)._tokenizer([caption])["input_ids"][0]
        assert ids == [*spiece.encode(caption), spiece.eos_id()]  # pyright: ignore[reportAttributeAccessIssue]


def test_bert_is_transformers_bert(bert_folder):
    from transformers import AutoTokenizer, BertModel

    batch = AutoTokenizer.from_pretrained(bert_folder)(CAPTIONS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = BertModel.from_pretrained(bert_folder).eval()(**batch).last_hidden_state
    text = tiny(Bert, bert_folder).encode(CAPTIONS)
    torch.testing.assert_close(text.tokens[text.mask], expected[text.mask], rtol=1e-5, atol=1e-5)


def test_clip_gives_the_states_that_enter_its_last_layer(clip_folder):
    from transformers import AutoTokenizer, CLIPTextModel

    batch = AutoTokenizer.from_pretrained(clip_folder)(CAPTIONS[0], return_tensors="pt")
    model = CLIPTextModel.from_pretrained(clip_folder).eval()
    seen = []
    last = [module for name, module in model.named_modules() if name.endswith("layers.2")]
    last[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args or kwargs["hidden_states"])[0]), with_kwargs=True
    )
    with torch.no_grad():
        model(**batch)
    text = tiny(Clip, clip_folder).encode(CAPTIONS[:1])
    torch.testing.assert_close(text.tokens[0], seen[0].reshape(-1, 32), rtol=1e-5, atol=1e-5)


def test_minilm_comes_with_its_package():
    encoder = instantiate(OmegaConf.load(CONF / "text_encoder" / "minilm.yaml"))
    assert isinstance(encoder, MiniLM)
    text = encoder.encode(["a dog", "a puppy", "the stock market fell"])
    means = (text.tokens.sum(1) / text.mask.sum(1)[:, None]).unbind()
    near = torch.cosine_similarity(means[0], means[1], dim=0)
    far = torch.cosine_similarity(means[0], means[2], dim=0)
    assert near > 0.7 > 0.3 > far


def test_minilm_cut_short_gives_the_states_of_an_inner_layer():
    node = OmegaConf.load(CONF / "text_encoder" / "minilm.yaml")
    whole, first, none = (instantiate(node, num_layers=count) for count in (None, 2, 0))
    ids = whole.tokenize(["a red apple"])
    states = whole._model(input_ids=torch.tensor(ids), output_hidden_states=True).hidden_states
    for encoder, state in ((first, states[2]), (none, states[0]), (whole, states[6])):
        torch.testing.assert_close(encoder.encode(["a red apple"]).tokens, state, rtol=1e-5, atol=1e-5)
    assert len({json.dumps(encoder.declared()) for encoder in (whole, first, none)}) == 3
    with pytest.raises(UserError, match=r"num_layers=7, but minilm has 6 layers"):
        instantiate(node, num_layers=7).encode(["a"])


def test_bf16_is_computed_in_bf16_and_given_as_fp32(t5_folder):
    full, half = tiny(T5, t5_folder).encode(CAPTIONS).tokens, tiny(T5, t5_folder, dtype="bf16").encode(CAPTIONS).tokens
    assert half.dtype == torch.float32
    assert not torch.equal(full, half)
    torch.testing.assert_close(half, half.bfloat16().float(), rtol=0, atol=0)
    torch.testing.assert_close(full, half, rtol=0.1, atol=0.1)


def test_cut_says_what_is_lost(t5_folder, bert_folder):
    bert = tiny(Bert, bert_folder, max_length=5)
    assert bert.cut(["a red heart", "woman astronaut on a blue background", ""]) == ["", "a blue background", ""]
    assert bert.encode([CAPTIONS[1]]).mask.sum() == 5
    t5 = tiny(T5, t5_folder, max_length=6)
    lost = t5.cut([CAPTIONS[1]])[0]
    assert lost
    assert CAPTIONS[1].endswith(f" {lost}"), "whole words, as they were written"
    assert Hash(name="h", width=4, max_length=3).cut(["One two, three", "one two"]) == ["three", ""]


@pytest.mark.parametrize("changed", [{"max_length": 7}, {"dtype": "bf16"}, {"name": "other"}])
def test_fingerprint_changes_with_the_settings(t5_folder, changed):
    assert tiny(T5, t5_folder).fingerprint() != tiny(T5, t5_folder, **changed).fingerprint()


def test_fingerprint_is_of_the_contents_not_the_place(t5_folder, tmp_path):
    before = tiny(T5, t5_folder).fingerprint()
    copy = Path(shutil.copytree(t5_folder, tmp_path / "copy"))
    assert tiny(T5, copy).fingerprint() == before
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    changed = tiny(T5, copy).fingerprint()
    assert changed["weights"] != before["weights"]
    assert changed["tokenizer"] == before["tokenizer"]
    (copy / "tokenizer_config.json").write_text("{}")
    assert tiny(T5, copy).fingerprint()["tokenizer"] != before["tokenizer"]


def test_fp16_is_refused(t5_folder):
    with pytest.raises(UserError, match="fp16"):
        tiny(T5, t5_folder, dtype="fp16")


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"width": 64}, "width=64.*is 32 wide"), ({"max_length": 41}, "at most 40"), ({"name": "../x"}, "a-z, 0-9")],
)
def test_wrong_settings_are_named(bert_folder, changed, message):
    with pytest.raises(UserError, match=message):
        tiny(Bert, bert_folder, **changed).encode(["a"])


def test_another_familys_folder_is_refused(bert_folder):
    with pytest.raises(UserError, match="model_type bert, not t5"):
        tiny(T5, bert_folder).encode(["a"])


def test_a_folder_without_a_config_is_told(tmp_path):
    with pytest.raises(UserError, match=r"there is no config\.json in"):
        tiny(T5, tmp_path).encode(["a"])


def test_weights_other_than_safetensors_are_refused(t5_folder, tmp_path):
    folder = Path(shutil.copytree(t5_folder, tmp_path / "pickled"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="no safetensors"):
        tiny(T5, folder).encode(["a"])


def test_missing_weights_are_refused(t5_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(t5_folder, tmp_path / "half"))
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "encoder.block.1" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lack \d+ tensors"):
        tiny(T5, folder).encode(["a"])


def test_an_absent_encoder_is_refused_in_one_sentence(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for revision in (None, "abc"):
        with pytest.raises(UserError) as refused:
            tiny(T5, Path("google/t5-none"), revision=revision).encode(["a"])
        message = str(refused.value)
        for said in ("google/t5-none", str(tmp_path), "HF_HUB_OFFLINE is set", "text_encoder.path=<folder>"):
            assert said in message
        assert "\n" not in message


def test_a_name_is_found_in_the_users_cache_offline(monkeypatch, t5_folder, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    shutil.copytree(t5_folder, tmp_path / "models--google--t5-tiny" / "snapshots" / ("0" * 40))
    cached = tiny(T5, Path("google/t5-tiny"))
    assert cached.fingerprint() == tiny(T5, t5_folder).fingerprint()


def test_one_of_several_cached_snapshots_is_never_guessed(monkeypatch, t5_folder, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshots = tmp_path / "models--google--t5-tiny" / "snapshots"
    first, second, bare = "1" * 40, "2" * 40, "0" * 40
    shutil.copytree(t5_folder, snapshots / first)
    (snapshots / bare).mkdir()
    assert tiny(T5, Path("google/t5-tiny")).folder == snapshots / first, "one without weights does not count"
    shutil.copytree(t5_folder, snapshots / second)
    with pytest.raises(UserError, match=f"{first}, {second}.*text_encoder.revision=") as refused:
        tiny(T5, Path("google/t5-tiny")).encode(["a"])
    assert bare not in str(refused.value)
    assert "\n" not in str(refused.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert tiny(T5, Path("google/t5-tiny"), revision=second).folder.name == second


def test_the_hubs_conversion_is_taken_where_the_main_branch_has_no_safetensors(monkeypatch, t5_folder, tmp_path):
    import huggingface_hub

    bare = tmp_path / "main"
    bare.mkdir()
    asked = []

    def snapshot_download(path, revision=None, **_):
        asked.append(revision)
        return str(t5_folder if revision == "refs/pr/3" else bare)

    offer = type("Offer", (), {"git_reference": "refs/pr/3"})
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "get_repo_discussions", lambda path, **_: iter([offer]))
    assert tiny(T5, Path("google/t5-converted")).folder == t5_folder
    assert asked == [None, "refs/pr/3"]


def test_words_have_fixed_vectors_of_unit_variance():
    encoder = Hash(name="hash", width=4096, max_length=8)
    text = encoder.encode(["Red, cat", "cat red"])
    torch.testing.assert_close(text.tokens[0, 0], text.tokens[1, 1])
    assert text.tokens.var(dim=-1).sub(1).abs().max() < 0.1
    assert abs(torch.cosine_similarity(text.tokens[0, 0], text.tokens[0, 1], dim=0)) < 0.1
    first = Hash(name="hash", width=2, max_length=8).encode(["red"]).tokens[0, 0]
    torch.testing.assert_close(first, torch.tensor([-0.6862922, -0.4029691]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("path", sorted((CONF / "text_encoder").glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_are_named_as_their_files(path):
    encoder = instantiate(OmegaConf.load(path))
    assert encoder.name == path.stem
    assert encoder.declared()["width"] == encoder.width
