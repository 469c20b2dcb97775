"""Two folders into a study, raters' files into tables: the whole way but the browser (test_drill_human_eval.py)."""

import csv
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from small_study import draw_folder, make_study, pixels, read_json, write_ratings

from imagen.cli import CONF, compose
from imagen.errors import UserError
from imagen.human_eval import build_study, write_report
from imagen.human_eval.__main__ import main, split
from imagen.human_eval.ratings import Rater, read_ratings

PROMPTS = ["a red cat", "two dogs", "</script><img src=x onerror=alert(1)>", 'it\'s "quoted" & <b>bold</b> {{ 7 * 7 }}']


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("made"), PROMPTS, "num_controls=2", "name_a=small", "name_b=large")


@pytest.fixture(autouse=True)
def chart(request, monkeypatch):
    """Only the test of the chart draws it."""
    if "chart" not in request.node.name:
        monkeypatch.setattr("imagen.human_eval.report.save_figure", lambda rows, names, folder: None)


@pytest.fixture(scope="module")
def lab_like(tmp_path_factory):
    """Six prompts of two kinds, in a file that names the kinds."""
    folder = tmp_path_factory.mktemp("lab_like")
    prompts = {f"a {kind} thing {i}": kind for kind in ("colours", "counting") for i in range(3)}
    rows = "".join(f"{text}\t{kind}\n" for text, kind in prompts.items())
    (folder / "set.tsv").write_text(f"prompt\tkind\n{rows}", encoding="utf-8")
    return make_study(folder, list(prompts), f"prompts={folder / 'set.tsv'}", "num_controls=1")


def shown(study) -> dict:
    text = (study / "page" / "index.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="shown">(.*?)</script>', text, re.DOTALL)[1])


class Page(HTMLParser):
    """The tags of a page, those left open, and what it would load."""

    VOID = ("meta", "input", "img", "link", "br")

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.loads, self.ids, self.labels = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.ids += [given["id"]] if "id" in given else []
        self.labels += [given["for"]] if "for" in given else []
        self.labels += given.get("aria-labelledby", "").split()
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_one_whole_file_that_loads_nothing(made):
    page = Page()
    text = (made / "page" / "index.html").read_text(encoding="utf-8")
    page.feed(text)
    assert page.open == []
    assert page.loads == []
    assert len(page.ids) == len(set(page.ids))
    assert set(page.labels) <= set(page.ids)
    assert not re.search(r"https?://|//cdn", text)


def test_captions_come_as_data_alone(made):
    text = (made / "page" / "index.html").read_text(encoding="utf-8")
    assert "onerror=alert" not in re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.DOTALL)
    assert text.count("</script>") == 2
    assert {trial["caption"] for trial in shown(made)["trials"]} == set(PROMPTS)


def test_raters_see_pictures_and_captions_and_no_truth(made):
    key, page = read_json(made / "key.json"), shown(made)
    assert page["study"] == key["study"]
    assert {tuple(sorted(trial)) for trial in page["trials"]} == {("caption", "id", "kind", "left", "right")}
    assert len(page["trials"]) == len(PROMPTS) + 2
    html = (made / "page" / "index.html").read_text(encoding="utf-8")
    assert "small" not in re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    assert str(key["a"]["folder"]) not in html
    names = {name for trial in page["trials"] for side in ("left", "right") for name in trial[side]}
    assert names == {path.name for path in (made / "page" / "pictures").iterdir()}


def test_the_key_says_whose_pictures_are_where(made):
    key = read_json(made / "key.json")
    for trial in shown(made)["trials"]:
        truth = key["trials"][trial["id"]]
        if truth["right_answer"]:
            continue
        row = PROMPTS.index(trial["caption"])
        for model, side in (("a", truth["a_is"]), ("b", {"left": "right", "right": "left"}[truth["a_is"]])):
            drawn = [pixels(made.parent / model.upper() / f"{row:03d}_{s}.png") for s in range(2)]
            written = [pixels(made / "page" / "pictures" / name) for name in trial[side]]
            assert all((one == other).all() for one, other in zip(drawn, written, strict=True))


