import pytest
import torch
from torch import nn

from imagen.offload import visiting


def test_weights_and_buffers_visit_and_what_is_at_home_is_untouched():
    module = nn.BatchNorm1d(2)
    tensors = [*module.parameters(), *module.buffers()]
    places, values = [tensor.data_ptr() for tensor in tensors], [tensor.clone() for tensor in tensors]
    with visiting(module, "cpu:0"):  # to torch another device than "cpu", so that it copies
        assert not {tensor.data_ptr() for tensor in tensors} & set(places)
        assert all(map(torch.equal, tensors, values))
        with torch.no_grad():
            module.weight.fill_(7)
    assert [tensor.data_ptr() for tensor in tensors] == places
    assert all(map(torch.equal, tensors, values))


def test_a_visit_that_fails_ends_too():
    module = nn.Linear(2, 2)
    place = module.weight.data_ptr()
    with pytest.raises(KeyboardInterrupt), visiting(module, "cpu:0"):
        raise KeyboardInterrupt
    assert module.weight.data_ptr() == place
    with pytest.raises(RuntimeError, match="incompatible tensor type"), visiting(module, "meta"):
        raise AssertionError
    assert module.weight.data_ptr() == place


def test_the_layout_in_memory_goes_along():
    conv = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    with visiting(conv, "cpu:0"):
        assert conv.weight.is_contiguous(memory_format=torch.channels_last)
