"""THIRD_PARTY.md lists what is locked, and every licence goes with Apache-2.0."""

import re
import runpy
from importlib import metadata

import pytest

from tests.test_project import ROOT

licences = runpy.run_path(str(ROOT / "docs" / "make_licences.py"))
ROWS = {
    name: (version, licence)
    for name, version, licence in re.findall(
        r"^\| ([\w.\-]+) \| ([\w.\-]+) \| ([^|]+) \|$",
        licences["PAGE"].read_text(encoding="utf-8"),
        re.M,
    )
    if name not in ("package", "---")
}
LOCKED = [package for lock in licences["LOCKS"] for package in licences["locked"](lock)]


def test_the_page_lists_what_is_locked():
    told = {name: version for name, (version, _) in ROWS.items()}
    assert told == dict(LOCKED), "run python docs/make_licences.py"


@pytest.mark.parametrize("name", [name for name, _ in LOCKED])
def test_a_licence_is_what_the_package_says_and_goes_with_apache(name):
    licence = ROWS[name][1]
    assert not licences["is_unknown"](licence)
    try:
        installed = metadata.version(name)
    except metadata.PackageNotFoundError:
        pytest.skip("not installed")
    if installed == ROWS[name][0]:
        assert licences["licence_of"](name) == licence, "run python docs/make_licences.py"


@pytest.mark.parametrize(
    ("licence", "unknown"),
    [
        ("MIT", False),
        ("Apache-2.0 OR GPL-3.0-only", False),
        ("MIT AND GPL-3.0-only", True),
        ("(MIT AND MPL-2.0)", False),
        ("AGPL-3.0", True),
        ("unknown", True),
    ],
)
def test_which_licences_go_with_apache(licence, unknown):
    assert licences["is_unknown"](licence) is unknown