def test_the_same_command_makes_the_same_study_and_another_is_refused(made):
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    folders = made.parent / "A", made.parent / "B"
    same = ["num_samples=2", f"output_dir={made}", "num_controls=2", "name_a=small", "name_b=large"]
    build_study(compose("human_eval", same), *folders)
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before
    with pytest.raises(UserError, match=f"holds another study, {read_json(made / 'key.json')['study']}"):
        build_study(compose("human_eval", [*same, "seed=1"]), *folders)
    assert (made / "key.json").read_bytes() == before[made / "key.json"]


def test_prompts_that_lack_pictures_are_named_and_left_out(tmp_path, caplog):
    a = draw_folder(tmp_path / "A", ["one", "two", "three"], 0)
    b = draw_folder(tmp_path / "B", ["one", "two"], 1)
    (a / "001_1.png").write_bytes(b"damaged")
    cfg = compose("human_eval", ["num_samples=2", f"output_dir={tmp_path / 'study'}", 'prompts=["one","two","three"]'])
    build_study(cfg, a, b)
    assert {truth["prompt"] for truth in read_json(tmp_path / "study" / "key.json")["trials"].values()} == {"one"}
    assert re.search(r"2 of 3 prompts are left out; .*001_1\.png is no picture", caplog.text)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["num_samples=3"], r"nothing to compare \(A has 2 of 3 pictures of 'one'\).*num_samples=3"),
        (['prompts=["four"]'], "A has 0 of 2 pictures of 'four'"),
        (["num_controls=-1"], "num_controls=-1 must be at least 0"),
        (["name_b=A"], "tell the models apart"),
    ],
)
def test_what_cannot_be_compared_is_told(tmp_path, overrides, message):
    a, b = draw_folder(tmp_path / "A", ["one"], 0), draw_folder(tmp_path / "B", ["one"], 1)
    with pytest.raises(UserError, match=message):
        build_study(compose("human_eval", ["num_samples=2", f"output_dir={tmp_path}", *overrides]), a, b)


def test_folders_without_a_common_prompt_are_told(tmp_path):
    a, b = draw_folder(tmp_path / "A", ["one"], 0), draw_folder(tmp_path / "B", ["two"], 1)
    with pytest.raises(UserError, match="no prompt in common"):
        build_study(compose("human_eval", ["num_samples=2", f"output_dir={tmp_path}"]), a, b)


def table_of(folder) -> dict[tuple[str, str], dict[str, str]]:
    with open(folder / "preferences.csv", encoding="utf-8", newline="") as file:
        return {(row["kind"], row["question"]): row for row in csv.DictReader(file)}


def test_raters_who_agree_are_the_table(lab_like, tmp_path, capsys):
    def say(truth, question):
        if question == "quality":
            return "a"
        return "b" if truth["right_answer"] or truth["kind"] == "counting" else "indifferent"

    files = [write_ratings(lab_like, f"rater {i}", say, tmp_path) for i in range(8)]
    folder = write_report(compose("human_eval_report", []), lab_like, files)
    rows = table_of(folder)
    assert list(rows) == [(kind, q) for kind in ("all kinds", "colours", "counting") for q in ("quality", "alignment")]
    assert {row["raters"] for row in rows.values()} == {"8"}
    assert [rows[kind, "quality"]["prompts"] for kind in ("all kinds", "colours", "counting")] == ["6", "3", "3"]
    shares = {place: [float(row[name]) for name in ("a", "indifferent", "b")] for place, row in rows.items()}
    assert shares["all kinds", "quality"] == [1, 0, 0]
    assert shares["all kinds", "alignment"] == [0, 0.5, 0.5]
    assert shares["counting", "alignment"] == [0, 0, 1]
    assert [rows[place]["preferred"] for place in rows] == ["a", "b", "a", "undecided", "a", "b"]
    assert rows["colours", "alignment"]["decided"] == "nan"
    told = read_json(folder / "report.json")
    assert [rater["kept"] for rater in told["raters"]] == [True] * 8
    said = "quality: A 100.0%, B 0.0%, indifferent 0.0% of 48 answers by 8 raters: A is preferred"
    assert said in capsys.readouterr().out


