import pytest
import torch
from torch import nn

from imagen.ema import ExponentialEMA, NoEMA, PowerEMA, gamma_of
from imagen.errors import UserError


def test_average_follows_its_closed_form():
    network = nn.Linear(1, 1, bias=False)
    ema = ExponentialEMA(network, decay=0.9, warmup=1.0, every_n_steps=1)
    start = network.weight.item()
    with torch.no_grad():
        network.weight.fill_(5.0)
    for step in range(1, 11):
        ema.update(network, step)
    expected = 5.0 + (start - 5.0) * 0.9**10
    assert ema.network.weight.item() == pytest.approx(expected, rel=1e-5)


def test_warm_up_forgets_the_initial_weights():
    network = nn.Linear(1, 1, bias=False)
    ema = ExponentialEMA(network, decay=0.9999, warmup=10.0, every_n_steps=1)
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
    ema = ExponentialEMA(network, decay=0.9, warmup=10.0, every_n_steps=1)
    assert set(ema.state_dict()) == {"network.weight", "network.bias"}
    assert not any(parameter.requires_grad for parameter in ema.parameters())


def test_none_is_the_network_itself_and_saves_nothing():
    network = nn.Linear(2, 2)
    ema = NoEMA(network)
    ema.update(network, 1)
    assert ema.network is network
    assert not ema.state_dict()


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94), (0.15, 3.56)])
def test_gamma_of_the_papers_lengths(sigma_rel, gamma):
    assert gamma_of(sigma_rel) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("sigma_rel", [0.001, 0.03, 0.2, 0.288])
def test_gamma_gives_the_profile_its_standard_deviation(sigma_rel):
    gamma = gamma_of(sigma_rel)
    assert gamma > 0
    # the moments of t^gamma on [0, 1]
    mean, square = (gamma + 1) / (gamma + 2), (gamma + 1) / (gamma + 3)
    assert (square - mean**2) ** 0.5 == pytest.approx(sigma_rel, rel=1e-6)


def realised_weights(sigma_rel: list[float], steps: int) -> PowerEMA:
    """Averages of a parameter that at step n is the n-th unit vector: their entries are the weights of the steps."""
    network = nn.Linear(steps, 1, bias=False).double()
    ema = PowerEMA(network, sigma_rel=sigma_rel)
    for step in range(1, steps + 1):
        with torch.no_grad():
            network.weight.zero_()[0, step - 1] = 1
        ema.update(network, step)
    return ema


def test_power_function_weights_are_its_profile_and_sum_to_one():
    steps, lengths = 500, [0.05, 0.10, 0.28]
    for sigma_rel, network in realised_weights(lengths, steps).tracks():
        weights = network.weight[0]
        power = (torch.arange(steps + 1, dtype=torch.float64) / steps) ** (gamma_of(sigma_rel) + 1)
        torch.testing.assert_close(weights, power.diff())
        assert weights.sum().item() == pytest.approx(1, abs=1e-12)
        time = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
        mean = weights @ time
        assert (weights @ (time - mean) ** 2).sqrt().item() == pytest.approx(sigma_rel, rel=1e-4)


def test_power_function_is_the_closed_form_of_a_hand_made_sequence():
    values, network = [3.0, -1.0, 4.0, 1.0, -5.0], nn.Linear(1, 1, bias=False)
    ema = PowerEMA(network, sigma_rel=[0.1])
    for step, value in enumerate(values, start=1):
        with torch.no_grad():
            network.weight.fill_(value)
        ema.update(network, step)
        power = gamma_of(0.1) + 1
        weights = [(n**power - (n - 1) ** power) / step**power for n in range(1, step + 1)]
        expected = sum(w * v for w, v in zip(weights, values, strict=False))
        assert ema.network.weight.item() == pytest.approx(expected, rel=1e-5)
    assert len(weights) == 5


def test_power_function_keeps_parameters_alone_the_first_length_in_front():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = PowerEMA(network, sigma_rel=[0.05, 0.1])
    before = ema.network[1].running_mean.clone()
    network(torch.randn(8, 2))
    ema.update(network, 1)
    for _, averaged in ema.tracks():
        for one, two in zip(averaged.parameters(), network.parameters(), strict=True):
            assert torch.equal(one, two)  # the first step is all there is to average
        assert torch.equal(averaged[1].running_mean, before)
    assert ema.tracks()[0] == (0.05, ema.network)
    assert {name.split(".")[0] for name in ema.state_dict()} == {"network", "others"}
    assert not any(parameter.requires_grad for parameter in ema.parameters())


@pytest.mark.parametrize("unfit", [[], [0.1, 0.1], [0.0], [0.05, 0.3]])
def test_unfit_lengths_are_named(unfit):
    with pytest.raises(UserError, match="sigma_rel="):
        PowerEMA(nn.Linear(1, 1), sigma_rel=unfit)


def test_moving_every_few_steps_is_moving_by_all_their_decays_at_once():
    network = nn.Linear(2, 2)
    often = ExponentialEMA(network, decay=0.9, warmup=10.0, every_n_steps=1)
    seldom = ExponentialEMA(network, decay=0.9, warmup=10.0, every_n_steps=3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)  # and from then on they rest, where the two must agree
    for step in range(1, 7):
        often.update(network, step)
        seldom.update(network, step)
        same = all(map(torch.allclose, often.network.parameters(), seldom.network.parameters()))
        assert same == (step % 3 == 0)
