"""Twenty steps of experiment=toy reproduce tests/golden/toy_loss.txt.

A refactoring leaves the file as it is. A change to the maths renews it in the same commit and says why:
``python tests/test_golden_run.py``.
"""

import json
import sys
import tempfile
from pathlib import Path

import pytest

from imagen.cli import compose
from imagen.training import train

GOLDEN = Path(__file__).parent / "golden" / "toy_loss.txt"


def toy_losses(output_dir: str) -> list[float]:
    settings = ["max_steps=20", "trainer.log_every_n_steps=1", "callback=[]", "validate_every_n_steps=20"]
    folder = train(
        compose("train", ["experiment=toy", f"output_dir={output_dir}", "trainer.accelerator=cpu", *settings])
    )
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [row["value"] for row in rows if row["name"] in ("train/loss", "val/loss")]


def test_toy_losses_are_the_golden_ones(tmp_path):
    expected = [float(line) for line in GOLDEN.read_text().splitlines()]
    # other CPUs round matrix products otherwise; twenty steps keep that small
    assert toy_losses(str(tmp_path)) == pytest.approx(expected, rel=2e-3)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text("".join(f"{loss:.6f}\n" for loss in toy_losses(folder)))
    sys.exit(0)
