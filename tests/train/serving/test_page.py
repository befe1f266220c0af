"""The page, in a real browser."""

import shutil
from dataclasses import replace

import pytest

from tests.train.serving.clients import picture, served

pytestmark = pytest.mark.browser
NAMES = ["<script>alert(1)</script><b>", "healthy", "long name " * 30]


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium, which is not here")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def port(predictor):
    with served(replace(predictor, label_names=NAMES)) as port:
        yield port


@pytest.fixture
def page(browser, port):
    """The page, whose console must stay free of errors."""
    opened = browser.new_page(viewport={"width": 900, "height": 900})
    wrong, requests = [], []
    opened.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(f"http://127.0.0.1:{port}/")
    yield opened
    ours = (f"http://127.0.0.1:{port}/", "blob:", "data:")
    assert not [url for url in requests if not url.startswith(ours)]
    # A browser reports each answer of 4xx itself.
    assert not [text for text in wrong if "the server responded with a status of 422" not in text]


DROP = """([bytes, name, event]) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/jpeg" }));
    const made = event === "paste"
        ? new ClipboardEvent(event, { clipboardData: data, bubbles: true })
        : new DragEvent(event, { dataTransfer: data, bubbles: true, cancelable: true });
    document.querySelector("main").dispatchEvent(made);
}"""


def drop(page, data, name="leaf.jpg", event="drop"):
    page.evaluate(DROP, [list(data), name, event])


def test_a_dropped_image_shows_the_probabilities_as_bars_and_names_as_text(page, predictor):
    data = picture(4, (640, 480))
    _, probabilities = predictor(data)
    expected = {shown: probabilities[name] for shown, name in zip(NAMES, predictor.label_names, strict=True)}
    drop(page, data)
    page.wait_for_selector("dl")
    assert page.locator("dt").all_text_contents() == sorted(NAMES, key=expected.get, reverse=True)
    shares = sorted(expected.values(), reverse=True)
    assert page.locator("dd").all_text_contents() == [f"{100 * share:.1f} %" for share in shares]
    full = page.locator(".track").first.bounding_box()["width"]
    for bar, share in zip(page.locator(".bar").all(), shares, strict=True):
        assert bar.bounding_box()["width"] == pytest.approx(full * share, abs=1.5)
    assert page.locator("script").count() == 1 and page.locator("h2").text_content() in NAMES
    assert page.locator("figure img").evaluate("image => image.naturalWidth") == 640


def test_several_images_chosen_and_one_pasted_get_a_card_each_and_errors_their_line(page, tmp_path):
    names = []
    for i in range(6):
        (tmp_path / f"{i}.jpg").write_bytes(picture(i) if i != 2 else b"no image")
        names.append(tmp_path / f"{i}.jpg")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "file"  # Enter and space open its dialog
    page.locator("input").set_input_files(names)
    drop(page, picture(9), "pasted.jpg", "paste")
    page.wait_for_selector("dl >> nth=5")
    assert page.locator("figcaption").all_text_contents() == ["pasted.jpg", *(f"{i}.jpg" for i in range(5, -1, -1))]
    assert page.locator(".wrong").all_text_contents() == [
        "image: cannot be decoded: not a JPEG, PNG, WEBP, BMP, GIF, TIFF file"
    ]


@pytest.mark.parametrize(("scheme", "width"), [("light", 900), ("dark", 900), ("light", 360), ("dark", 360)])
def test_it_fits_every_width_and_follows_the_colour_scheme(page, tmp_path, scheme, width):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    drop(page, picture(4, (640, 480)), "a rather long name of a file " * 5 + ".jpg")
    drop(page, b"no image", "words.jpg")
    page.wait_for_selector("dl")
    page.wait_for_selector(".wrong")
    page.screenshot(path=tmp_path / f"{scheme}-{width}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    assert dark == (scheme == "dark")


def test_a_server_that_has_gone_is_said_so(browser, predictor):
    with served(predictor) as port:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
    drop(page, picture(0))
    page.wait_for_selector(".wrong")
    assert page.locator(".wrong").text_content() == "The server cannot be reached."
