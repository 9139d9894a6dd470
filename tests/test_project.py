"""The project's own files agree with each other: lock files, pre-commit, CITATION.cff, the issue forms."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins(name: str) -> dict[str, str]:
    """Package name -> version of a lock file."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith(("#", "-r "))]
    return {canonical(package): version for package, version in pairs}


def canonical(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def test_what_densekd_needs_is_pinned_once():
    run, dev = pins("requirements.lock"), pins("requirements-dev.lock")
    extras = PROJECT["optional-dependencies"]
    running = [*PROJECT["dependencies"], *extras["det"], *extras["depth"], *extras["lite"]]
    assert {canonical(Requirement(r).name) for r in running} <= set(run)
    others = [*extras["tensorboard"], *extras["smp"], *extras["export"], *extras["dev"]]
    names = {canonical(Requirement(r).name) for r in others} - {"densekd"}
    assert names <= set(dev)
    assert not set(run) & set(dev)


def test_pre_commit_runs_the_pinned_ruff():
    tree = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    revisions = {repo["repo"]: repo["rev"] for repo in tree["repos"]}
    ruff = revisions["https://github.com/astral-sh/ruff-pre-commit"]
    assert ruff == f"v{pins('requirements-dev.lock')['ruff']}"


def test_the_citation_has_this_version():
    tree = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert tree["version"] == PROJECT["version"]
    assert tree["license"] == PROJECT["license"]
    assert tree["references"][0]["doi"] == "10.1109/TPAMI.2020.3001940"


def test_every_issue_form_has_a_required_field_or_a_text():
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert {form.stem for form in forms} == {"bug", "feature", "question", "config"}
    for form in forms:
        tree = yaml.safe_load(form.read_text(encoding="utf-8"))
        if form.stem == "config":
            continue
        assert {"name", "description", "body"} <= set(tree)
        ids = [part["id"] for part in tree["body"] if part["type"] != "markdown"]
        assert len(ids) == len(set(ids))
        assert any(part.get("validations", {}).get("required") for part in tree["body"])


def test_the_workflow_runs_what_a_developer_runs():
    tree = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    job = tree["jobs"]["ci"]
    assert {"run": "bash .ci/run"} in job["steps"]
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert oldest in job["strategy"]["matrix"]["python"]
