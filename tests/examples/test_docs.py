"""The documentation is in step with the code: settings, shown files, links, commands."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from densekd.cli.arguments import split_overrides
from densekd.cli.main import COMMANDS
from densekd.config.load import load_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINKING = sorted(
    {*PAGES, *(p for room in ("results", "examples") for p in (ROOT / room).rglob("*.md"))}
)
RECIPE_COMMANDS = ("train", "distill", "evaluate", "ablate", "check", "show", "validate")


def test_the_reference_of_settings_is_up_to_date():
    script = runpy.run_path(str(ROOT / "docs" / "make_config_reference.py"))
    page = script["PAGE"].read_text(encoding="utf-8")
    assert page == script["render"](), "run python docs/make_config_reference.py"


@pytest.mark.parametrize("page", ["own_loop.md", "loops.md", "extending.md"])
def test_shown_files_are_the_files(page):
    script = runpy.run_path(str(ROOT / "docs" / "copy_examples.py"))
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert len(script["BLOCK"].findall(text)) == text.count("<!-- file:") >= 3
    assert script["filled"](text) == text, "run python docs/copy_examples.py"


@pytest.mark.parametrize("page", LINKING, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        other = page.parent / path if path else page
        assert other.exists(), f"{page.name}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), re.M)
            anchors = {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}
            assert anchor in anchors, f"{page.name}: {target}"


def shown_commands() -> list[str]:
    """Lines of code blocks that call densekd."""
    found = []
    for page in PAGES:
        blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", page.read_text(), re.M | re.S)
        for language, block in blocks:
            if language not in ("", "bash", "sh", "console"):
                continue
            for line in block.replace("\\\n", " ").splitlines():
                line = line.strip().removeprefix("$ ")
                match = re.match(r"(?:\w+=\S+ )*(?:(?:torchrun .*?|python) -m )?densekd (.*)", line)
                if match:
                    found.append(match[1])
    return found


@pytest.mark.parametrize("line", sorted(set(shown_commands())))
def test_shown_commands_are_legal(line, monkeypatch):
    monkeypatch.chdir(ROOT / "examples")  # where extending.md's commands are run
    words, overrides = split_overrides(shlex.split(line, comments=True))
    if words[0].startswith("-"):
        return
    assert words[0] in COMMANDS, line
    command = words.pop(0)
    if command in ("data", "config") and words and not words[0].startswith("-"):
        command = words.pop(0)
    if command not in RECIPE_COMMANDS or "--help" in words:
        return
    recipe = "camvid/espnet_c_from_espnet" if words[0] == "RECIPE" else words[0]
    load_config(recipe, overrides)  # the recipe exists and the overrides fit
