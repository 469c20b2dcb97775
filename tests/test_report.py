"""The report of a sweep: its rows, what is missing and why, table, figure, sheet, page and verdict."""

import csv
import functools
import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from browser import assert_not_blank
from PIL import Image
from small_sweep import PROMPTS, asked, finish, make_sweep, read_json

from imagen.ablation.failures import note_failure
from imagen.ablation.study import Study, read_study
from imagen.ablation.table import columns_of, write_rows
from imagen.cli import one_sentence
from imagen.errors import UserError
from imagen.report import gather, read_sweep, write_report
from imagen.report.figure import draw
from imagen.report.lines import Spread, curves_of

ROOT = Path("outputs")
TWO = ("variant=layers_0,layers_6", "seed=0,1")


@pytest.fixture(autouse=True, scope="module")
def composed_once():
    """A point is composed once for all tests: each asks for the same few, and Hydra takes its time."""
    original = Study.point
    kept = functools.lru_cache(lambda name, scale, *rest: original(read_study(name, scale), *rest))
    Study.point = lambda self, variant, seed, overrides=(): kept(self.name, self.scale, variant, seed, tuple(overrides))
    yield
    Study.point = original


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished sweep of two variants and two seeds."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_sweep(ROOT, {"layers_0": 0.0, "layers_6": 0.1}, 2)
    return folder


@pytest.fixture
def sweep(made, tmp_path, monkeypatch):
    """A copy of it, to be broken; the working directory is where it lies."""
    shutil.copytree(made / ROOT, tmp_path / ROOT)
    monkeypatch.chdir(tmp_path)
    return read_study("encoder_size", "demo")


def point(study, variant, seed):
    return study.point(variant, seed, [f"output_dir={ROOT}"])


def test_a_row_is_a_variant_seed_and_point_of_sampling(sweep):
    found = gather(asked(ROOT, *TWO))
    assert found.missing == []
    assert [(row["variant"], row["seed"], row["base.guidance.weight"]) for row in found.rows] == [
        (variant, seed, weight) for variant in ("layers_0", "layers_6") for seed in (0, 1) for weight in (1, 2, 4)
    ]
    row = found.rows[3]
    told = read_json(point(sweep, "layers_0", 1).evaluation / "report.json")["points"][0]
    assert row == {
        "ablation": "encoder_size",
        "scale": "demo",
        "variant": "layers_0",
        "seed": 1,
        "run": point(sweep, "layers_0", 1).run.path.name,
        "evaluation": "encoder_size-demo",
        "base.guidance.weight": 1,
        "parameters": 20,
        "seconds": 91.5,
        "seconds_per_step": 0.1508,
        "steps": 600,
        "machine": "a CPU, 2 threads x 1",
        "drawn": 448,
        "real": 1923,
        "sampling_seed": 1,
        **told["metrics"],
    }
    assert list(row) == columns_of(sweep, found.rows)
    assert read_sweep("encoder_size", "demo", overrides=[f"output_dir={ROOT}", *TWO]) == found.rows


