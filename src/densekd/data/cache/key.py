"""What a decoded sample is known by: the files it is made of, and all that chooses how they are read.

A key is the same in every process.
"""

from __future__ import annotations

import copyreg
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import PIL

import densekd
from densekd.data.base import DenseSet, sources_of
from densekd.errors import UserError

FORMAT = 2  # of keys and records; a new one finds none of the old


def sample_key(
    reader: DenseSet, common: str, index: int, stat: Callable[[Path], tuple[int, ...] | None]
) -> str:
    """It changes with the sample's files, the reader's settings and the code that reads."""
    paths = sources_of(reader, index)
    if not paths and not hasattr(reader, "sources"):
        raise UserError(
            f"{type(reader).__name__} does not say which files its samples are made of, so that a change would not "
            "be noticed. Give it a method sources(index) that lists them, or take `folder=None` (memory)"
        )
    files = [(str(path), stat(path)) for path in paths]
    text = repr((common, index if not files else None, reader.name(index), files))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def stamp(path: Path) -> tuple[int, int, int] | None:
    """Size and times; the time of the last change (of anything about the file) cannot be set back by anyone."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def settle(paths: Sequence[Path]) -> None:
    """Wait until files are older than their clock's steps: a later change then shows in their times."""
    for path in paths:
        found = stamp(path)
        if found is not None:
            newest = max(found[1:])
            step = (
                2e9 if newest % 10**9 == 0 else 5e7
            )  # nanoseconds; some file systems count seconds
            time.sleep(max(0.0, min(step, newest + step - time.time_ns())) / 1e9)


def reader_digest(reader: DenseSet) -> str:
    """Of a reader's settings and all else that it holds, of its code and of what decodes."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((FORMAT, densekd.__version__, PIL.__version__, _own_code())).encode())
    _feed(digest, reader, ())
    return digest.hexdigest()


def _feed(digest: Any, value: Any, above: tuple[int, ...]) -> None:
    """Add a value, by content: the same in every process, and another for any other content."""
    if id(value) in above:
        return
    within = (*above, id(value))
    digest.update(f"<{type(value).__name__}>".encode())
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, Path)):
        digest.update(repr(value if not isinstance(value, Path) else str(value)).encode())
    elif isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
        array = np.ascontiguousarray(value)
        digest.update(repr((array.dtype.str, array.shape)).encode())
        digest.update(array.data.cast("B") if array.size else b"")
    elif isinstance(value, Mapping):
        for key, one in value.items():
            _feed(digest, key, within)
            _feed(digest, one, within)
    elif isinstance(value, (list, tuple)):
        for one in value:
            _feed(digest, one, within)
    elif isinstance(value, (set, frozenset)):
        _feed(digest, sorted(value, key=repr), within)
    elif isinstance(value, type):
        for kind in value.__mro__[:-1]:
            digest.update(
                repr((kind.__module__, kind.__qualname__, _code(kind.__module__))).encode()
            )
    elif isinstance(value, FunctionType):
        names = (value.__module__, value.__qualname__, _code(value.__module__))
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        _feed(digest, [*names, *cells], within)
    else:
        _feed(digest, _parts(value), within)
    digest.update(b"</>")


def _parts(value: Any) -> list[Any]:
    """What pickle would take of an object: its class, arguments and state."""
    try:
        reduce = copyreg.dispatch_table.get(type(value))
        reduced = reduce(value) if reduce else value.__reduce_ex__(4)
    except (TypeError, AttributeError) as error:
        raise UserError(
            f"the data set holds a {type(value).__name__}, whose content cannot be told ({error}), so that a change "
            "would not be noticed. Take `folder=None` (memory), or make that part of its pickled state"
        ) from None
    if isinstance(reduced, str):
        return [type(value), reduced]
    return [type(value), *(list(part) if isinstance(part, Iterator) else part for part in reduced)]


@cache
def _code(module: str) -> str:
    """Digest of a module's source file; empty where it has none."""
    file = getattr(sys.modules.get(module), "__file__", None)
    try:
        return hashlib.blake2b(Path(file).read_bytes()).hexdigest() if file else ""
    except OSError:
        return ""


@cache
def _own_code() -> str:
    """Digest of all that readers of ours are made of: their code, the kinds of truth, and the scenes."""
    digest = hashlib.blake2b()
    package = Path(densekd.__file__).parent
    for room in ("data", "targets", "scenes"):
        for path in sorted((package / room).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
