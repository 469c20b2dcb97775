import subprocess
import sys

import torch

from imagen.randomness import BetweenGenerators, TrainingAddress, generator_of, normal_from, seed_of


def test_seeds_are_the_same_in_every_process_and_differ_by_address():
    code = "from imagen.randomness import seed_of; print(seed_of(1, 2, 'noise'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == seed_of(1, 2, "noise")
    assert len({seed_of(a, b) for a in range(30) for b in range(30)}) == 900
    assert seed_of(1, 23) != seed_of(12, 3)


def test_two_processes_draw_the_same_global_batch_as_one():
    whole = TrainingAddress(7, 3, 0, 8, 8)
    halves = [TrainingAddress(7, 3, first, 4, 8) for first in (0, 4)]
    for stream in ("time", "caption_dropout"):
        assert torch.equal(whole.uniform(stream), torch.cat([half.uniform(stream) for half in halves]))
        assert torch.equal(whole.stratified(stream), torch.cat([half.stratified(stream) for half in halves]))
    parts = torch.cat([half.normal("noise", (3, 4, 4)) for half in halves])
    assert torch.equal(whole.normal("noise", (3, 4, 4)), parts)


def test_stratified_draws_have_one_in_every_stratum_in_random_order():
    t = TrainingAddress(0, 0, 0, 64, 64).stratified("time")
    assert torch.equal((t * 64).long().sort().values, torch.arange(64))
    assert not torch.equal(t.argsort(), torch.arange(64))


def test_streams_steps_and_seeds_are_independent():
    base = TrainingAddress(0, 0, 0, 4096, 4096)
    others = [TrainingAddress(0, 1, 0, 4096, 4096), TrainingAddress(1, 0, 0, 4096, 4096)]
    draws = [base.uniform("a"), base.uniform("b"), *(other.uniform("a") for other in others)]
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(4)
    assert correlation.abs().max() < 0.06


def test_noise_of_one_example_does_not_depend_on_its_neighbours():
    alone = normal_from([generator_of(1, "a dog", 0)], (3, 8, 8))
    among = normal_from([generator_of(1, "a cat", 0), generator_of(1, "a dog", 0)], (3, 8, 8))
    assert torch.equal(alone[0], among[1])


def test_noise_between_two_generators_ends_at_them_and_stays_standard_normal():
    def ends() -> list[torch.Generator]:
        return [generator_of(seed, "a dog") for seed in (1, 2)]

    first, second = (normal_from([end], (3, 64, 64)) for end in ends())
    ways = [normal_from([BetweenGenerators(*ends(), way)], (3, 64, 64)) for way in (0.0, 0.3, 0.5, 1.0)]
    assert torch.equal(ways[0], first)
    assert torch.allclose(ways[3], second, atol=1e-6)
    assert torch.allclose(ways[2], (first + second) / 2**0.5, atol=1e-6)
    for noise in ways:
        assert abs(noise.mean().item()) < 0.03
        assert abs(noise.std().item() - 1) < 0.03
