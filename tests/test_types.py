import torch

from imagen.types import Batch, Conditioning, TextEmbedding

TEXT = TextEmbedding(torch.ones(2, 3, 4), torch.tensor([[True, True, False], [True, True, True]]))


def test_dropped_text_is_marked_absent_and_nothing_else():
    dropped = TEXT.dropped(torch.tensor([True, False]))
    assert dropped.absent.tolist() == [True, False]
    assert dropped.dropped(torch.tensor([False, True])).absent.all()
    assert torch.equal(dropped.tokens, TEXT.tokens)
    assert torch.equal(dropped.mask, TEXT.mask)
    assert TEXT.null().absent.all()
    assert not TEXT.absent.any()


def test_texts_of_two_lengths_are_padded_to_the_longer():
    longer = TextEmbedding(torch.full((1, 5, 4), 2.0), torch.ones(1, 5, dtype=torch.bool), torch.tensor([True]))
    both = TEXT.concatenated(longer)
    assert both.mask.sum(1).tolist() == [2, 3, 5]
    assert both.absent.tolist() == [False, False, True]
    assert (both.tokens[:2, 3:] == 0).all()


def test_guidance_leads_away_from_the_negative_prompt_where_there_is_one():
    negative = TextEmbedding(torch.full((2, 1, 4), 3.0), torch.ones(2, 1, dtype=torch.bool))
    null = Conditioning(TEXT, negative=negative).null_text()
    assert null.text is negative
    assert not null.text.absent.any()


def test_both_halves_of_guidance_share_all_but_the_text():
    cond = Conditioning(TEXT, torch.rand(2, 3, 4, 4), torch.tensor([1.0, 2.0]))
    both = cond.concatenated(cond.null_text())
    assert torch.equal(both.text.tokens, torch.cat([TEXT.tokens, TEXT.tokens]))
    assert both.text.absent.tolist() == [False, False, True, True]
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
