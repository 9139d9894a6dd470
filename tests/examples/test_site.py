"""The site's pages: links that hold in the repository and on the site, and an entry for every public name."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml without the objects that its tags name."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


@pytest.fixture(scope="module")
def stage():
    spec = importlib.util.spec_from_file_location("stage", ROOT / "docs" / "site" / "stage.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def settings():
    return yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)


def leaves(nav: list) -> list[str]:
    values = [value for entry in nav for value in entry.values()]
    return [leaf for v in values for leaf in ([v] if isinstance(v, str) else leaves(v))]


def test_links_to_pages_stay_and_links_to_code_lead_to_the_repository(stage):
    page = ROOT / "docs" / "losses.md"
    text = "[a](models.md#taps) [b](../tests/test_project.py) [c](nowhere.md) [d](https://x.org)"
    staged = {page, ROOT / "docs" / "models.md"}
    code = "https://github.com/densekd/densekd/blob/main/tests/test_project.py"
    assert stage.with_links(text, page, staged) == text.replace("../tests/test_project.py", code)
    fenced = "```md\n[b](../tests/test_project.py)\n```\n"
    assert stage.with_links(fenced, page, staged) == fenced


def test_the_rooms_pages_have_every_public_name(stage):
    for room in set(stage.ROOMS) - {"densekd.types", "densekd.errors"}:
        module = importlib.import_module(room)
        names = {name for name in module.__all__ if not name.startswith("_")}
        assert set(stage.public_names(room)) == names
        page = stage.room_page(room)
        for path in stage.public_names(room).values():
            assert f"::: {path}\n" in page or f".md#{path})" in page
            home, _, attribute = path.rpartition(".")
            assert not isinstance(getattr(importlib.import_module(home), attribute), ModuleType)
    pages = "".join(stage.room_page(room) for room in stage.ROOMS)
    entries = re.findall(r"^::: (\S+)$", pages, re.M)
    assert len(entries) == len(set(entries))
    assert "UserError" in stage.public_names("densekd.errors")
    assert "Batch" in stage.public_names("densekd.types")


def test_the_navigation_has_every_page_once(stage, settings):
    pages = [p.relative_to(ROOT).as_posix() for p in stage.staged_files() if p.suffix == ".md"]
    pages += [f"api/{room}.md" for room in stage.ROOMS] + ["examples/notebook.md"]
    assert sorted(leaves(settings["nav"])) == sorted(pages)


def test_nothing_is_fetched_or_counted(settings):
    assert settings["theme"]["font"] is False
    assert "analytics" not in settings["extra"]
    # The theme asks GitHub for a repository's stars; the plugin loads a script from another host.
    assert "repo_url" not in settings
    assert "offline" not in str(settings["plugins"])
    assert settings["strict"] is True


def test_the_tools_of_the_site_are_pinned_as_elsewhere():
    def pins(name: str) -> dict[str, str]:
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        return dict(line.lower().split("==") for line in lines if "==" in line and line[0] != "#")

    site = pins("requirements-docs.lock")
    others = {**pins("requirements.lock"), **pins("requirements-dev.lock")}
    assert {"mkdocs-material", "mkdocstrings-python", "latex2mathml", "ruff"} <= set(site)
    assert not {name: site[name] for name in set(site) & set(others) if site[name] != others[name]}
