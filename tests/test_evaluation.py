"""Evaluation: points of axes, galleries that are taken up, tables and curves. The script itself: test_scripts.py."""

import csv
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from imagen import build
from imagen.cascade import Cascade, Samples
from imagen.cli import compose
from imagen.errors import UserError
from imagen.evaluation.command import Prompts, _galleries
from imagen.evaluation.gallery import Gallery
from imagen.evaluation.page import write_page
from imagen.evaluation.points import points_of
from imagen.evaluation.reference import read_set
from imagen.evaluation.table import write_curve, write_table
from imagen.metric.retrieval import embed_sentences
from imagen.slots import register


def test_sentences_keep_their_rows_whatever_their_length():
    encoder = build.build_encoder(compose("train", ["experiment=toy"]))
    captions = ["a long caption of many words", "short", "two words"]
    whole = embed_sentences(encoder, captions, batch_size=2)
    torch.testing.assert_close(whole[1:2], embed_sentences(encoder, ["short"]))
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(3))


def test_a_set_made_in_memory_cannot_be_measured_against():
    cfg = compose("train", ["experiment=toy"])
    with pytest.raises(UserError, match="SyntheticModule"):
        read_set(build.build_data(cfg), build.build_encoder(cfg))


def evaluation(*overrides):
    register([])
    return compose("evaluate", ["stages=[]", *overrides])


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


def test_every_point_draws_by_its_own_settings(tmp_path):
    stage = SimpleNamespace(config={"resolution": 16})
    seeds = [
        _galleries(point, tmp_path, Prompts(["a"], ["a"], ["a"]), {}, 1, [stage])[0].seed
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
        "skipped": {"fid": "no <weights>"},
    }
    for weight in (1, 2)
    for threshold in ("none", "dynamic")
]


def test_the_table_has_a_line_a_point(tmp_path):
    write_table(ROWS, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["base.threshold"] for line in lines] == ["none", "dynamic", "none", "dynamic"]
    assert [float(line["fd_pixel"]) for line in lines] == [3.0, 3.0, 1.5, 1.5]


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