def test_the_chart_is_drawn_and_the_same_again(lab_like, tmp_path):
    file = write_ratings(lab_like, "anna", lambda truth, question: "a", tmp_path)
    key = read_json(lab_like / "key.json")
    key["b"]["name"] = r"$5 & <b>$\frac"  # no formula, no markup
    (tmp_path / "key.json").write_text(json.dumps(key))
    cfg = compose("human_eval_report", [f"output_dir={tmp_path / 'out'}"])
    folder = write_report(cfg, tmp_path, [file])
    assert folder == tmp_path / "out"
    svg = (folder / "preferences.svg").read_text(encoding="utf-8")
    assert all(
        words in svg
        for words in (
            "Image fidelity",
            "Image-text alignment",
            "A preferred",
            "$5 &amp; &lt;b&gt;$\\frac preferred",
            "counting",
        )
    )
    png = pixels(folder / "preferences.png")
    assert len(set(map(tuple, png.reshape(-1, png.shape[-1])[::7].tolist()))) > 5
    ElementTree.fromstring(svg)
    write_report(cfg, tmp_path, [file])
    assert (folder / "preferences.svg").read_text(encoding="utf-8") == svg


def test_inattentive_raters_are_dropped_unless_all_are_asked_for(lab_like, tmp_path, caplog):
    careful = write_ratings(lab_like, "careful", lambda truth, question: "a", tmp_path)
    careless = write_ratings(lab_like, "careless", lambda truth, question: "left", tmp_path)
    key = read_json(lab_like / "key.json")
    lefts = sum(truth["right_answer"] == "left" for truth in key["trials"].values())
    write_report(compose("human_eval_report", []), lab_like, [careful, careless])
    assert {row["raters"] for row in table_of(lab_like / "report").values()} == {"1"}
    assert f"careless is left out: {2 * lefts} of 4 answers to control trials are right, fewer than 80 %" in caplog.text
    write_report(compose("human_eval_report", ["min_controls_right=0"]), lab_like, [careful, careless])
    assert {row["raters"] for row in table_of(lab_like / "report").values()} == {"2"}
    with pytest.raises(UserError, match="no rater has 80% of the control trials right"):
        write_report(compose("human_eval_report", []), lab_like, [careless])


@pytest.mark.parametrize(
    ("right", "controls", "least", "kept"),
    [(8, 10, 0.8, True), (7, 10, 0.8, False), (0, 0, 0.8, False), (0, 0, 0.0, True)],
)
def test_attention_is_a_share_of_the_control_trials(right, controls, least, kept):
    assert Rater("anna", right, controls).attentive(least) is kept


def test_of_two_files_of_a_rater_the_later_one_counts(lab_like, tmp_path):
    for name, answer, saved in (("x", "b", "2026-03-01"), ("y", "a", "2026-02-01")):
        (tmp_path / name).mkdir()
        write_ratings(lab_like, "anna", lambda truth, question, answer=answer: answer, tmp_path / name, saved=saved)
    write_report(compose("human_eval_report", []), lab_like, [tmp_path / "x", tmp_path / "y"])
    assert table_of(lab_like / "report")["all kinds", "quality"]["b"] == "1.0000"
    assert read_json(lab_like / "report" / "report.json")["notes"] == []  # a correction


def test_two_raters_of_one_name_are_told(lab_like, tmp_path, caplog):
    for name, answer, day in (("x", "b", "01"), ("y", "a", "02")):
        (tmp_path / name).mkdir()
        when = {"started": f"2026-03-{day}T08", "saved": f"2026-03-{day}T09"}
        write_ratings(lab_like, "anna", lambda truth, question, answer=answer: answer, tmp_path / name, **when)
    folder = write_report(compose("human_eval_report", []), lab_like, [tmp_path / "x", tmp_path / "y"])
    (note,) = read_json(folder / "report.json")["notes"]
    assert note.startswith("anna answers 6 trials in two ways, in files begun at different times")
    assert note in caplog.text
    assert table_of(folder)["all kinds", "quality"]["a"] == "1.0000"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("not json", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not what the page saves"),
        ({"format": "another"}, "is not what the page saves"),
        ({"study": "0123"}, "is of the study '0123', not of"),
        ({"rater": " "}, "has no rater"),
        ({"answers": None}, "has no rater, or no answers"),
    ],
)
def test_a_file_that_is_none_of_the_study_is_named_and_the_rest_goes_on(lab_like, tmp_path, caplog, change, message):
    good = write_ratings(lab_like, "anna", lambda truth, question: "a", tmp_path)
    bad = write_ratings(lab_like, "ben", lambda truth, question: "b", tmp_path)
    bad.write_text(change if isinstance(change, str) else json.dumps(read_json(bad) | change))
    write_report(compose("human_eval_report", []), lab_like, [good, bad, tmp_path / "missing.json"])
    assert re.search(rf"ben\.json {message}.*; it is left out", caplog.text)
    assert "missing.json cannot be read (No such file or directory)" in caplog.text
    assert table_of(lab_like / "report")["all kinds", "quality"]["a"] == "1.0000"


