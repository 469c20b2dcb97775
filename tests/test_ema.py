import pytest
import torch
from torch import nn

from imagen.ema import ExponentialEMA, NoEMA


def test_average_follows_its_closed_form():
    network = nn.Linear(1, 1, bias=False)
    ema = ExponentialEMA(network, decay=0.9, warmup=1.0)
    start = network.weight.item()
    with torch.no_grad():
        network.weight.fill_(5.0)
    for step in range(1, 11):
        ema.update(network, step)
    expected = 5.0 + (start - 5.0) * 0.9**10
    assert ema.network.weight.item() == pytest.approx(expected, rel=1e-5)


def test_warm_up_forgets_the_initial_weights():
    network = nn.Linear(1, 1, bias=False)
    ema = ExponentialEMA(network, decay=0.9999, warmup=10.0)
    start = network.weight.item()
    with torch.no_grad():
        network.weight.fill_(5.0)
    kept = 1.0
    for step in range(1, 101):
        ema.update(network, step)
        kept *= min(0.9999, (1 + step) / (10 + step))
    assert ema.network.weight.item() == pytest.approx(5.0 + (start - 5.0) * kept, rel=1e-4)
    assert kept < 1e-3


def test_only_the_average_is_saved_and_nothing_of_it_is_trained():
    network = nn.Linear(2, 2)
    ema = ExponentialEMA(network, decay=0.9, warmup=10.0)
    assert set(ema.state_dict()) == {"network.weight", "network.bias"}
    assert not any(parameter.requires_grad for parameter in ema.parameters())


def test_none_is_the_network_itself_and_saves_nothing():
    network = nn.Linear(2, 2)
    ema = NoEMA(network)
    ema.update(network, 1)
    assert ema.network is network
    assert not ema.state_dict()
