"""A decoded sample as plain bytes, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from densekd.data.base import DenseSet, Sample
from densekd.targets import check_kind

ALIGNED = 64  # bytes, to a multiple of which arrays begin


@dataclass
class Record:
    """Where a sample lies in the file, and what its bytes are."""

    at: int
    size: int
    crc: int
    arrays: list[tuple[str, list[int]]]  # dtype and shape of each
    has_target: bool
    extra: Any = None  # what the target's kind packs beside its arrays
    key: str = ""

    def sample(self, source: Any, name: str, kind: Any) -> Sample:
        """The sample out of a buffer, in which it lies at `at`; its target is of the kind of the set."""
        arrays, at = [], self.at
        for form, shape in self.arrays:
            dtype, count = np.dtype(form), int(np.prod(shape))
            arrays.append(np.frombuffer(source, dtype, count, at).reshape(shape))
            at = aligned(at + count * dtype.itemsize)
        image, *rest = arrays
        return Sample(image, kind.unpack(rest, self.extra) if self.has_target else None, name)


def is_record(found: dict[str, Any]) -> bool:
    """Whether a line of an index has the fields of a `Record`, and arrays that fill exactly its bytes."""
    if set(found) != {f.name for f in fields(Record)}:
        return False
    numbers = [found[name] for name in ("at", "size", "crc")]
    if not all(type(n) is int and n >= 0 for n in numbers) or not isinstance(found["key"], str):
        return False
    end = 0
    try:
        for form, shape in found["arrays"]:
            dtype = np.dtype(form)
            if dtype.kind not in "biuf" or not all(type(n) is int and n >= 0 for n in shape):
                return False
            end = aligned(end) + math.prod(shape) * dtype.itemsize
    except (TypeError, ValueError):
        return False
    return bool(found["arrays"]) and len(found["arrays"][0][1]) == 3 and end == found["size"]


def packed(reader: DenseSet, sample: Sample) -> tuple[bytearray, dict[str, Any]]:
    """A sample's bytes, and the fields of its `Record` that tell their form.

    Raises:
        UserError: a target of another kind than the reader says.
    """
    rest, extra = [], None
    if sample.target is not None:
        rest, extra = check_kind(reader, sample.target).pack(sample.target)
    arrays = [np.ascontiguousarray(array) for array in (sample.image, *rest)]
    content = bytearray()
    for array in arrays:
        content += bytes(aligned(len(content)) - len(content))
        content += array.data.cast("B") if array.size else b""
    forms = [(array.dtype.str, list(array.shape)) for array in arrays]
    return content, {"arrays": forms, "has_target": sample.target is not None, "extra": extra}


def aligned(at: int) -> int:
    return -(-at // ALIGNED) * ALIGNED
