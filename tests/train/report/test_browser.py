"""The page in a real browser, in both themes, on a desk and on a phone."""

import shutil

import pytest

from tests.running import run_here
from train.commands.report import main

pytestmark = pytest.mark.browser
VIEWS = [(width, theme) for width in (1280, 390) for theme in ("light", "dark")]
CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = (colour, under) => { canvas.fillStyle = under; canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const linear = v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = c.slice(0, 3).map(linear);
    return .2126 * r + .7152 * g + .0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (c !== 'rgba(0, 0, 0, 0)') return c; } };
  const bad = [];
  for (const e of document.querySelectorAll('main *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const style = getComputedStyle(e), ground = rgb(behind(e), '#fff');
    const text = rgb(e instanceof SVGElement ? style.fill : style.color, `rgb(${ground.slice(0, 3)})`);
    const [high, low] = [light(text), light(ground)].sort((a, b) => b - a), ratio = (high + .05) / (low + .05);
    if (ratio < 4.5) bad.push(`${e.tagName}.${e.getAttribute('class')}: ${e.textContent.trim()}: ${ratio}`);
  }
  return bad; }"""


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if not (path := shutil.which("chromium")):
        pytest.skip("needs Chromium, which is not here")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of one run, and of two."""
    root = tmp_path_factory.mktemp("runs")
    for name, rate in (("one", 1e-3), ("two", 3e-3)):
        assert run_here("--preset", "debug", "--learning_rate", rate, "--output_dir", root / name) == 0
    assert main([str(root / "one"), str(root / "two"), "--out", str(root / "both.html")]) == 0
    return root / "one" / "report.html", root / "both.html"


@pytest.mark.parametrize(("width", "theme"), VIEWS)
def test_every_cell_opens_and_nothing_is_wrong(browser, pages, width, theme):
    for path in pages:
        context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=theme)
        page, said, asked = context.new_page(), [], []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on("request", lambda request, asked=asked: asked.append(request.url.split(":")[0]))
        page.goto(path.as_uri())
        for summary in page.query_selector_all("summary"):
            summary.click()
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert page.evaluate(CONTRAST) == []
        cells = page.query_selector_all("button.cell")
        assert cells
        for cell in cells:
            cell.click()
            opened = page.query_selector("[popover]:popover-open")
            shown = opened.query_selector_all("figure .t")
            assert len(shown) == min(12, int(cell.inner_text())) and all(item.is_visible() for item in shown)
            assert all("data:image" in item.evaluate("e => getComputedStyle(e).backgroundImage") for item in shown)
            opened.query_selector("button.close").click()
            assert page.query_selector("[popover]:popover-open") is None
        assert said == [] and set(asked) <= {"file", "data"}
        context.close()


def test_every_table_has_headers_and_every_picture_a_text(browser, pages):
    page = browser.new_page()
    page.goto(pages[1].as_uri())
    assert page.query_selector("main h1") and page.query_selector("html[lang]")
    assert page.evaluate("[...document.querySelectorAll('th')].every(th => !th.textContent.trim() || th.scope)")
    assert page.evaluate("[...document.querySelectorAll('[role=img]')].every(e => e.getAttribute('aria-label'))")
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.close()
