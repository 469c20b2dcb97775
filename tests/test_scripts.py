"""The commands as a user runs them, in order, on a few small pictures: from drawing the data to the report."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import imagen
from imagen.runs import read_weights

ROOT = Path(__file__).parents[1]
TINY = ["max_steps=2", "batch_size=4", "validate_every_n_steps=2", "callback=[checkpoint]", "text_encoder=hash"]


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, script, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Data, two trained stages in one folder."""
    folder = tmp_path_factory.mktemp("made")
    root = f"root={folder}/openmoji"
    run("data_prep/openmoji.py", root, "limit=40", "size=32", "sizes=[16,32]", "validation=0.2")
    run("data_prep/embed_text.py", root, "text_encoder=hash")
    data = ["data=openmoji", f"data.{root}", f"output_dir={folder}/outputs"]
    for experiment in ("toy", "toy_sr32"):
        run("train.py", f"experiment={experiment}", *TINY, *data)
    return folder


@pytest.fixture(scope="module")
def stages(made) -> list[str]:
    return [str(next(made.glob(f"outputs/{name}/*"))) for name in ("toy", "toy_sr32")]


def test_training_leaves_a_whole_run_and_a_second_time_does_nothing(made, stages):
    assert json.loads((Path(stages[0]) / "done.json").read_text())["step"] == 2
    data = ["data=openmoji", f"data.root={made}/openmoji", f"output_dir={made}/outputs"]
    assert "is finished" in run("train.py", "experiment=toy", *TINY, *data)


def test_sampling_from_run_folders_and_exports_is_the_same(made, stages, tmp_path):
    (tmp_path / "mine.txt").write_text("a red apple\nsmiling cat\n")
    run(
        "sample.py",
        f"stages=[{stages[0]},{stages[1]}/weights.safetensors]",
        f"prompts={tmp_path}/mine.txt",
        "num_samples=2",
        "seed=7",
        f"output_dir={tmp_path}/samples",
        "base.guidance.weight=1.5",
        "sr1.augmentation_level=0.2",
    )
    folder = next((tmp_path / "samples").iterdir())
    assert len(list(folder.glob("*.png"))) == 5
    with Image.open(folder / "001_1.png") as picture:
        assert picture.size == (32, 32)
    assert len(json.loads((folder / "samples.json").read_text())["pictures"]) == 4
    one, two = (imagen.load_cascade(s, device="cpu") for s in (stages, [f"{s}/weights.safetensors" for s in stages]))
    draws = [cascade.sample(["a red apple"], seed=7, progress=False).final for cascade in (one, two)]
    assert (draws[0] == draws[1]).all()


SMALL = ["num_train_prompts=3", "num_heldout_prompts=2", "num_measured=6", "metric.retrieval.k=[1,3]"]
FEW = ["metric.fd_pixel.components=4", "metric.retrieval.permutations=99"]


def test_evaluating_writes_the_sheet_and_the_report(stages, tmp_path):
    arguments = [f"stages=[{','.join(stages)}]", f"output_dir={tmp_path}", *SMALL, *FEW]
    run("evaluate.py", *arguments)
    report = json.loads((tmp_path / "report.json").read_text())
    (point,) = report["points"]
    better = {f"{name}_top{k}" for name in ("retrieval", "heldout") for k in (1, 3)} | {"heldout_cosine"}
    assert {*better, *(f"{name}_shuffled" for name in better), "heldout_p", "fd_pixel"} == set(point["metrics"])
    assert point["directions"] == {**dict.fromkeys(better, "higher"), "fd_pixel": "lower"}
    assert (point["real"], point["drawn"], report["pictures"]) == (40, 10, 40)
    assert report["stages"]["base"]["step"] == 2
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 300
    with Image.open(next(tmp_path.glob("all/shown/32/*.png"))) as picture:
        assert picture.text["Source"] == "AI generated"
        assert picture.text["seed"] == "0"
    assert "<img" in (tmp_path / "sheet.html").read_text()
    assert "already" in run("evaluate.py", *arguments)


def test_two_processes_stopped_and_gone_on_draw_and_measure_the_same_as_one(stages, tmp_path):
    axes = ["base_weights=[1,2]", "base_batch_size=4", *SMALL, *FEW, "num_train_prompts=0", "num_heldout_prompts=0"]
    both = ["depth=2", "lowres=both", "metric=[retrieval,fd_pixel,psnr,consistency,colour_drift,heldout_loss]"]
    arguments = [f"stages=[{','.join(stages)}]", *axes, *both]
    run("evaluate.py", *arguments, f"output_dir={tmp_path}/one")
    told = run("evaluate.py", *arguments, f"output_dir={tmp_path}/two", "worker_index=0", "worker_count=2")
    assert "still drawn by other processes" in told
    for path in sorted((tmp_path / "two").rglob("*.png"))[::3]:
        path.unlink()
    run("evaluate.py", *arguments, f"output_dir={tmp_path}/two", "worker_index=1", "worker_count=2")
    run("evaluate.py", *arguments, f"output_dir={tmp_path}/two")
    pictures = [
        {path.relative_to(tmp_path / way): path.read_bytes() for path in (tmp_path / way).rglob("*/*/*/*.png")}
        for way in ("one", "two")
    ]
    assert len(pictures[0]) == 2 * (2 * 10 + 4)  # at each weight of both stages 10, and 4 held-out ones enlarged
    assert pictures[0] == pictures[1]
    tables = [(tmp_path / way / "table.csv").read_text() for way in ("one", "two")]
    assert tables[0] == tables[1]
    assert tables[0].startswith("base.guidance.weight,drawn,real,seed,")
    assert all(name in tables[0] for name in ("psnr_real", "consistency_samples", "colour_drift_real", "heldout_loss"))
    figures = [(tmp_path / way / "figures.csv").read_text() for way in ("one", "two")]
    assert figures[0] == figures[1]


def test_the_export_carries_all_that_sampling_needs(stages):
    weights = read_weights(f"{stages[1]}/weights.safetensors")
    assert weights.config["resolution"] == 32
    assert weights.text_fingerprint["name"] == "hash"
    assert weights.step == 2
