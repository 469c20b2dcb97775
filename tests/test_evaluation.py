"""Evaluation: points of axes, galleries that are taken up, tables and curves. The script itself: test_scripts.py."""

import csv
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from pictures import of_one_colour
from PIL import Image
from small_set import ENCODER

from imagen import build
from imagen.cascade import Cascade, Samples
from imagen.cli import CONF, compose
from imagen.config_check import read_yaml
from imagen.data.pixels import to_uint8
from imagen.errors import UserError
from imagen.evaluation import paired_difference
from imagen.evaluation.command import _is_current, drawings_of, evaluate
from imagen.evaluation.gallery import Gallery
from imagen.evaluation.ground import Ground, Prompts
from imagen.evaluation.page import write_page
from imagen.evaluation.points import points_of
from imagen.evaluation.table import write_curve, write_figures, write_table
from imagen.files import write_json
from imagen.metric.pictures import InMemory, PictureSet
from imagen.metric.retrieval import embed_sentences
from imagen.prompts import COCO, OF_COCO
from imagen.runs import Weights
from imagen.slots import register

ROOT = Path(__file__).parents[1]


def test_sentences_keep_their_rows_whatever_their_length():
    encoder = build.build_encoder(compose("train", ["experiment=toy"]))
    captions = ["a long caption of many words", "short", "two words"]
    whole = embed_sentences(encoder, captions, batch_size=2)
    torch.testing.assert_close(whole[1:2], embed_sentences(encoder, ["short"]))
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(3))


def evaluation(*overrides):
    register([])
    return compose("evaluate", ["stages=[]", *overrides])


@pytest.mark.parametrize("own", ["num_measured=-3", "num_train_prompts=-1", "depth=0", "worker_index=-1"])
def test_numbers_that_count_nothing_are_refused(own):
    with pytest.raises(UserError, match=rf"{own} must be"):
        evaluation(own)


def test_a_worker_is_one_of_those_there_are(tmp_path):
    with pytest.raises(UserError, match="worker_index=2 must be less than worker_count=2: the first is worker 0"):
        evaluate(evaluation("worker_index=2", "worker_count=2", f"output_dir={tmp_path}/none"))
    assert not (tmp_path / "none").exists()


def test_axes_are_crossed_the_last_fastest_and_options_are_taken_whole():
    cfg = evaluation("axes={seed:[0,1],base.threshold:[none,dynamic]}")
    points = points_of(cfg)
    assert [point.name for point in points] == [
        "seed-0_threshold-none",
        "seed-0_threshold-dynamic",
        "seed-1_threshold-none",
        "seed-1_threshold-dynamic",
    ]
    assert points[3].cfg.seed == 1
    assert points[3].cfg.base.threshold["_target_"].endswith("DynamicThreshold")
    assert cfg.seed == 0
    assert [point.name for point in points_of(evaluation())] == ["all"]


class OnPaper(Ground):
    """A base stage that was never trained."""

    prompts, identity = Prompts(["a"], ["a"], ["a"], [""]), {}

    def __init__(self, cfg):
        self.cfg, self.depth, self.sides = cfg, 1, [16]
        self.read = [SimpleNamespace(config={"low_resolution": None})]


def test_every_point_draws_by_its_own_settings(tmp_path):
    ground = OnPaper(evaluation())
    seeds = [
        drawings_of(point, tmp_path, ground)["measured"].gallery.seed
        for point in points_of(evaluation("axes={seed:[3,4]}"))
    ]
    assert seeds == [3, 4]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ("{base.threshold:[harsh]}", "base.threshold=harsh is not an option of threshold; there are dynamic"),
        ("{seed:[]}", "axes.seed=.* is not a list of at least one value"),
        ("{base.wind:[1]}", "base.wind is no key"),
        ("{seed:[1,1]}", "two points called seed-1"),
    ],
)
def test_axes_that_are_none_are_refused(axes, message):
    with pytest.raises(UserError, match=message):
        points_of(evaluation(f"axes={axes}"))


