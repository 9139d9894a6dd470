"""The page of `densekd serve` in a real headless Chromium: files, drops, the clipboard, a camera, the slider."""

from __future__ import annotations

import base64

import pytest

from densekd.report import serve as module
from densekd.tasks import Depth, Detection
from tests.report.browser import CUT_TEXT, PALE, chromium
from tests.report.served import CLASSES, PALETTE, Network, image_bytes, served
from tests.report.test_browser import Opened

LONG = "a_rather_long_name_of_a_run_that_nobody_would_break_by_hand_00001"
DONE = ".panel.model .time b"


@pytest.fixture(scope="module")
def browser():
    with chromium(
        "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"
    ) as started:
        yield started


@pytest.fixture(scope="module")
def site():
    with served([Network(), Network(light=1)], [LONG, "teacher"]) as made:
        yield made


def give(page, content=None, name="street.png"):
    """By the file chooser."""
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose an image").click()
    chooser.value.set_files(
        {
            "name": name,
            "mimeType": "image/png",
            "buffer": image_bytes() if content is None else content,
        }
    )


def check_page(opened, site, width):
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(CUT_TEXT) == []
    assert page.evaluate(PALE) == []
    assert opened.said == []
    assert all(url.startswith((site.address, "data:")) for url in opened.asked)


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (400, "dark")])
def test_an_image_is_chosen_and_answered(browser, site, width, scheme):
    opened = Opened(browser, site.address, width=width, scheme=scheme)
    page = opened.page
    check_page(opened, site, width)
    give(page)
    page.locator(DONE).first.wait_for()
    assert page.locator("#state").inner_text() == "street.png: 96×48 pixels."
    first, second = page.locator(".panel.model").all()
    assert first.locator(".found").inner_text().split() == ["road", "50.0", "%", "sky", "50.0", "%"]
    shown = "(i) => i.complete && i.naturalWidth"
    assert first.locator(".layer img").evaluate(shown) == 96
    assert second.locator(".found").inner_text().startswith("road")
    assert "same class at 50.0 %" in page.locator("#verdict").inner_text()
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    check_page(opened, site, width)
    page.locator("#mix").fill("100")
    mixed = "(i) => getComputedStyle(i).opacity"
    assert first.locator(".layer img").evaluate(mixed) == "1"
    page.get_by_label("Slider").check()
    check_page(opened, site, width)
    page.close()


DROP = """async ([content, name, kind]) => {
  const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, { type: "image/png" }));
  const made = kind === "paste"
    ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true })
    : new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
  document.body.dispatchEvent(made);
  return [made.defaultPrevented, document.getElementById("drop").classList.contains("over")];
}"""


def test_an_image_is_dropped_and_one_is_pasted(browser, site):
    opened = Opened(browser, site.address)
    page, content = opened.page, base64.b64encode(image_bytes()).decode()
    assert page.evaluate(DROP, [content, "dropped.png", "dragenter"]) == [True, True]
    assert page.evaluate(DROP, [content, "dropped.png", "drop"]) == [True, False]
    page.locator("#state", has_text="dropped.png: 96×48").wait_for()
    page.evaluate(DROP, [content, "pasted.png", "paste"])
    page.locator("#state", has_text="pasted.png: 96×48").wait_for()
    assert page.url == site.address  # the browser did not open the file
    assert opened.said == []
    page.close()


def test_what_cannot_be_read_is_said_in_the_page(browser, site):
    opened = Opened(browser, site.address, width=400)
    page, trouble = opened.page, opened.page.locator("#trouble")
    for content, words in (
        (b"no image", "cannot be opened as an image"),
        (image_bytes()[:-60], "truncated or damaged"),
        (b"", "is empty"),
    ):
        give(page, content, "bad.png")
        trouble.filter(has_text=words).wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 400
        assert page.evaluate(CUT_TEXT) == []
    give(page)
    page.locator(DONE).first.wait_for()
    assert not trouble.is_visible()
    errors = [text for text in opened.said if "status of 400" not in text]  # the browser's own line
    assert errors == []
    page.close()


