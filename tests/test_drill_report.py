"""The report's page in a real browser, from disk and without a network, in light and dark and on a narrow screen."""

import pytest
from browser import assert_not_blank, open_browser
from small_sweep import asked, make_sweep

from imagen.report import write_report

pytestmark = pytest.mark.drill


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    make_sweep(root, {"layers_0": 0.0, "layers_6": 0.1}, 2)
    return write_report(asked(root, "seeds=3", "variant=layers_0,layers_6")) / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_and_looks_as_it_should(page_file, tmp_path, scheme):
    requests = []
    with open_browser() as context:
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.emulate_media(color_scheme=scheme)
        page.goto(page_file.as_uri())
        assert page.get_by_role("heading", level=1).text_content().startswith("A larger text encoder")
        assert page.locator(".outcome").first.text_content() == "The claim holds"
        assert page.get_by_role("heading", name="Missing: 2 points").is_visible()
        figure = page.locator(".plot svg").bounding_box()
        assert figure["width"] > 800
        assert figure["height"] > 300
        assert page.locator(".plot svg").get_by_text("layers_6").first.is_visible()
        assert page.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 400)")
        page.get_by_text("base.guidance.weight 1").click()
        assert page.locator("details[open] img").count() == 2
        page.get_by_text("Every row: 12").click()
        assert page.locator("table.all tbody tr").count() == 12
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        assert_not_blank(tmp_path / "page.png")
        page.set_viewport_size({"width": 380, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert {url.split(":")[0] for url in requests} <= {"file", "data"}
    assert [url for url in requests if url.startswith("file")] == [page_file.as_uri()]


def test_its_details_are_reached_and_opened_by_keys_alone(page_file):
    with open_browser() as context:
        page = context.new_page()
        page.goto(page_file.as_uri())
        opened = page.locator("details[open] > summary")
        count = page.locator("details").count()
        assert count > 1
        assert opened.count() == 1
        for _ in range(count):
            for _ in range(50):  # other things are reached between them
                page.keyboard.press("Tab")
                if page.evaluate("document.activeElement.tagName") == "SUMMARY":
                    break
            page.keyboard.press("Enter")
        assert opened.count() == count - 1, "all but the first, which was open"
