"""Reconstruction: what was stored comes back, and what was not is what a track of its own would have kept."""

import pytest
import torch
from torch import nn

from imagen.ema import PowerEMA, export, gamma_of, reconstruct
from imagen.ema.__main__ import main
from imagen.ema.posthoc import coefficients
from imagen.ema.power import inner_product
from imagen.errors import UserError
from imagen.runs import RunFolder, Weights, read_weights, snapshot_name

STORED, OTHERS = [0.05, 0.10], [0.03, 0.07, 0.12, 0.15, 0.2]
TOLERANCES = [(0.03, 0.04), (0.07, 0.005), (0.12, 0.005), (0.15, 0.005), (0.2, 0.015)]
STEPS, EVERY = 640, 40


def walked(folder: RunFolder, dtype: torch.dtype = torch.float32) -> PowerEMA:
    """A random walk's averages of ``STORED`` (saved in ``folder``) and ``OTHERS`` (returned with them)."""
    generator = torch.Generator().manual_seed(0)
    network = nn.Linear(1000, 1)
    ema = PowerEMA(network, sigma_rel=[*STORED, *OTHERS])
    for step in range(1, STEPS + 1):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        ema.update(network, step)
        if step % EVERY == 0:
            for sigma_rel, averaged in ema.tracks()[: len(STORED)]:
                state = {name: value.to(dtype) for name, value in averaged.state_dict().items()}
                weights = Weights(state, {"name": "walk"}, {"name": "hash"}, step, sigma_rel)
                weights.save(folder.snapshots / snapshot_name(step, sigma_rel))
    return ema


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[RunFolder, dict[float, torch.Tensor]]:
    folder = RunFolder(tmp_path_factory.mktemp("walk"))
    return folder, {sigma: network.weight.detach() for sigma, network in walked(folder).tracks()}


def distance(one: torch.Tensor, two: torch.Tensor) -> float:
    return (one - two).square().mean().sqrt().item()


def test_inner_products_are_the_integrals_of_the_profiles() -> None:
    time = (torch.arange(200000, dtype=torch.float64) + 0.5) / 2000  # up to 100

    def profile(gamma: float, end: float) -> torch.Tensor:
        return torch.where(time <= end, (gamma + 1) * time**gamma / end ** (gamma + 1), 0)

    for one, two in (((17.0, 100.0), (7.0, 60.0)), ((3.5, 20.0), (7.0, 20.0)), ((0.5, 50.0), (0.5, 90.0))):
        exact = (profile(*one) * profile(*two)).sum().item() / 2000
        values = [torch.tensor(value, dtype=torch.float64) for value in (*one, *two)]
        assert inner_product(*values).item() == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("sigma_rel", STORED)
def test_a_stored_length_comes_back_as_it_was(run, sigma_rel: float) -> None:
    folder, tracked = run
    torch.testing.assert_close(reconstruct(folder.path, sigma_rel)["weight"], tracked[sigma_rel], rtol=1e-6, atol=1e-5)
    earlier = read_weights(folder.snapshots / snapshot_name(280, sigma_rel)).state
    torch.testing.assert_close(reconstruct(folder.path, sigma_rel, 280), earlier, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(("sigma_rel", "tolerance"), TOLERANCES)
def test_another_length_is_what_a_track_of_its_own_would_have_kept(run, sigma_rel: float, tolerance: float) -> None:
    """To within a share of its distance from the nearest stored track."""
    folder, tracked = run
    error = distance(reconstruct(folder.path, sigma_rel)["weight"], tracked[sigma_rel])
    nearest = min(distance(tracked[stored], tracked[sigma_rel]) for stored in STORED)
    assert error < tolerance * nearest


def test_weights_sum_to_one_and_miss_less_of_the_profile_with_more_snapshots() -> None:
    misfits = []
    for count in (4, 16, 64):
        steps = torch.arange(1, count + 1, dtype=torch.float64).repeat(2) / count * 1000
        gammas = torch.tensor([gamma_of(sigma) for sigma in STORED], dtype=torch.float64).repeat_interleave(count)
        weights, misfit = coefficients(gammas, steps, 0.15, 1000)
        assert weights.sum().item() == pytest.approx(1)
        misfits.append(misfit)
    assert misfits[0] > 0.05
    assert misfits[1] < 0.01
    assert misfits[2] < 0.001


def test_bfloat16_snapshots_give_float32_near_the_exact_ones(run, tmp_path) -> None:
    _, tracked = run
    walked(RunFolder(tmp_path), torch.bfloat16)
    found = reconstruct(tmp_path, 0.12)["weight"]
    assert found.dtype is torch.float32
    assert distance(found, tracked[0.12]) < 0.01 * tracked[0.12].square().mean().sqrt().item()


def test_an_export_is_a_stage_and_the_command_line_writes_it(run, monkeypatch, capsys) -> None:
    folder, _ = run
    path = export(folder.path, 0.07, 400)
    weights = read_weights(path)
    assert (weights.config, weights.text_fingerprint) == ({"name": "walk"}, {"name": "hash"})
    assert (weights.step, weights.sigma_rel) == (400, 0.07)
    torch.testing.assert_close(weights.state, reconstruct(folder.path, 0.07, 400))
    monkeypatch.setattr("sys.argv", ["imagen.ema", str(folder.path), "sigma_rel=0.07"])
    main()
    assert capsys.readouterr().out.strip() == str(folder.path / "weights_0.07_step_000000640.safetensors")


@pytest.mark.parametrize(
    "words", [[], ["sigma_rel=0.1"], ["RUN"], ["RUN", "sigma_rel=long"], ["RUN", "sigma_rel=0.1", "sigma=0.1"]]
)
def test_what_the_command_line_does_not_understand_ends_in_one_sentence(words, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["imagen.ema", *words])
    with pytest.raises(SystemExit, match=r"^error: .*python -m imagen\.ema RUN sigma_rel=0\.12"):
        main()


def test_what_cannot_be_reconstructed_is_told_with_what_can(run, tmp_path) -> None:
    folder, _ = run
    with pytest.raises(UserError, match=r"holds no snapshots; train with ema=power and ema_snapshots"):
        reconstruct(tmp_path, 0.1)
    with pytest.raises(UserError, match=r"step=390 has no snapshot.*step=400"):
        reconstruct(folder.path, 0.1, 390)
    with pytest.raises(UserError, match=r"sigma_rel=0.3 must be above 0 and below 0\.2887"):
        reconstruct(folder.path, 0.3)
    with pytest.raises(UserError, match=r"sigma_rel=0.001 is out of reach.*off by \d+% .*nearest .*sigma_rel=0\.03$"):
        reconstruct(folder.path, 0.001)
    with pytest.raises(UserError, match=r"the nearest within reach is sigma_rel=0\.12$"):
        reconstruct(folder.path, 0.28, EVERY)  # a single snapshot of each
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / snapshot_name(1, 0.1)).write_bytes(b"half a file")
    with pytest.raises(UserError, match=r"step_000000001_0\.1\.safetensors' is damaged"):
        reconstruct(tmp_path, 0.1)
