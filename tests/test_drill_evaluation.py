"""``evaluate.py`` by two processes at once, killed and gone on; its sheet in a real browser without a network."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from browser import assert_not_blank, open_browser
from PIL import Image
from small_clip import save_small_clip

from imagen.evaluation import measure

pytestmark = pytest.mark.drill

ROOT = Path(__file__).parents[1]
TRAINED = ["max_steps=60", "batch_size=8", "validate_every_n_steps=60", "callback=[checkpoint]", "text_encoder=hash"]
FEW = ["metric.fd_pixel.components=4", "metric.retrieval.permutations=99", "metric.retrieval.k=[1,10]", "device=cpu"]
ASKED = ["base_weights=[1,4]", "depth=2", "lowres=both", "num_measured=12", "base_batch_size=4", *FEW]
WAYS = ("one", "two")
METRICS = "metric=[retrieval,fd_pixel,psnr,lpips,consistency,colour_drift,heldout_loss]"


def run(*command: str) -> str:
    result = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("evaluation")
    run("data_prep/openmoji.py", f"root={folder}/data", "limit=60", "size=32", "sizes=[16,32]", "validation=0.2")
    run("data_prep/embed_text.py", f"root={folder}/data", "text_encoder=hash")
    data = ["data=openmoji", f"data.root={folder}/data", f"output_dir={folder}/outputs"]
    for experiment in ("toy", "toy_sr32"):
        run("train.py", f"experiment={experiment}", *TRAINED, *data)
    return [str(next(folder.glob(f"outputs/{name}/*"))) for name in ("toy", "toy_sr32")]


def test_two_processes_that_were_killed_and_go_on_give_what_one_gives(stages, tmp_path):
    arguments = [f"stages=[{','.join(stages)}]", *ASKED, METRICS, "metric.lpips.weights=/no/such.pth"]
    run("evaluate.py", *arguments, f"output_dir={tmp_path}/one")
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "evaluate.py", *arguments]
    two.append(f"output_dir={tmp_path}/two")
    with subprocess.Popen([sys.executable, *two], cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 120
        while len(list((tmp_path / "two").rglob("measured/16/*.png"))) < 5 and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)  # which the launcher hands on
        process.wait(60)
    assert not (tmp_path / "two" / "report.json").exists()
    assert list((tmp_path / "two").rglob("measured/16/*.png"))
    run(*two)
    for pattern in ("**/*.png", "table.csv", "figures.csv", "**/values.npz"):
        files = [{path.relative_to(tmp_path / way): path for path in (tmp_path / way).glob(pattern)} for way in WAYS]
        assert set(files[0]) == set(files[1])
        for name in files[0]:
            assert files[0][name].read_bytes() == files[1][name].read_bytes(), name
    reports = [json.loads((tmp_path / way / "report.json").read_text()) for way in WAYS]
    for row in reports[1]["points"]:
        assert list(row["skipped"]) == ["lpips"]  # and the rest went on
        assert {"psnr_real", "consistency_samples", "consistency_real", "heldout_loss", "fd_pixel"} <= set(
            row["metrics"]
        )
        assert row["n"]["consistency_samples"] == row["drawn"]
        assert row["n"]["psnr_real"] < row["drawn"]


def test_the_sheet_opens_from_disk_and_shows_every_point(stages, tmp_path):
    (tmp_path / "clip").mkdir()
    clip = save_small_clip(tmp_path / "clip")
    (tmp_path / "mine.tsv").write_text(
        'prompt\tkind\nred apple\tcolours\n<b>bold</b> & "so"\ttext\n\t\nbroken\ttoo\tmany\ntwo dogs\tcolours\n'
    )
    asked = [f"prompts={tmp_path}/mine.tsv", "base_weights=[1.0,2.0,4.0]", "num_samples=2", *FEW]
    asked += ["metric=[fd_pixel,clip_score,retrieval]", f"metric.clip_score.path={clip}"]
    rows = measure(stages[:1], tmp_path / "out", asked)
    assert [row["point"] for row in rows] == [{"base.guidance.weight": weight} for weight in (1.0, 2.0, 4.0)]
    assert rows[0]["drawn"] == 6  # the bad lines were left out
    assert rows[0]["kinds"]["colours"]["clip_score"]["n"] == 4
    assert rows == measure(stages[:1], tmp_path / "out", asked)
    with (tmp_path / "out" / "table.csv").open() as file:
        assert [line["base.guidance.weight"] for line in csv.DictReader(file)] == ["1.0", "2.0", "4.0"]
    assert_not_blank(tmp_path / "out" / "curve.png", least=20)
    with open_browser() as context:
        page = context.new_page()
        page.goto((tmp_path / "out" / "sheet.html").as_uri())
        page.wait_for_function("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
        assert page.locator("img.curve").count() == 1
        assert page.locator("td img").count() == 3 * 3 * 2
        assert page.get_by_text('<b>bold</b> & "so"', exact=True).count() == 1  # a prompt is never run
        assert page.get_by_role("heading", name="clip_score by kind of prompt").is_visible()
        assert page.get_by_text("no retrieval, since retrieval needs prompts").count() == 3
        details = page.get_by_text("PixelComponents").first
        assert details.is_hidden()
        page.get_by_text("How each figure was made").click()
        assert details.is_visible()
        page.keyboard.press("Enter")  # the summary has the focus
        assert details.is_hidden()
        page.screenshot(path=tmp_path / "sheet.png", full_page=True)
        assert_not_blank(tmp_path / "sheet.png")
        page.set_viewport_size({"width": 380, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    with Image.open(tmp_path / "sheet.png") as shot:
        assert shot.height > 800


def test_an_ablation_of_sampling_is_one_evaluation_with_m_or_without(stages, tmp_path):
    asked = ["ablation=threshold", f"stages=[{stages[0]}]", f"output_dir={tmp_path}"]
    asked += ["metric=[retrieval,fd_pixel]", "text_encoder@judge=hash", "num_measured=12", *FEW]
    assert run("evaluate.py", "-m", *asked).startswith("threshold at scale=demo: ")
    rows = json.loads((tmp_path / "report.json").read_text())["points"]
    assert [[*row["point"].values()] for row in rows] == [
        [weight, threshold] for weight in (1, 2, 4, 8) for threshold in ("none", "static", "dynamic")
    ]
    assert all({"fd_pixel", "retrieval_top10"} <= set(row["metrics"]) for row in rows)
    assert len({row["metrics"]["fd_pixel"] for row in rows}) == len(rows)
    assert_not_blank(tmp_path / "curve.png", least=20)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for flags in ([], ["-m"]):
        assert "report.json is of these stages and settings already" in run("evaluate.py", *flags, *asked)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written
