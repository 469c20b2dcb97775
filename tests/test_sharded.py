import torch

from imagen.sharded import gathered, own_parts, whole_state


def test_what_is_not_sharded_is_its_own_part_and_whole():
    tensor = torch.randn(3, 2).t()
    assert own_parts([tensor])[0] is tensor
    assert torch.equal(gathered(tensor), tensor)
    whole = whole_state({"weight": tensor.requires_grad_()})["weight"]
    assert torch.equal(whole, tensor)
    assert whole.is_contiguous()
    assert not whole.requires_grad


def test_a_state_that_is_not_kept_is_empty():
    assert whole_state({"weight": torch.ones(1)}, keep=False) == {}
