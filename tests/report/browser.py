"""A real browser for tests of pages: whatever Chromium the machine has; none is ever downloaded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def chromium(*options: str) -> Iterator[Any]:
    """Headless, with more options; the test is skipped where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install 'densekd[dev]')"
    )
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=["--no-sandbox", *options])
        try:
            yield browser
        finally:
            browser.close()


# Text that is cut: wider than its box, where the box neither scrolls nor is meant to be hidden.
CUT_TEXT = """() => {
  const found = [];
  for (const element of document.querySelectorAll("main *, header *, footer *")) {
    if (element.closest("svg") || !element.innerText || !element.clientWidth) continue;
    const style = getComputedStyle(element);
    const hides = [style.overflowX, style.overflowY].some((o) => o === "hidden" || o === "clip");
    if (element.matches(".hidden, .stack, .skip")) continue;
    if (element.scrollWidth > element.clientWidth + 1 && style.display !== "inline" && !element.closest(".scroll")) {
      found.push(`${element.tagName}.${element.className}: ${element.innerText.slice(0, 40)}`);
    }
    if (hides && element.scrollHeight > element.clientHeight + 1) {
      found.push(`hidden: ${element.tagName}.${element.className}: ${element.innerText.slice(0, 40)}`);
    }
  }
  return found;
}"""

# Texts of charts must lie inside the figure that holds them.
OUTSIDE = """() => Array.from(document.querySelectorAll("figure svg.chart text")).filter((text) => {
  const box = text.getBoundingClientRect(), around = text.closest("section").getBoundingClientRect();
  return box.left < around.left || box.right > around.right;
}).map((text) => text.textContent)"""

# WCAG contrast of every text that lies on plain colours.
PALE = """() => {
  const parse = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = (c) => {
    const [r, g, b] = parse(c).slice(0, 3).map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const texts = "main p, main th, main td, main label, main figcaption, header p, h1, h2, a, code, summary";
  for (const element of document.querySelectorAll(texts)) {
    if (!element.innerText || element.closest(".matrix, .stack")) continue;
    let ground = element;
    while (ground && (parse(getComputedStyle(ground).backgroundColor)[3] ?? 1) === 0) ground = ground.parentElement;
    if (!ground) continue;
    const tones = [getComputedStyle(element).color, getComputedStyle(ground).backgroundColor].map(light);
    const [a, b] = tones.sort((x, y) => x - y);
    if ((b + 0.05) / (a + 0.05) < 4.5) found.push(`${element.tagName} ${element.innerText.slice(0, 30)}`);
  }
  return found;
}"""
