"""Networks that are really compiled, into C++ here, their parameters sharded."""

from pathlib import Path

import pytest
from processes import train_on_two_ranks
from test_strategy import assert_same_run, overrides

pytestmark = pytest.mark.drill

SMALL = ["network.channel_mult=[1]", "network.num_res_blocks=[1]", "network.attention_resolutions=[]", "max_steps=2"]
"""Half a minute of compilation instead of several."""


def test_fsdp2_trains_the_same_network_compiled(tmp_path: Path):
    kinds = {"plain": [], "compiled": ["compile=true"]}
    train_on_two_ranks([overrides(tmp_path / name, "fsdp2", *SMALL, *more) for name, more in kinds.items()], tmp_path)
    assert_same_run(tmp_path / "compiled", tmp_path / "plain", 1e-4)