def test_kept_rows_stand_in_for_runs_that_are_elsewhere_and_own_runs_win(sweep):
    folder = write_report(asked(ROOT, *TWO))
    whole = (folder / "table.csv").read_bytes()
    with (folder / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    rows[0]["fd_pixel"] = "99"  # of a run that is here
    kept = Path("kept.csv")
    others = [{**rows[0], "ablation": "threshold"}, *({**row, "run": "00000000-s0"} for row in rows[:3])]
    with kept.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows([*rows, *others])
    shutil.rmtree(point(sweep, "layers_6", 0).run.path)
    shutil.rmtree(point(sweep, "layers_6", 1).run.path)
    write_report(asked(ROOT, *TWO, f"finished={kept}"))
    assert (folder / "table.csv").read_bytes() == whole
    found = gather(asked(ROOT, *TWO, f"finished={kept}"))
    assert found.missing == []
    assert found.command.endswith("output_dir=outputs variant=layers_0,layers_6 seed=0,1 finished=kept.csv")
    made = "the run 00000000-s0, measured as encoder_size-demo"
    assert found.strays == [f"rows of layers_0-s0 in kept.csv are of {made}, which has other settings"]
    write_rows(sweep, found.rows[:-1], Path("half.csv"))
    found = gather(asked(ROOT, *TWO, "finished=half.csv"))
    assert [one.name for one in found.missing] == ["layers_6-s1"]
    assert found.strays == ["rows of layers_6-s1 in half.csv lack base.guidance.weight=4"]
    again = 'measure=["base.sampler.num_steps=4"]'
    with pytest.raises(UserError, match="not one finished point of 4"):
        gather(asked(ROOT, *TWO, again, f"finished={kept}"))


def test_of_half_a_sweep_what_is_there_is_drawn_and_what_is_missing_is_said(sweep, capsys):
    point(sweep, "layers_0", 1).run.done.unlink()
    (point(sweep, "layers_6", 1).evaluation / "report.json").write_text('{"points": [{"point"')
    key = sweep.point("layers_2", 0, [f"output_dir={ROOT}"]).key
    note_failure(sweep.folder(ROOT), key, "no finite loss\nin 3 steps", "python train.py again")
    shutil.rmtree(point(sweep, "layers_6", 0).run.path / "evaluations")
    words = asked(ROOT, "variant=layers_0,layers_2,layers_6", "seed=0,1")
    folder = write_report(words)
    out = capsys.readouterr().out
    told = read_json(folder / "verdict.json")
    why = {one["name"]: one["why"] for one in told["missing"]}
    assert why["layers_0-s1"] == "its training was stopped, or is still going on"
    assert "report.json or what lies beside it is damaged" in why["layers_6-s1"]
    assert why["layers_2-s0"] == "failed: no finite loss in 3 steps"
    assert why["layers_2-s1"] == "it is not trained yet"
    assert why["layers_6-s0"] == "it is trained, and not measured yet"
    assert told["missing"][0]["command"] == (
        "python train.py -m ablation=encoder_size scale=demo variant=layers_0 seed=1 output_dir=outputs"
    )
    assert "missing: layers_2-s0: failed: no finite loss in 3 steps\n" in out
    assert "undecided: retrieval of held-out captions" in out
    assert "0 of 2 seeds; missing: 0 (layers_6 is not there), 1 (layers_6 is not there, layers_0 is not there)" in out
    assert told["rows"] == 3
    assert_not_blank(folder / "figure.png")
    assert "failed: no finite loss" in (folder / "report.html").read_text()


def test_rows_of_a_point_that_failed_when_measured_again_are_said_to_be_of_before(sweep):
    note_failure(sweep.folder(ROOT), point(sweep, "layers_6", 1).key, "it holds pictures of other settings", "")
    found = gather(asked(ROOT, *TWO))
    assert found.missing == []
    (stray,) = found.strays
    assert stray == (
        "layers_6-s1 failed when measured again, its rows are of before: it holds pictures of other settings"
    )


def test_reports_of_other_axes_formats_and_settings_are_named(sweep):
    report = point(sweep, "layers_0", 0).evaluation / "report.json"
    rows = read_json(report)["points"]
    report.write_text(json.dumps({"points": rows[:2]}))
    foreign = point(sweep, "layers_0", 1).evaluation / "report.json"
    foreign.write_text(json.dumps({"rows": rows}))
    (point(sweep, "layers_6", 1).run.weights).write_bytes(b"damaged")
    other = sweep.point("layers_6", 0, [f"output_dir={ROOT}", "max_steps=7", "optimizer.lr=1"])
    finish(sweep, other, 0.5)
    found = gather(asked(ROOT, *TWO))
    why = {one.name: one.why for one in found.missing}
    assert list(why) == ["layers_0-s0", "layers_0-s1", "layers_6-s1"]
    assert why["layers_0-s0"].endswith('is of other axes, and lacks {"base.guidance.weight": 4}')
    assert "KeyError('points')" in why["layers_0-s1"]
    assert "weights.safetensors" in why["layers_6-s1"]
    (stray,) = found.strays
    assert f"{other.run.path} is of other settings or another version: " in stray
    assert "max_steps, optimizer.lr and 1 more differ" in stray
    assert stray.endswith("differ from layers_6-s0")


def test_everything_is_written(sweep, capsys):
    folder = write_report(asked(ROOT, *TWO))
    assert folder == ROOT / "ablations" / "encoder_size-demo"
    names = ["figure.png", "figure.svg", "report.html", "sheet.png", "table.csv", "verdict.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert_not_blank(folder / "figure.png")
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.width > len(PROMPTS) * 112
        assert sheet.height > 2 * 112
    claim, cosine, loss = read_json(folder / "verdict.json")["verdicts"]
    assert (claim["metric"], claim["outcome"]) == ("heldout_top10", "holds")
    (contrast,) = claim["contrasts"]
    assert contrast["differences"] == pytest.approx({"0": 0.1, "1": 0.1004})
    assert contrast["interval"]["n"] == 2
    assert (cosine["metric"], cosine["outcome"]) == ("heldout_cosine", "holds")
    assert (loss["metric"], loss["outcome"]) == ("heldout_loss", "holds")
    page = (folder / "report.html").read_text()
    for part in (
        "The claim holds",
        "Also: holds",
        "<svg",
        "data:image/png;base64,",
        "figures 4a and A.5a",
    ):
        assert part in page
    assert "&lt;b&gt;two&lt;/b&gt;" in page
    assert "<b>two" not in page
    assert "<script" not in page
    assert "python -m imagen.report ablation=encoder_size scale=demo" in page
    assert "sentence_encoder MiniLM" in page
    assert "measured alike" not in page
    assert read_json(folder / "verdict.json")["made"]["sources"][0]["n"] == "448"
    svg, again = (folder / "figure.svg").read_bytes(), write_report(asked(ROOT, *TWO))
    assert (again / "figure.svg").read_bytes() == svg
    assert "12 rows" in capsys.readouterr().out


def test_pictures_that_are_gone_are_told(sweep, capsys):
    shutil.rmtree(point(sweep, "layers_0", 0).evaluation / "weight-1" / "shown")
    folder = write_report(asked(ROOT, *TWO))
    assert "the pictures of layers_0 in" in capsys.readouterr().out
    assert "cannot be shown" in (folder / "report.html").read_text()


def test_a_picture_that_is_damaged_is_told_with_what_draws_it_again(sweep, capsys):
    evaluation = point(sweep, "layers_0", 0).evaluation
    picture = next((evaluation / "weight-1" / "shown").rglob("*.png"))
    picture.write_bytes(picture.read_bytes()[:60])
    write_report(asked(ROOT, *TWO))
    out = capsys.readouterr().out
    assert f"picture {picture} cannot be read" in out
    assert f"delete that folder and {evaluation / 'report.json'}, and the sweep's command draws them again" in out
    assert "and it is drawn again" not in out


@pytest.mark.parametrize(
    ("content", "why"), [("{", "is damaged"), ("{}", "is of another"), ('{"step": 1}', "is of an")]
)
def test_the_file_of_a_run_that_is_damaged_is_the_one_to_be_deleted(sweep, content, why):
    done = point(sweep, "layers_0", 0).run.done
    done.write_text(content)
    (missing,) = gather(asked(ROOT, *TWO)).missing
    assert missing.why.startswith(f"{done} {why}")
    assert missing.why.endswith(": delete it, and the training's command writes it again")


def test_another_seed_is_no_stray(sweep):
    found = gather(asked(ROOT, "variant=layers_0,layers_6", "seed=0"))
    assert found.strays == []


def test_a_metric_that_was_measured_in_two_ways_is_told(sweep):
    path = point(sweep, "layers_0", 0).evaluation / "report.json"
    path.write_text(path.read_text().replace('"resize": "none"', '"resize": "clean"'))
    page = (write_report(asked(ROOT, *TWO)) / "report.html").read_text()
    assert "of layers_0-s0 alone: it does not compare with the others" in page
    assert "drawn in other ways" not in page
    assert "Not all points were measured alike (fd_pixel)" in page
    assert "The claim holds" in page, "it is of another metric"


def test_points_that_were_drawn_in_two_ways_are_told(sweep):
    path = point(sweep, "layers_6", 1).evaluation / "report.json"
    path.write_text(path.read_text().replace('"steps": 32', '"steps": 8'))
    page = (write_report(asked(ROOT, *TWO)) / "report.html").read_text()
    assert "<strong>layers_6-s1 alone: what was drawn in other ways does not compare</strong>" in page
    assert "base.sampler.num_steps 8; sampling seed that of training, 448 pictures a point" in page
    assert "Not all points were measured alike (drawing)" in page
    assert "The claim: undecided: not measured alike (base.sampler.num_steps)" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scale=demo"], "give ablation="),
        (["ablation=encoder_sise", "scale=demo"], "ablation=encoder_sise is not an option of ablation"),
        (["ablation=encoder_size", "scale=dmeo"], "scale=dmeo"),
        (["ablation=encoder_size", "scale=demo", "seeds=none"], "seeds=none must be"),
        (
            asked(Path("nowhere"), "variant=layers_0", "seed=0"),
            "not one finished point of 1 in nowhere: layers_0-s0",
        ),
        (asked(ROOT, *TWO, "finished=nowhere.csv"), "finished=nowhere.csv does not exist"),
        (asked(ROOT, *TWO, "wandb=yes"), "wandb=yes must be offline, online or null"),
    ],
)
def test_mistakes_are_one_sentence(sweep, words, message):
    with pytest.raises(UserError, match=message):
        write_report(words)


