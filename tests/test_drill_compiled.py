"""Networks that are really compiled, into C++ here: training with sharded parameters, and sampling of a cascade."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import ROOT, train_on_two_ranks
from test_strategy import assert_same_run, overrides, run_of

from imagen.cli import compose
from imagen.training import train

pytestmark = pytest.mark.drill

SMALL = ["network.channel_mult=[1]", "network.num_res_blocks=[1]", "network.attention_resolutions=[]", "max_steps=2"]
"""Half a minute of compilation instead of several."""

LONGER = ["max_steps=40", "validate_every_n_steps=40", "callback.checkpoint.every_n_steps=40", "ema=none"]
"""Until what is drawn is no plain grey."""


def test_fsdp2_trains_the_same_network_compiled(tmp_path: Path):
    kinds = {"plain": [], "compiled": ["compile=true"]}
    train_on_two_ranks([overrides(tmp_path / name, "fsdp2", *SMALL, *more) for name, more in kinds.items()], tmp_path)
    assert_same_run(tmp_path / "compiled", tmp_path / "plain", 1e-4)


def test_a_cascade_draws_the_same_compiled(tmp_path: Path):
    train(compose("train", overrides(tmp_path, "one", *SMALL, *LONGER)))
    drawn = []
    for compiled in ("false", "true"):
        to = tmp_path / f"drawn-{compiled}"
        words = ["sample.py", f"stages=[{run_of(tmp_path)}]", "prompts=[a red circle,a blue square]", "device=cpu"]
        words += [f"compile={compiled}", "base.sampler.num_steps=4", f"output_dir={to}"]
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
        drawn.append([np.asarray(Image.open(path), float) for path in sorted(to.rglob("?*_0.png"))])
    assert len(drawn[0]) == len(drawn[1]) == 2
    for plain, compiled in zip(*drawn, strict=True):
        assert np.abs(plain - compiled).max() <= 1
        assert plain.std() > 1, "something is on it"
