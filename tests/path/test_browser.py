"""Reports as people see them: in a real browser, on a phone, on a screen and on paper."""

from __future__ import annotations

import os
import shutil

import pytest

from workflow.opening import open_run
from workflow.stages.compare import compare

WIDTHS = {"phone": 400, "screen": 1200}
LOOK = """() => {
  const root = document.documentElement;
  const small = [...document.querySelectorAll('p,li,td,th,figcaption')];
  return {
    wide: root.scrollWidth - root.clientWidth,
    images: document.images.length,
    broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt),
    sources: [...document.querySelectorAll('[src],link[href]')]
      .map(e => (e.src || e.href)).filter(u => !u.startsWith('data:')),
    links: [...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href')),
    smallest: Math.min(...small.map(e => parseFloat(getComputedStyle(e).fontSize))),
    box: (document.querySelector('.box .what') || {}).textContent,
  };
}"""


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window; where there is none, the reason for doing without."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    missing = "" if program else "no chromium: apt-get install chromium"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing = missing or "the extra `browser` is not installed"
    if missing:
        (pytest.fail if os.environ.get("GFDT_NEED_BROWSER") else pytest.skip)(missing)
    with sync_playwright() as player:
        found = player.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def alone(small_run, tmp_path_factory):
    """The page of a run, carried off without the rest of its folder."""
    path = tmp_path_factory.mktemp("alone") / "index.html"
    shutil.copy(small_run.folder / "report" / "index.html", path)
    return path


@pytest.fixture(scope="module")
def compared(small_run, tmp_path_factory):
    """The page that compares the run with a copy of another name and seed."""
    home = tmp_path_factory.mktemp("compared")
    shutil.copytree(small_run.folder, home / "runs" / "other")
    content = (home / "runs" / "other" / "experiment.yaml").read_text()
    changed = content.replace("name: small", "name: other").replace("seed: 1", "seed: 2", 1)
    (home / "runs" / "other" / "experiment.yaml").write_text(changed)
    other = open_run("other", home / "runs")
    return compare([small_run, other], home / "page")


def look(browser, path, width):
    """What the page says of itself, and what the browser complains about."""
    page = browser.new_page(viewport={"width": width, "height": 800})
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(request.url))
    page.goto(path.as_uri())
    found = page.evaluate(LOOK)
    found["complaints"] = complaints
    page.close()
    return found


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("which", ["alone", "compared"])
def test_a_page_is_readable_and_complete_at_any_width(browser, width, which, request):
    path = request.getfixturevalue(which)
    found = look(browser, path, width)
    assert found["complaints"] == [] and found["broken"] == [] and found["sources"] == []
    assert found["wide"] <= 0, "the page scrolls sideways"
    assert found["images"] >= (6 if which == "alone" else 1)
    assert found["smallest"] >= 14
    if which == "alone":
        assert found["box"] == "Use the exact response. Trust: fair."


def test_links_of_a_page_lead_somewhere(browser, alone, compared):
    """Numbers are in the page; a comparison leads to the reports of its runs."""
    numbers = look(browser, alone, 1200)["links"]
    assert len(numbers) >= 6 and all(link.startswith("data:text/csv;base64,") for link in numbers)
    reports = [u for u in look(browser, compared, 1200)["links"] if not u.startswith("data:")]
    assert len(reports) == 2
    assert all((compared.parent / link).resolve().is_file() for link in reports)


def test_numbers_of_a_picture_are_saved_by_a_click(browser, alone, tmp_path):
    page = browser.new_page()
    page.goto(alone.as_uri())
    with page.expect_download() as waiting:
        page.click('a[download="response_curves.csv"]')
    waiting.value.save_as(tmp_path / "numbers.csv")
    page.close()
    assert (tmp_path / "numbers.csv").read_text().startswith("panel,series,x,y,low,high,value\n")


def test_a_printed_report_is_whole(browser, alone):
    """Pictures are not cut off by the paper: nothing is wider than a page of A4."""
    page = browser.new_page(viewport={"width": 718, "height": 1000})  # A4 less margins at 96 dpi
    page.goto(alone.as_uri())
    page.emulate_media(media="print")
    over = page.evaluate(
        "() => [...document.images].filter(i => i.getBoundingClientRect().right > innerWidth)"
        ".map(i => i.alt)"
    )
    printed = page.pdf(format="A4")
    page.close()
    assert over == [] and printed.startswith(b"%PDF") and printed.count(b"/Type /Page\n") >= 2