def test_a_mistyped_key_is_named(sweep):
    with pytest.raises(SystemExit, match=r"unknown config key 'max_step'.*max_steps"), one_sentence("train"):
        write_report(asked(ROOT, *TWO, "max_step=3"))


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else name)
    with pytest.raises(UserError, match=r"needs matplotlib: pip install 'imagen-lab\[report\]'"):
        write_report([])


@pytest.mark.filterwarnings("ignore")  # wandb's own
def test_it_reaches_an_offline_wandb_run_of_the_sweeps_group(sweep, monkeypatch):
    import wandb

    told = {}
    init = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **settings: told.update(settings) or init(**settings))
    folder = write_report(asked(ROOT, *TWO, "wandb=offline"))
    assert (told["group"], told["job_type"], told["mode"]) == ("encoder_size-demo", "report", "offline")
    (run,) = folder.glob("wandb/offline-run-*")
    assert list(run.glob("*.wandb"))
    assert list(run.glob("files/media/images/figure*.png"))
    assert list(run.glob("files/media/images/sheet*.png"))
    (table,) = run.glob("files/media/table/*.json")
    assert len(read_json(table)["data"]) == 12
    assert wandb.run is None


def test_a_figure_of_training_is_drawn_against_the_time_until_then(sweep):
    measured = gather(asked(ROOT, *TWO)).measured
    timed = replace(sweep, plot={"x": "seconds", "y": "val/loss"})
    first, second = curves_of(timed, measured, "val/loss")
    assert (first.label, second.label) == ("layers_0", "layers_6")
    begin, end = first.marks
    assert (begin.x.mean, begin.y) == (pytest.approx(91 / 600), Spread(1.0, 1.0, 1.0, 2))
    assert (end.x.low, end.x.high, end.y.mean) == pytest.approx((90.5, 91.5, 1 / 600))
    figure, said = draw(timed, [row for one in measured for row in one.rows], measured)
    assert figure.axes[0].get_xlabel() == "training time, seconds"
    assert figure.axes[0].get_ylabel() == "validation loss (lower is better)"
    assert "means of 2 seeds" in said
