import pytest
import torch

from imagen import build
from imagen.cli import compose
from imagen.errors import UserError
from imagen.evaluation import embed_sentences, read_set


def test_sentences_keep_their_rows_whatever_their_length():
    encoder = build.build_encoder(compose("train", ["experiment=toy"]))
    captions = ["a long caption of many words", "short", "two words"]
    whole = embed_sentences(encoder, captions, batch_size=2)
    torch.testing.assert_close(whole[1:2], embed_sentences(encoder, ["short"]))
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(3))


def test_a_set_made_in_memory_cannot_be_measured_against():
    with pytest.raises(UserError, match="SyntheticModule"):
        read_set(build.build_data(compose("train", ["experiment=toy"])))