def test_bad_answers_are_left_out_alone(lab_like, tmp_path):
    path = write_ratings(lab_like, "anna", lambda truth, question: "a", tmp_path)
    saved = read_json(path)
    saved["answers"][0]["quality"] = "maybe"
    saved["answers"][1]["trial"] = "ffff"
    saved["answers"][2] = None
    path.write_text(json.dumps(saved))
    key = read_json(lab_like / "key.json")
    ratings = read_ratings(path, key["study"], key["trials"])
    assert len(ratings.answers) == len(saved["answers"]) - 3
    assert [fault.split(" that ")[1] for fault in ratings.faults] == [
        "is none of left, indifferent, right",
        "the study does not have",
        "the study does not have",
    ]


def test_a_study_without_a_key_and_ratings_without_answers_are_told(lab_like, tmp_path):
    with pytest.raises(UserError, match=r"has no key\.json"):
        write_report(compose("human_eval_report", []), tmp_path, [])
    empty = write_ratings(lab_like, "anna", lambda truth, question: "a", tmp_path, answers=[])
    with pytest.raises(UserError, match="not one answer"):
        write_report(compose("human_eval_report", []), lab_like, [empty])
    with pytest.raises(UserError, match=r"min_controls_right=2\.0 must be from 0 to 1"):
        write_report(compose("human_eval_report", ["min_controls_right=2"]), lab_like, [empty])


def test_a_study_without_control_trials_keeps_every_rater(tmp_path):
    study = make_study(tmp_path, ["a cat", "a dog"], "num_controls=0")
    file = write_ratings(study, "anna", lambda truth, question: "a", tmp_path)
    told = read_json(write_report(compose("human_eval_report", []), study, [file]) / "report.json")
    assert told["min_controls_right"] == 0
    assert told["raters"] == [{"name": "anna", "controls_right": 0, "controls": 0, "kept": True}]


def test_a_missing_package_is_told(lab_like, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "scipy" else object())
    with pytest.raises(UserError, match=r"needs scipy: pip install 'imagen-lab\[report\]'"):
        write_report(compose("human_eval_report", []), lab_like, [])


def test_what_exists_is_a_path_even_with_an_equals_sign(tmp_path):
    (tmp_path / "lr=0.1").mkdir()
    assert split([f"{tmp_path}/lr=0.1", "B", "seed=1"]) == ([tmp_path / "lr=0.1", Path("B")], ["seed=1"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "0 folders are given, not two"),
        (["A", "B", "C"], "3 folders are given, not two"),
        (["A", "B"], "A=A has no samples.json"),
        (["A", "B", "sed=1"], "sed"),
        (["A", "B", "num_samples=many"], "num_samples=many must be a whole number"),
        (["report", "study"], "give a study and its ratings"),
    ],
)
def test_a_slip_on_the_command_line_is_one_sentence(monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["human_eval", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert message in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_help_shows_the_keys(monkeypatch, capsys):
    for words, name in ((["--help"], "human_eval"), (["report", "--help"], "human_eval_report")):
        monkeypatch.setattr(sys, "argv", ["human_eval", *words])
        main()
        assert (CONF / f"{name}.yaml").read_text(encoding="utf-8") in capsys.readouterr().out


def test_the_command_builds_a_study(made, tmp_path):
    words = [made.parent / "A", made.parent / "B", "num_samples=2", f"output_dir={tmp_path}"]
    command = [sys.executable, "-m", "imagen.human_eval", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"4 comparisons and 4 control trials: open {tmp_path}/page/index.html")
    assert "keep" in done.stdout
