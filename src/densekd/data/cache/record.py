"""A decoded sample as plain bytes, and back."""

from __future__ import annotations

from dataclasses import dataclass
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