class Draws(Cascade):
    """Stands in for a cascade of two stages: a picture is one colour, made of its prompt and its number."""

    def __init__(self):
        self.asked = []

    def sample(self, prompts, *, num_samples, **rest):
        self.asked.append(list(prompts))
        values = [[(10 * int(prompt) + s) % 256 for s in range(num_samples)] for prompt in prompts]
        colours = torch.tensor(values, dtype=torch.uint8)[:, :, None, None, None]
        return Samples(list(prompts), [colours.expand(-1, -1, 3, side, side).contiguous() for side in (4, 8)])


def gallery(folder, **others):
    settings = {"settings": {"configs": ["abc"]}, "num_samples": 2, "batch_size": 4, "seed": 7} | others
    return Gallery(folder, [str(i) for i in range(5)], [4, 8], **settings)


def test_a_gallery_draws_each_batch_once_and_redoes_a_broken_one_whole(tmp_path):
    cascade, own = Draws(), gallery(tmp_path)
    own.begin()
    own.draw(cascade, 1, 2)
    assert cascade.asked == [["2", "3"]]
    own.draw(cascade, 0, 1)
    assert cascade.asked == [["2", "3"], ["0", "1"], ["4"]]
    assert not own.missing()
    (tmp_path / "8" / "00003_1.png").unlink()
    own.draw(cascade, 0, 1)
    assert cascade.asked[3:] == [["2", "3"]]
    pictures = own.pictures(8)
    assert pictures.captions == [str(i) for i in range(5) for _ in range(2)]
    assert [batch[:, 0, 0, 0].tolist() for batch in pictures.batches(4)] == [[0, 1, 10, 11], [20, 21, 30, 31], [40, 41]]
    with Image.open(tmp_path / "8" / "00003_1.png") as picture:
        assert picture.text["Description"] == "3"
        assert picture.text["Source"] == "AI generated"
        assert picture.text["config"] == "abc"


def test_a_gallery_of_other_settings_is_left_as_it_is(tmp_path):
    gallery(tmp_path).begin()
    gallery(tmp_path).begin()
    assert gallery(tmp_path).plan == gallery(tmp_path).plan != gallery(tmp_path, seed=8).plan
    with pytest.raises(UserError, match=r"holds pictures of other settings \(seed\)"):
        gallery(tmp_path, seed=8).begin()


ROWS = [
    {
        "point": {"base.guidance.weight": weight, "base.threshold": threshold},
        "name": f"weight-{weight}_threshold-{threshold}",
        "drawn": 4,
        "real": 9,
        "seed": 0,
        "metrics": {"fd_pixel": 3.0 / weight, "retrieval_top10": weight / 8},
        "n": {"fd_pixel": 4, "retrieval_top10": 3},
        "directions": {"fd_pixel": "lower", "retrieval_top10": "higher"},
        "kinds": {"colours": {"retrieval_top10": {"value": weight / 4, "n": 2}}},
        "metric_of": {"fd_pixel": "fd_pixel", "retrieval_top10": "retrieval"},
        "provenance": {"fd_pixel": {"extractor": "PixelComponents", "weights": "abc"}, "retrieval": {"seed": 0}},
        "sampling": {"base": {"guidance": "ClassifierFreeGuidance", "weight": weight, "sampler": "DDIM", "steps": 9}},
        "skipped": {"fid": "no <weights>"},
    }
    for weight in (1, 2)
    for threshold in ("none", "dynamic")
]


