import torch

from imagen.types import Batch, Conditioning, TextEmbedding

TEXT = TextEmbedding(torch.ones(2, 3, 4), torch.tensor([[True, True, False], [True, True, True]]))


def test_dropped_text_is_zero_and_keeps_its_mask():
    dropped = TEXT.dropped(torch.tensor([True, False]))
    assert (dropped.tokens[0] == 0).all()
    assert torch.equal(dropped.tokens[1], TEXT.tokens[1])
    assert torch.equal(dropped.mask, TEXT.mask)
    assert (TEXT.null().tokens == 0).all()
    assert torch.equal(TEXT.null().mask, TEXT.mask)


def test_both_halves_of_guidance_share_all_but_the_text():
    cond = Conditioning(TEXT, torch.rand(2, 3, 4, 4), torch.tensor([1.0, 2.0]))
    both = cond.concatenated(cond.null_text())
    assert torch.equal(both.text.tokens, torch.cat([TEXT.tokens, torch.zeros(2, 3, 4)]))
    assert both.low_res is not None
    assert both.low_res_logsnr is not None
    assert torch.equal(both.low_res[:2], both.low_res[2:])
    assert torch.equal(both.low_res_logsnr[:2], both.low_res_logsnr[2:])
    base = Conditioning(TEXT).concatenated(Conditioning(TEXT))
    assert base.low_res is None
    assert base.text.mask.shape == (4, 3)


def test_a_batch_moves_whole():
    image, flips = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([True, False])
    batch = Batch(image, TEXT, flips, ["a", "b"], ["x", "y"]).to("meta")
    assert len(batch) == 2
    assert {t.device.type for t in (batch.image, batch.text.tokens, batch.text.mask, batch.can_flip)} == {"meta"}
    assert batch.caption == ["x", "y"]
