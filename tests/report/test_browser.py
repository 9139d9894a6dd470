"""Pages in a real headless Chromium: the slider, nothing from outside, nothing cut, on screens of two widths."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
import torch

from densekd.report.examine import Examined
from densekd.report.layers import Shown, fit, layers_of
from densekd.report.live import make_server
from densekd.report.page import Looked, render
from densekd.report.rows import main_columns
from densekd.tasks import Segmentation
from densekd.workflows.report_runs import collect
from densekd.workflows.watch import read_state
from tests.report.browser import CUT_TEXT, OUTSIDE, PALE, chromium
from tests.report.made_up import tree, write_run

CLASSES = ["road", "traffic sign with a long name", "sky"]
LONG = "a_rather_long_name_of_a_run_that_nobody_would_break_by_hand_00001"


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    iou = {name: 0.3 + 0.2 * i for i, name in enumerate(CLASSES)}
    weights = root / "teacher" / "checkpoints" / "student.safetensors"
    write_run(root / "teacher", tree(model={"name": "espnet", "options": {}}), miou=0.6, iou=iou)
    weights.parent.mkdir()
    weights.write_bytes(b"")
    found = []
    for seed in (0, 1):
        found.append(write_run(root / f"alone_{seed}", tree(seed=seed), miou=0.4, iou=iou))
        taught = tree(teacher=True, seed=seed)
        taught["teacher"]["weights"] = str(weights)
        better = {k: v + 0.1 for k, v in iou.items()}
        found.append(write_run(root / f"{LONG}_{seed}", taught, miou=0.47 + seed / 100, iou=better))
    return found


@pytest.fixture(scope="module")
def page_file(runs, tmp_path_factory):
    """A report with every section, of answers that are made up."""
    collected = collect(runs)
    columns, _ = main_columns(collected.task, collected.rows)
    task = Segmentation(CLASSES, [(128, 64, 128), (220, 220, 0), (70, 130, 180)])
    draw = np.random.default_rng(0)
    networks = ["teacher", "student alone", "+Pi +Pa"]
    layers = [
        layers_of(
            task,
            draw.integers(0, 256, (48, 96, 3), dtype=np.uint8),
            draw.integers(0, 3, (48, 96)).astype(np.uint8),
            [(n, torch.from_numpy(draw.integers(0, 3, (48, 96)))) for n in networks],
        )
        for _ in range(4)
    ]
    images = [
        Shown(
            f"val/{LONG}_{i}",
            why,
            (48, 96),
            [(n, "41.20") for n in networks],
            [(x.name, uri, x.svg, not x.photo) for x, uri in zip(row, uris, strict=True)],
        )
        for i, (why, row, uris) in enumerate(
            zip(("largest gain", "largest loss", "worst", "best"), layers, fit(layers), strict=True)
        )
    ]
    bins = [
        {
            "low": b / 15,
            "high": (b + 1) / 15,
            "share": 1 / 15,
            "confidence": b / 15,
            "accuracy": 0.5,
        }
        for b in range(15)
    ]
    examined = [
        Examined({}, {"miou": 0.5}, [[8, 1, 1], [0, 0, 0], [2, 0, 9]], {"ece": 0.1, "bins": bins})
        for _ in networks
    ]
    cost = {
        "size": [48, 96],
        "parameters": 4e5,
        "macs": 1e8,
        "bytes": 1_600_000,
        "runs": 5,
        "median": 4.2,
        "p95": 5.0,
    }
    looked = Looked(
        networks=networks,
        rows=[None, *(row for row in collected.rows if row.title in networks[1:])],
        seeds=[0, 0, 0],
        examined=examined,
        images=images,
        classes=CLASSES,
        palette=task.palette,
        seen=4,
        total=4,
        split="val",
        latency=[cost] * 3,
        device="cpu",
        threads=1,
    )
    text = render(
        collected.task,
        collected.rows,
        columns,
        smaller=False,
        looked=looked,
        without="",
        remarks=["A remark."],
        command="densekd report " + " ".join(map(str, runs)),
    )
    assert len(text.encode()) < 3_000_000
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


class Opened:
    """A page with what it asked for and complained of."""

    def __init__(self, browser, address, *, width=1400, scheme="light", **more):
        self.asked, self.said = [], []
        self.page = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme=scheme, **more
        )
        self.page.on("request", lambda r: self.asked.append(r.url))
        self.page.on("console", lambda m: self.said.append(m.text))
        self.page.on("pageerror", lambda e: self.said.append(str(e)))
        self.page.goto(address)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_is_cut_pale_or_asked_for(browser, page_file, width, scheme):
    opened = Opened(browser, page_file.as_uri(), width=width, scheme=scheme)
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(CUT_TEXT) == []
    assert page.evaluate(OUTSIDE) == []
    assert page.evaluate(PALE) == []
    assert opened.said == []
    assert [url for url in opened.asked if not url.startswith(("data:", "file:"))] == []
    assert [url for url in opened.asked if url.startswith("file:")] == [page_file.as_uri()]
    page.close()


def test_the_slider_by_mouse_and_by_keyboard(browser, page_file):
    opened = Opened(browser, page_file.as_uri())
    page = opened.page
    stack, wipe = page.locator(".stack").first, page.locator(".wipe").first
    place = "(s) => getComputedStyle(s).getPropertyValue('--x')"
    clip = "(l) => getComputedStyle(l).clipPath"
    left, right = stack.locator(".layer.left"), stack.locator(".layer.right")
    before = (left.evaluate(clip), right.evaluate(clip))
    wipe.scroll_into_view_if_needed()
    box = wipe.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.5, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, y, steps=4)
    page.mouse.up()
    value = int(wipe.input_value())
    assert 75 <= value <= 85
    assert stack.evaluate(place) == f"{value}%"
    assert left.evaluate(clip) != before[0]
    assert right.evaluate(clip) != before[1]
    wipe.focus()
    page.keyboard.press("ArrowLeft")
    assert wipe.input_value() == str(value - 1)
    page.keyboard.press("Home")
    assert stack.evaluate(place) == "0%"
    assert wipe.get_attribute("aria-valuetext") == "student alone 0 %, +Pi +Pa 100 %"
    outline = stack.evaluate("(s) => getComputedStyle(s).outlineStyle")
    assert outline == "solid"  # the focus is seen
    other = page.locator(".stack").nth(1)
    assert other.evaluate(place) == "50%"  # each image has its own
    assert opened.said == []
    page.close()


def test_layers_and_lines_are_chosen(browser, page_file):
    page = Opened(browser, page_file.as_uri()).page
    shown = "(s) => Array.from(s.querySelectorAll('.layer')).filter((l) => l.offsetWidth).map((l) => l.dataset.layer)"
    stack = page.locator(".stack").first
    assert stack.evaluate(shown) == ["student alone", "+Pi +Pa"]
    page.locator("#left").select_option("truth")
    page.locator("#right").select_option("errors of +Pi +Pa")
    assert stack.evaluate(shown) == ["truth", "errors of +Pi +Pa"]
    assert stack.locator(".tag-left").inner_text() == "truth"
    lines = page.locator("svg.chart .line.s1")
    assert lines.first.is_visible()
    page.locator("[data-toggle='1']").uncheck()
    assert not any(line.is_visible() for line in lines.all())
    page.close()


def test_every_control_can_be_reached_by_tab(browser, page_file):
    page = Opened(browser, page_file.as_uri()).page
    wanted = page.evaluate(
        "document.querySelectorAll('a, input, select, summary, [tabindex=\"0\"]').length"
    )
    seen = set()
    for _ in range(wanted + 2):
        page.keyboard.press("Tab")
        seen.add(
            page.evaluate(
                "Array.from(document.querySelectorAll('*')).indexOf(document.activeElement)"
            )
        )
    folded = page.evaluate(
        "document.querySelectorAll('details:not([open]) :is(a, input, [tabindex=\"0\"])').length"
    )
    assert len(seen) >= wanted - folded
    page.close()


def test_without_scripts_the_pictures_are_there(browser, page_file):
    page = Opened(browser, page_file.as_uri(), java_script_enabled=False).page
    assert page.locator(".stack .layer.left").first.is_visible()
    page.close()


def test_a_printed_page_shows_every_layer(browser, page_file):
    page = Opened(browser, page_file.as_uri(), width=800).page
    page.emulate_media(media="print")
    layers = page.locator(".stack").first.locator(".layer")
    assert all(layer.is_visible() for layer in layers.all())
    assert page.evaluate("document.documentElement.scrollWidth") <= 800
    assert not page.locator(".tools").is_visible()
    page.close()


def test_the_live_page_follows_the_run(browser, tmp_path):
    run = write_run(tmp_path / "run", tree(), miou=None, logged=2)
    server = make_server(lambda: read_state(run), 0)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}/"
    opened = Opened(browser, address, width=400)
    page = opened.page
    try:
        assert "step 20 of 40" in page.locator("#state").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") == 400
        with page.expect_response("**/data.json*"):
            pass
        page.get_by_text("The last values as a table").click()
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": 30, "loss": 1.0, "task/ce": 1.0}) + "\n")
        page.locator("#state", has_text="step 30 of 40").wait_for(timeout=15_000)
        assert page.locator("#curves details").get_attribute("open") is not None
        assert opened.said == []
        assert all(url.startswith((address, "data:")) for url in opened.asked)
    finally:
        page.close()
        server.shutdown()
        server.server_close()
