"""The peers' benchmark: its protocol on this project's own network, and, where their environment is, on theirs."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    before = set(sys.modules)
    yield __import__("peers")
    for name in {path.stem for path in BENCHMARKS.glob("*.py")} & set(sys.modules) - before:
        del sys.modules[name]


def options(peers) -> Namespace:
    return Namespace(python=peers.PEERS_PYTHON, device="cpu", threads=1, batch_size=1, rounds=1)


def tiny(peers) -> dict:
    channels = [32, 64, 128, 256]
    overrides = ["experiment=imagen_sr256", f"network.channels={channels}", "resolution=64", "low_resolution=16"]
    return {**peers.SIZES["sr256_narrow"], "channels": channels, "resolution": 64, "low_resolution": 16} | {
        "num_res_blocks": [1] * 4,
        "overrides": [*overrides, "network.num_res_blocks=[1,1,1,1]"],
    }


def test_every_size_gives_this_project_the_peers_channels(peers):
    for table in peers.SIZES.values():
        assert str(table["channels"]) in str(table["overrides"]) or f"width={table['channels'][0]}" in str(table)
        assert len(table["channels"]) == len(table["num_res_blocks"]) == len(table["attention"])


def test_a_spread_has_its_median_between_its_ends(peers):
    assert peers._spread([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0}


@pytest.mark.drill
def test_a_worker_trains_and_samples(peers):
    with peers.Worker("imagen", tiny(peers), options(peers)) as worker:
        assert worker.hello["forward_flops"] > 1e8
        for step in (worker.step("train", 1), worker.step("sample", 2)):
            assert step["seconds"] > 0
            assert step["peak_bytes"] > 2**27


@pytest.mark.drill
@pytest.mark.parametrize("peer", ["imagen_pytorch", "diffusers", "minimagen"])
def test_a_peer_is_compared(peers, peer: str):
    if not peers.PEERS_PYTHON.exists():
        pytest.skip("make .venv-peers/.done makes the peers' environment")
    ratios = peers.compare(peer, tiny(peers), options(peers))["ratios"]
    assert ratios["train_flops_per_s"]["median"] > 0
