"""What stands for an absent prompt: zeros, a trained vector, or the encoder's empty caption."""

import functools

import lightning
import pytest
import torch
from torch import nn

from imagen import build
from imagen.cli import compose
from imagen.errors import UserError
from imagen.null_text import (
    EmptyCaption,
    LearnedText,
    NullText,
    ZeroedText,
    check_null_text,
    fill_null_text,
    share_null_text,
)
from imagen.runs import read_weights
from imagen.text_encoder import Hash
from imagen.training import train
from imagen.types import Conditioning, TextEmbedding

ENCODER = Hash(name="hash", width=4, max_length=6)
MASK = torch.tensor([[True, True, False], [True, True, True]])
TEXT = TextEmbedding(torch.ones(2, 3, 4).masked_fill(~MASK[:, :, None], 0.0), MASK)
FIRST_ABSENT = TEXT.dropped(torch.tensor([True, False]))
TOY = ["callback=[]", "data.num_workers=0", "max_steps=2", "batch_size=4", "validate_every_n_steps=2"]


def filled() -> EmptyCaption:
    null_text = EmptyCaption(text_width=4, max_length=6)
    null_text.fill(ENCODER.encode)
    return null_text


KINDS = [ZeroedText, functools.partial(LearnedText, text_width=4), filled]


@pytest.mark.parametrize("make", KINDS)
def test_present_prompts_are_left_alone_and_absent_ones_are_all_alike(make):
    null_text, other = make(), TextEmbedding(2.0 * TEXT.tokens, TEXT.mask, FIRST_ABSENT.absent)
    seen, same = null_text(FIRST_ABSENT), null_text(other)
    assert torch.equal(seen.tokens[1], TEXT.tokens[1])
    assert torch.equal(seen.mask[1], TEXT.mask[1])
    assert torch.equal(seen.absent, FIRST_ABSENT.absent)
    assert torch.equal(seen.tokens[0], same.tokens[0])
    assert torch.equal(null_text(TEXT).tokens, TEXT.tokens)
    half = null_text(TextEmbedding(TEXT.tokens.bfloat16(), TEXT.mask, FIRST_ABSENT.absent))
    assert half.tokens.dtype == torch.bfloat16


def test_zeroed_text_is_zeros_under_the_prompts_own_mask():
    seen = ZeroedText()(FIRST_ABSENT)
    assert (seen.tokens[0] == 0).all()
    assert torch.equal(seen.mask, TEXT.mask)


def test_learned_text_is_one_vector_under_the_prompts_own_mask():
    null_text = LearnedText(text_width=4)
    seen = null_text(FIRST_ABSENT)
    assert torch.equal(seen.mask, TEXT.mask)
    assert torch.equal(seen.tokens[0, :2], null_text.token.expand(2, 4))
    assert not seen.tokens[0, 2].any()  # padding stays padding
    seen.tokens.sum().backward()
    assert null_text.token.grad is not None
    torch.testing.assert_close(null_text.token.grad, torch.full((4,), 2.0))


def test_the_empty_caption_is_what_the_encoder_makes_of_nothing():
    seen, want = filled()(FIRST_ABSENT), ENCODER.encode([""])
    assert seen.mask[0].tolist() == [True, False, False]
    assert torch.equal(seen.tokens[0, :1], want.tokens[0])
    longer = filled()(FIRST_ABSENT.padded(9))  # than the encoder would make
    assert longer.tokens.shape == (2, 9, 4)
    assert longer.mask.sum(1).tolist() == [1, 3]


def test_the_empty_caption_travels_in_the_weights():
    other = EmptyCaption(text_width=4, max_length=6)
    other.load_state_dict(filled().state_dict())
    other.check()
    assert torch.equal(other(FIRST_ABSENT).tokens, filled()(FIRST_ABSENT).tokens)


def test_what_the_first_process_filled_is_shared():
    other = nn.Sequential(EmptyCaption(text_width=4, max_length=6), LearnedText(text_width=4))
    first = iter(filled().buffers())
    share_null_text(other, lambda buffer: next(first))
    check_null_text(other)
    assert torch.equal(other[0](FIRST_ABSENT).tokens, filled()(FIRST_ABSENT).tokens)
    assert next(first, None) is None  # what is trained is not


