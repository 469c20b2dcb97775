"""Notebooks: each runs from top to bottom in a process of its own, and is kept without outputs and as text."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jupytext
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

SAVE_FIGURES = """
import matplotlib.pyplot as plt
for number in plt.get_fignums():
    plt.figure(number).savefig(f"figure_{number}.png")
"""


def cells_of(path: Path) -> list[dict[str, Any]]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return notebook["cells"]


@pytest.mark.drill
@every_notebook
def test_it_runs_and_its_figures_can_be_drawn(path: Path, tmp_path: Path) -> None:
    cells = ["".join(cell["source"]) for cell in cells_of(path) if cell["cell_type"] == "code"]
    script = tmp_path / f"{path.stem}.py"
    script.write_text("\n\n".join([*cells, SAVE_FIGURES]), encoding="utf-8")
    quiet = {**os.environ, "MPLBACKEND": "Agg"}
    result = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=quiet, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.glob("figure_*.png"))


@every_notebook
def test_it_is_kept_without_outputs(path: Path) -> None:
    code = [cell for cell in cells_of(path) if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)


@every_notebook
def test_it_says_what_one_will_see_and_what_to_try_next(path: Path) -> None:
    first, *_, last = cells_of(path)
    assert first["cell_type"] == last["cell_type"] == "markdown"
    assert first["source"][0].startswith("# ")
    assert "What you will see" in "".join(first["source"])
    assert "## To try next" in "".join(last["source"])


@every_notebook
def test_it_and_its_text_say_the_same(path: Path) -> None:
    text = jupytext.read(path.with_suffix(".py"), fmt="py:percent")
    said = [(cell["cell_type"], "".join(cell["source"])) for cell in cells_of(path)]
    assert [(cell.cell_type, cell.source) for cell in text.cells] == said
    assert sorted(other.with_suffix(".ipynb") for other in path.parent.glob("*.py")) == NOTEBOOKS