@pytest.mark.parametrize(("skipped", "current"), [({}, True), ({"fd_pixel": "is nan"}, True), ({"fid": "no"}, False)])
def test_a_report_is_made_again_for_weights_that_were_missing_not_for_a_figure_that_was_not_finite(
    tmp_path, skipped, current
):
    weights = tmp_path / "base.safetensors"
    weights.touch()
    asked = {"stages": [str(weights)]}
    write_json(tmp_path / "report.json", {"points": [{**ROWS[0], "skipped": skipped}], "asked": asked})
    (tmp_path / "table.csv").touch()
    values = tmp_path / ROWS[0]["name"] / "values.npz"
    values.parent.mkdir()
    np.savez(values, fd_pixel=np.ones(3))
    assert _is_current(tmp_path, asked) is current
    values.write_bytes(values.read_bytes()[:100])
    assert not _is_current(tmp_path, asked), "what figures are means of is damaged"


def test_the_table_has_a_line_a_point(tmp_path):
    write_table(ROWS, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["base.threshold"] for line in lines] == ["none", "dynamic", "none", "dynamic"]
    assert [float(line["fd_pixel"]) for line in lines] == [3.0, 3.0, 1.5, 1.5]
    assert [float(line["retrieval_top10 (colours)"]) for line in lines] == [0.25, 0.25, 0.5, 0.5]