def test_a_process_that_is_not_the_first_leaves_the_encoder_alone(tmp_path, monkeypatch):
    # the first process alone begins the run; the others take what it found
    monkeypatch.setattr("imagen.training.told_by_first", lambda _, do: None if do.__name__ == "begin" else do())
    cfg = compose("train", ["experiment=toy", f"output_dir={tmp_path}", "null_text=empty_caption", *TOY])
    with pytest.raises(UserError, match="has no embedding of the empty caption yet"):  # there is no first to give it
        train(cfg)


def test_an_encoder_that_does_not_fit_is_refused():
    for width, length in ((5, 6), (4, 0)):
        with pytest.raises(UserError, match=f"text_width={width} and max_length={length}"):
            EmptyCaption(text_width=width, max_length=length).fill(ENCODER.encode)


def networks(option: str) -> tuple[nn.Module, TextEmbedding]:
    """A toy network with that null text and weights that tell, and two prompts in its encoder's width."""
    cfg = compose("train", ["experiment=toy", f"null_text={option}"])
    network, encoder = build.build_network(cfg), build.build_encoder(cfg)
    fill_null_text(network, encoder.encode)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network, encoder.encode(["a red circle", "a blue square of some size"])


@pytest.mark.parametrize("option", ["zeroed", "learned", "empty_caption"])
def test_guidance_and_negative_prompts_meet_it_in_half_the_batch(option):
    network, text = networks(option)
    x, logsnr = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.zeros(2)
    with torch.no_grad():
        conditional, null = network(x, logsnr, Conditioning(text)), network(x, logsnr, Conditioning(text.null()))
        assert (conditional - null).abs().amax(dim=(1, 2, 3)).min() > 1e-4
        both = network(torch.cat([x, x]), torch.cat([logsnr, logsnr]), both_halves(Conditioning(text)))
        torch.testing.assert_close(both, torch.cat([conditional, null]), rtol=1e-3, atol=1e-4)
        negative = Conditioning(text, negative=TextEmbedding(text.tokens.flip(0), text.mask.flip(0)))
        led = network(torch.cat([x, x]), torch.cat([logsnr, logsnr]), both_halves(negative))[2:]
        torch.testing.assert_close(
            led, network(x, logsnr, Conditioning(negative.null_text().text)), rtol=1e-3, atol=1e-4
        )
        with torch.autocast("cpu", torch.bfloat16):
            half = network(x, logsnr, Conditioning(text.null()))
        assert (half - null).square().mean() < 1e-2 * null.square().mean()


def both_halves(cond: Conditioning) -> Conditioning:
    return cond.concatenated(cond.null_text())


@pytest.mark.parametrize("option", ["learned", "empty_caption"])
def test_it_is_trained_exported_and_loaded_without_an_encoder(option, tmp_path, monkeypatch):
    folder = train(compose("train", ["experiment=toy", f"null_text={option}", f"output_dir={tmp_path}", *TOY]))
    weights = read_weights(folder.path)
    monkeypatch.setattr(build, "build_encoder", None)
    stage = build.load_stage(weights, "base")
    (null_text,) = (m for m in stage.denoiser.modules() if isinstance(m, NullText))
    null_text.check()
    own = {name: value for name, value in weights.state.items() if "null_text" in name}
    assert own
    assert all(value.any() for value in own.values())


def test_a_run_that_goes_on_needs_no_encoder(tmp_path, monkeypatch):
    settings = ["experiment=toy", "null_text=empty_caption", f"output_dir={tmp_path}", *TOY, "callback=[checkpoint]"]
    folder = train(compose("train", settings))
    folder.done.unlink()
    folder.weights.unlink()

    def refuse(self: EmptyCaption, encode: object) -> None:
        raise AssertionError("the checkpoint holds it")

    monkeypatch.setattr(EmptyCaption, "fill", refuse)
    assert read_weights(train(compose("train", settings)).weights).state["embedding.null_text.mask"].any()


def test_an_empty_caption_that_was_never_filled_refuses_to_train():
    cfg = compose("train", ["experiment=toy", "null_text=empty_caption", *TOY])
    module, data = build.build_module(cfg), build.build_data(cfg)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_steps=1, accelerator="cpu", enable_model_summary=False, **quiet)
    with pytest.raises(UserError, match="null_text=empty_caption has no embedding"):
        trainer.fit(module, data)
