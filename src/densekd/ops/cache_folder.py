"""Where what can be made again is kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """``$DENSEKD_CACHE/name``, else ``densekd/name`` in the user's cache folder (XDG). It need not exist yet."""
    root = os.environ.get("DENSEKD_CACHE")
    if root:
        return Path(root).expanduser() / name
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).expanduser() / "densekd" / name