def test_every_figure_has_a_line_with_all_that_makes_it_comparable(tmp_path):
    write_figures(ROWS, tmp_path / "figures.csv")
    with (tmp_path / "figures.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 4 * 3
    first, _, of_kind = lines[:3]
    assert (first["metric"], first["figure"], first["kind"]) == ("fd_pixel", "fd_pixel", "")
    assert (first["n"], first["real"]) == ("4", "9")
    assert (first["extractor"], first["weights"], first["sampling_seed"]) == ("PixelComponents", "abc", "0")
    assert (first["guidance"], first["weight"]) == ("base ClassifierFreeGuidance", "base 1")
    assert (first["sampler"], first["steps"]) == ("base DDIM", "base 9")
    assert (of_kind["metric"], of_kind["figure"], of_kind["kind"]) == ("retrieval", "retrieval_top10", "colours")
    assert (of_kind["value"], of_kind["n"], of_kind["settings"]) == ("0.25", "2", "seed 0")


def test_the_curve_is_drawn_along_an_axis_alone(tmp_path):
    write_curve(ROWS[:1], tmp_path / "one.png")
    assert not (tmp_path / "one.png").exists()
    write_curve(ROWS, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as curve:
        assert curve.width == 900


def test_the_page_says_what_is_missing_and_trusts_no_caption(tmp_path):
    own = Gallery(tmp_path / "g", ["<b>", "c", "d"], [4], {}, 1, 4, 0)
    write_page(ROWS, [own] * 4, tmp_path / "sheet.html")
    page = (tmp_path / "sheet.html").read_text()
    assert "no &lt;weights&gt;" in page
    assert "<b>" not in page
    assert page.count("<img") == 12
    assert 'src="g/4/00002_0.png"' in page
    assert "retrieval_top10 by kind of prompt" in page
    assert 'title="n = 2">0.25<' in page
    assert "<th>fd_pixel ↓</th><th>retrieval_top10 ↑</th>" in page
    assert not re.findall(r"(?:https?:)?//(?!\S+</)", page)  # nothing is fetched from anywhere


@pytest.mark.parametrize("stages", ["outputs/toy/run", []])
def test_stages_are_a_list(stages):
    cfg = DictConfig({"stages": stages})
    with pytest.raises(UserError, match=r"is not a list of run folders or \.safetensors files, base first"):
        Ground(cfg, torch.device("cpu"))


def test_stages_and_lowres_must_suit_each_other(monkeypatch):
    def ground(lowres, *low_resolutions, depth=1):
        kinds = iter(low_resolutions)
        config = lambda: {"resolution": 8, "low_resolution": next(kinds)}  # noqa: E731
        monkeypatch.setattr("imagen.evaluation.ground.read_weights", lambda source: Weights({}, config(), {}, 1))
        cfg = evaluation(f"lowres={lowres}", f"depth={depth}")
        cfg.stages = ["a", "b"][: len(low_resolutions)]
        return Ground(cfg, torch.device("cpu"))

    assert ground("samples", None).draws_samples
    assert ground("both", None, 4, depth=2).enlarges_real
    assert not ground("real", 4).draws_samples
    with pytest.raises(UserError, match="lowres=blurred is none of samples, real, both"):
        ground("blurred", None)
    with pytest.raises(UserError, match=r"begins with a super-resolution stage.*lowres=real"):
        ground("samples", 4)
    with pytest.raises(UserError, match="depth=2 is more than the 1 stages given"):
        ground("samples", None, depth=2)
    with pytest.raises(UserError, match="the last stage measured is a base stage: give depth=2"):
        ground("real", None, 4)


def test_held_out_pictures_alone_are_read_where_nothing_else_is_asked_for():
    class Own(Ground):
        own = PictureSet({"val": InMemory(of_one_colour(3, 8), ["c", "b", "a"])}.__getitem__, ENCODER, ENCODER)

        def __init__(self, cfg):
            self.cfg, self.read = cfg, [SimpleNamespace(config={"low_resolution": None})]

    ground = Own(evaluation("reference=heldout", "num_measured=0", "num_train_prompts=0"))
    assert sorted(ground.prompts.measured) == ["a", "b", "c"]
    assert all(label.endswith("(held out)") for label in ground.prompts.labels)
    assert ground.reference is ground.own.val
    assert [batch.shape[-1] for batch in ground.small(4).batches(2)] == [4, 4]


@pytest.mark.parametrize("scale", sorted(path.stem for path in (CONF / "scale").glob("*.yaml")))
def test_a_scale_measures_by_what_there_is_or_the_docs_make(scale):
    docs = (ROOT / "docs" / "evaluation.md").read_text()
    made = re.findall(r"^python data_prep/pack\.py .*root=(\S+)", docs, re.MULTILINE)
    assert f"data_prep/coco.py input=coco output={COCO.parent}" in docs
    for stage in read_yaml(CONF / "scale" / f"{scale}.yaml")["stages"].values():
        cfg = evaluation(*stage["measure"])
        assert cfg.reference in ("auto", "heldout", *made)
        assert cfg.prompts == "auto" or cfg.prompts in OF_COCO
        assert {"heldout_loss", "fd_pixel"} & set(cfg.metric)


def test_two_runs_are_compared_where_both_have_a_value():
    a, b = np.array([1.0, np.nan, 3.0, np.inf, 5.0]), np.array([0.5, 1.0, 2.0, 1.0, np.nan])
    found = paired_difference(a, b)
    assert (found.n, found.mean) == (2, 0.75)
    assert found.error == pytest.approx(0.25)  # differences 0.5 and 1: a quarter from their mean
    assert np.isnan(paired_difference(a[1:2], b[1:2]).mean)
    with pytest.raises(UserError, match="5 and 4 places are not of the same pictures"):
        paired_difference(a, b[:4])


def test_every_prompt_has_a_picture_of_its_own_to_enlarge(tmp_path):
    class Given(Draws):
        def sample(self, prompts, *, task, **rest):
            given = task.low_res(2, 2)
            assert len(given) == len(prompts)
            self.asked.append(to_uint8(given)[:, 0, 0, 0].tolist())
            return super().sample(prompts, **rest)

    def given(start):
        return InMemory(of_one_colour(5, 2, start), [""] * 5)

    own = gallery(tmp_path, given=given(0))
    cascade = Given()
    own.draw(cascade, 0, 1)
    assert [asked for asked in cascade.asked if isinstance(asked[0], int)] == [[0, 1], [2, 3], [4]]
    (tmp_path / "8" / "00003_1.png").unlink()
    own.draw(cascade, 0, 1)
    assert cascade.asked[6:] == [[2, 3], ["2", "3"]]
    assert own.plan["given"] != gallery(tmp_path, given=given(1)).plan["given"]
