"""A rater at the page, in a real browser without a network: clicks, keys, a closed page, the saved file, the report."""

import json

import pytest
from browser import assert_not_blank, open_browser
from small_study import make_study, read_json

from imagen.cli import compose
from imagen.human_eval import write_report

pytestmark = pytest.mark.drill

HOSTILE = '</script><img src=x onerror="document.title=\'hacked\'"> & "quotes" {{ 1 }}'
PROMPTS = ["a red cat", "two dogs", HOSTILE, "a long caption " * 20]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("drill"), PROMPTS, "num_controls=2")


def open_page(context, study):
    page = context.new_page()
    page.goto((study / "page" / "index.html").as_uri())
    return page


def start(page, rater: str) -> None:
    page.get_by_label("Your name or code").fill(rater)
    page.get_by_role("button", name="Start").click()


def truth_of(page, study) -> dict:
    """The key's entry of the trial on the page, told by its pictures."""
    shown = json.loads(page.locator("#shown").text_content())
    names = "all => all.map(one => one.src.split('/').pop())"
    sources = [page.locator(f"#{side} img").evaluate_all(names) for side in ("left", "right")]
    (trial,) = [one for one in shown["trials"] if [one["left"], one["right"]] == sources]
    assert page.locator("#caption").text_content() == trial["caption"]
    return read_json(study / "key.json")["trials"][trial["id"]]


def side_of_a(truth: dict) -> str:
    return truth["right_answer"] or truth["a_is"]


def save(page, button: str, folder):
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_by_keys_alone_a_rater_goes_through_and_the_report_says_so(study, tmp_path):
    with open_browser() as context:
        page = open_page(context, study)
        page.keyboard.press("Tab")
        page.keyboard.type("Anna K.")
        page.keyboard.press("Enter")
        for number in range(6):
            assert page.locator("#place").text_content() == f"Pair {number + 1} of 6"
            assert page.get_by_role("button", name="Next").is_disabled()
            key = {"left": "1", "right": "3"}[side_of_a(truth_of(page, study))]
            page.keyboard.press("Enter")  # not before both are answered
            assert page.locator("#place").text_content() == f"Pair {number + 1} of 6"
            page.keyboard.press(key)
            page.keyboard.press("2" if truth_of(page, study)["a_is"] else key)
            page.keyboard.press("Enter")
        assert page.locator("#thanks").is_visible()
        path = save(page, "Save my answers", tmp_path)
    assert path.name == "ratings_Anna-K-.json"
    saved = read_json(path)
    assert saved["rater"] == "Anna K."
    assert saved["complete"] is True
    assert len(saved["answers"]) == 6
    assert all(answer["seconds"] >= 0 for answer in saved["answers"])

    folder = write_report(compose("human_eval_report", [f"output_dir={tmp_path / 'report'}"]), study, [path])
    told = read_json(folder / "report.json")
    assert told["raters"] == [{"name": "Anna K.", "controls_right": 4, "controls": 4, "kept": True}]
    quality, alignment = told["rows"]
    assert (quality["a"]["value"], quality["answers"]) == (1, 4)
    assert (alignment["indifferent"]["value"], alignment["answers"]) == (1, 4)
    assert_not_blank(folder / "preferences.png")