def test_a_file_that_is_too_large_is_not_sent(browser, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 2_000_000)
    with served([Network()], ["one"]) as site:
        opened = Opened(browser, site.address)
        give(opened.page, b"x" * 2_500_000, "large.png")
        opened.page.locator(
            "#trouble", has_text="large.png has 2.5 MB; expected at most 2 MB"
        ).wait_for()
        assert [url for url in opened.asked if "answer" in url] == []
        opened.page.close()


def test_the_slider_by_keyboard(browser, site):
    opened = Opened(browser, site.address)
    page = opened.page
    give(page)
    page.locator(DONE).first.wait_for()
    page.get_by_label("Slider").check()
    both, wipe = page.locator("#both"), page.locator("#both .wipe")
    assert both.locator(".layer.left img").evaluate("(i) => i.complete && i.naturalWidth") == 96
    wipe.focus()
    page.keyboard.press("End")
    assert both.evaluate("(s) => s.style.getPropertyValue('--x')") == "100%"
    page.keyboard.press("ArrowLeft")
    assert wipe.get_attribute("aria-valuetext") == f"{LONG} 99 %, teacher 1 %"
    page.locator("#right").select_option("image")
    assert both.locator(".layer.right img").count() == 0
    assert both.locator(".tag-right").inner_text() == "image"
    page.get_by_label("Side by side").check()
    assert not both.is_visible()
    assert opened.said == []
    page.close()


def test_another_size_asks_again(browser, site):
    opened = Opened(browser, site.address)
    page = opened.page
    give(page, image_bytes((200, 400)))
    page.locator("#state", has_text="400×200 pixels.").wait_for()
    page.locator("#side").select_option("320")
    page.locator("#state", has_text="400×200 pixels, seen by the networks at 320×160").wait_for()
    page.close()


def test_the_camera(browser, site):
    opened = Opened(browser, site.address, permissions=["camera"])
    page = opened.page
    button = page.locator("#camera")
    button.click()
    page.locator("#state", has_text="images/s").wait_for()
    assert button.inner_text() == "Stop the camera"
    assert button.get_attribute("aria-pressed") == "true"
    seen = page.locator(".panel.model .found").first.inner_text()
    assert "%" in seen
    button.click()
    assert page.locator("#state").inner_text() == "The camera is off; its last frame is shown."
    count = len(opened.asked)
    page.wait_for_timeout(500)
    assert len(opened.asked) <= count + 1  # a question on its way is the last
    assert opened.said == []
    page.close()


NO_CAMERA = """(name) => {
  navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException("", name));
}"""


def test_a_camera_that_is_not_there_or_not_allowed_is_said(browser, site):
    page = Opened(browser, site.address).page
    for name, words in (("NotFoundError", "there is none"), ("NotAllowedError", "not allowed")):
        page.evaluate(NO_CAMERA, name)
        page.locator("#camera").click()
        page.locator("#trouble", has_text=words).wait_for()
        assert page.locator("#camera").get_attribute("aria-pressed") == "false"
    page.close()


def test_boxes_and_depth(browser):
    boxes = Detection(CLASSES, palette=PALETTE, shown_above=0.3)
    depth = Depth(min_depth=1, max_depth=80)
    with served([Network(boxes), Network(depth)], ["boxes", "depth"]) as site:
        opened = Opened(browser, site.address)
        page = opened.page
        give(page)
        page.locator(DONE).first.wait_for()
        first, second = page.locator(".panel.model").all()
        assert first.locator(".layer svg text").all_text_contents() == [f"{CLASSES[1]} 0.90"]
        assert first.locator(".found").inner_text().split()[-2:] == ["×", "1"]
        assert "2.5 to 50 m in this image, median 26 m" in second.locator(".found").inner_text()
        assert second.locator(".scale i").evaluate("(i) => i.clientWidth") > 100
        assert not page.locator("#mixed").is_visible()
        check_page(opened, site, 1400)
        page.close()


def test_every_control_can_be_reached_by_tab(browser, site):
    page = Opened(browser, site.address).page
    give(page)
    page.locator(DONE).first.wait_for()
    page.get_by_label("Slider").check()
    names = set()
    page.evaluate("document.activeElement.blur()")
    for _ in range(16):
        page.keyboard.press("Tab")
        names.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"choose", "camera", "side", "mix", "left", "right", "wipe", "skip"} <= names
    page.close()
