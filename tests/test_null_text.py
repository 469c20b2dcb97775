import torch

from imagen.null_text import ZeroedText
from imagen.types import TextEmbedding

TEXT = TextEmbedding(torch.ones(2, 3, 4), torch.tensor([[True, True, False], [True, True, True]]))


def test_zeroed_text_is_zeros_under_the_prompts_own_mask():
    absent = TEXT.dropped(torch.tensor([True, False]))
    seen = ZeroedText()(absent)
    assert (seen.tokens[0] == 0).all()
    assert torch.equal(seen.tokens[1], TEXT.tokens[1])
    assert torch.equal(seen.mask, TEXT.mask)
