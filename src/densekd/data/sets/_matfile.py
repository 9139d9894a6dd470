"""Numeric arrays of MATLAB's .mat files (level 5, as ``save -v7`` and older write): all that split lists need."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from densekd.data.image_files import require_plain_file
from densekd.errors import DataError

MOST_BYTES = (
    64_000_000  # of a file, and of a part of it when inflated: lists of numbers have a few thousand
)
_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
# Storage types by number ("MAT-File Format", table 1-1), of either byte order.
_TYPES = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
_NUMERIC = range(6, 16)  # array classes double ... uint64


def read_mat_arrays(path: Path) -> dict[str, np.ndarray]:
    """Real numeric arrays by name; cells, structs and text are passed over.

    Raises:
        DataError: the file is missing, damaged or too large, or is no such file (version 7.3 is HDF5).
    """
    require_plain_file(path, "a MATLAB file")
    if path.stat().st_size > MOST_BYTES:
        raise DataError(f"{path} has more than {MOST_BYTES:,} bytes; expected a list of numbers")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    order = {b"IM": "<", b"MI": ">"}.get(data[126:_HEADER])
    if order is None or not data.startswith(b"MATLAB 5.0"):
        raise DataError(f"{path} is no MATLAB file of level 5; expected one as save -v7 writes it")
    arrays = {}
    try:
        for kind, content in _elements(data[_HEADER:], order):
            if kind == _COMPRESSED:
                kind, content = next(_elements(_inflated(content), order))
            if kind == _MATRIX:
                parts = list(_elements(content, order))
                if np.frombuffer(parts[0][1], f"{order}u4")[0] & 0xFF in _NUMERIC:
                    shape = np.frombuffer(parts[1][1], f"{order}i4")
                    values = np.frombuffer(parts[3][1], order + _TYPES[parts[3][0]])
                    arrays[parts[2][1].decode("ascii")] = values.reshape(shape, order="F")
    except (struct.error, zlib.error, ValueError, KeyError, IndexError, StopIteration) as error:
        raise DataError(f"{path} is damaged: {error}") from None
    return arrays


def _inflated(content: bytes) -> bytes:
    """A few kilobytes can stand for gigabytes, so no more than `MOST_BYTES` are inflated."""
    stream = zlib.decompressobj()
    data = stream.decompress(content, MOST_BYTES)
    if stream.unconsumed_tail:
        raise ValueError(f"it inflates to more than {MOST_BYTES:,} bytes")
    return data


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and content of each data element; all but compressed ones fill up to eight bytes."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        if (
            kind >> 16
        ):  # the small form: size and type share the first word, the content is in the second
            kind, size = kind & 0xFFFF, kind >> 16
            yield kind, data[at + 4 : at + 4 + size]
            at += 8
            continue
        if at + 8 + size > len(data):
            raise ValueError(f"it ends within an element of {size} bytes")
        yield kind, data[at + 8 : at + 8 + size]
        at += 8 + (size if kind == _COMPRESSED else (size + 7) // 8 * 8)