def test_by_clicks_answers_outlive_the_page_and_can_be_changed(study, tmp_path):
    with open_browser() as context:
        page = open_page(context, study)
        start(page, "ben")
        quality, alignment = page.get_by_role("group").all()
        quality.get_by_label("I prefer the left set").check()
        alignment.get_by_label("I am indifferent").check()
        page.get_by_role("button", name="Next").click()
        page.get_by_role("group").first.get_by_label("I prefer the right set").check()
        first = save(page, "Save a copy", tmp_path)
        assert [answer["quality"] for answer in read_json(first)["answers"]] == ["left"]  # half a pair is no answer
        assert read_json(first)["complete"] is False
        page.close()

        page = open_page(context, study)
        page.get_by_label("Your name or code").fill("ben")
        assert page.locator("#resumed").text_content() == "Welcome back: 1 of 6 pairs are answered."
        page.get_by_role("button", name="Start").click()
        assert page.locator("#place").text_content() == "Pair 2 of 6"
        assert page.get_by_role("group").first.get_by_label("I prefer the right set").is_checked()
        page.get_by_role("button", name="Previous").click()
        assert page.get_by_role("group").first.get_by_label("I prefer the left set").is_checked()
        page.get_by_role("group").first.get_by_label("I prefer the right set").check()
        again = save(page, "Save a copy", tmp_path)
        assert [answer["quality"] for answer in read_json(again)["answers"]] == ["right"]

        page.get_by_label("Shortcuts").uncheck()
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        assert page.locator("#place").text_content() == "Pair 1 of 6"
        assert page.get_by_role("group").first.get_by_label("I prefer the right set").is_checked()


def test_two_raters_see_the_same_trials_in_orders_of_their_own(study):
    orders = []
    with open_browser() as context:
        for rater in ("anna", "anna", "ben", "cleo"):
            page = open_page(context, study)
            page.evaluate("localStorage.clear()")
            start(page, rater)
            orders.append(page.evaluate("order.map(trial => trial.id)"))
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) > 1
    assert len({frozenset(order) for order in orders}) == 1


def test_a_link_picks_the_kind(tmp_path):
    kinds = ["long descriptions", "50% <b>off</b> & more"]
    table = "".join(f"prompt {i}\t{kind}\n" for i, kind in enumerate(kinds))
    (tmp_path / "set.tsv").write_text(f"prompt\tkind\n{table}", encoding="utf-8")
    study = make_study(tmp_path, ["prompt 0", "prompt 1"], f"prompts={tmp_path / 'set.tsv'}", "num_controls=1")
    with open_browser() as context:
        for fragment, chosen, count in ((kinds[0], kinds[0], 2), (kinds[1], kinds[1], 2), ("no%such", "Everything", 4)):
            page = context.new_page()
            page.goto(f"{(study / 'page' / 'index.html').as_uri()}#{fragment}")
            assert page.locator("#kind option:checked").text_content() == f"{chosen} ({count} pairs)"
            start(page, "anna")
            assert page.locator("#place").text_content() == f"Pair 1 of {count}"


def test_it_looks_as_it_should(study, tmp_path):
    with open_browser() as context:
        page = open_page(context, study)
        page.screenshot(path=tmp_path / "start.png")
        assert_not_blank(tmp_path / "start.png")
        start(page, "cleo")
        for _ in range(6):
            page.wait_for_function("[...document.images].every(one => one.complete)")
            assert page.locator(".pictures img").count() == 4
            assert page.evaluate(
                "[...document.querySelectorAll('.pictures img')].every(one => one.naturalWidth === 16)"
            )
            assert page.title() == "Which pictures are better?"  # a caption is never run
            assert page.locator("#trouble").is_hidden()
            # all is on the screen at once: no rater has to scroll between pictures and questions
            assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            page.screenshot(path=tmp_path / "trial.png")
            assert_not_blank(tmp_path / "trial.png")
            for key in ("1", "3", "Enter"):
                page.keyboard.press(key)
        page.get_by_role("button", name="Change an answer").click()
        page.locator("#left button").first.click()
        assert page.locator("#large img").is_visible()
        page.keyboard.press("Escape")
        assert page.locator("#large img").is_hidden()
        page.set_viewport_size({"width": 380, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_missing_picture_is_told(study, tmp_path):
    alone = tmp_path / "index.html"
    alone.write_bytes((study / "page" / "index.html").read_bytes())
    with open_browser(expected="ERR_FILE_NOT_FOUND") as context:
        page = context.new_page()
        page.goto(alone.as_uri())
        start(page, "anna")
        page.get_by_text('keep the folder "pictures" beside this page').wait_for()
