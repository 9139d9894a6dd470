"""What every kind of truth can do, and how a target and a data set say which kind they are of.

A kind is a class, and a target an object of it; only a class map is a bare array, so that `ClassMap` has static methods
alone. So the methods of a kind are called through the class, with the target first:
``kind_of(target).flip(target, 640)``. Only a kind and the tasks that take it know what its targets hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from densekd.errors import UserError
from densekd.targets.boxes import BoxTarget
from densekd.targets.depth import DepthTarget
from densekd.targets.labels import ClassMap
from densekd.targets.report import CheckReport


class TargetKind(Protocol):
    """The members of a kind of truth; the class itself is passed around, so the first argument is the target.

    A kind that has one array with a value at every pixel, and that `densekd.data.DeviceLoader` shall be able to keep on
    the device, has a method `from_pixels` as well (see `ClassMap`). One that can judge windows for
    `Augment(cat_max_ratio=...)` has `is_mixed`. One whose targets are known by their image's number has `numbered`
    (see `BoxTarget`).

    Attributes:
        name: in the plural, for messages: "class maps".
        report: the class of its `CheckReport`.
    """

    name: str
    report: type[CheckReport]

    def empty(self, size: tuple[int, int], ignore_index: int) -> Any:
        """A target that knows nothing about an image of (height, width)."""
        ...

    def crop(self, target: Any, top: int, left: int, height: int, width: int) -> Any:
        """What a window of the image shows, in the window's own pixels."""
        ...

    def resize(
        self, target: Any, from_size: tuple[int, int], to_size: tuple[int, int], zoom: float
    ) -> Any:
        """The image goes from one (height, width) to another; `zoom` is the part that stands for coming nearer."""
        ...

    def flip(self, target: Any, width: int) -> Any:
        """Left and right are exchanged in an image of this width."""
        ...

    def pad(self, target: Any, size: tuple[int, int], ignore_index: int) -> Any:
        """The image grows at the bottom and on the right to (height, width)."""
        ...

    def stack(self, targets: Sequence[Any]) -> Any:
        """Targets of images of one size -> what leaves a worker: tensors, in tuples or lists, whose memory torch pins.

        What is many small arrays stays so: a tensor out of a worker is an open file, and a few an image would soon use
        up the files that a process may have open.
        """
        ...

    def to_batch(self, stacked: Any, inside: Tensor) -> Any:
        """What `stack` gave -> `Batch.targets`, in the main process; `inside` is (N, H, W), False in the padding."""
        ...

    def pack(self, target: Any) -> tuple[list[np.ndarray], Any]:
        """The arrays of a target, for the data cache, and what else it holds in a form that JSON keeps exactly."""
        ...

    def unpack(self, arrays: list[np.ndarray], extra: Any) -> Any:
        """The target of what `pack` gave; the arrays are read-only."""
        ...

    def facts(self, target: Any, num_classes: int, ignore_index: int) -> dict[str, Any]:
        """What `add_target` of the kind's report counts of one target."""
        ...


# What the attribute `task` of a data set says of its kind, where it has no attribute `target`.
_OF_TASK = {"segmentation": ClassMap, "detection": BoxTarget, "depth": DepthTarget}


def kind_of(target: Any) -> Any:
    """The kind of one target: a bare array is a class map, anything else an object of its kind."""
    return ClassMap if isinstance(target, np.ndarray) else type(target)


def kind_of_set(reader: Any) -> Any:
    """The kind of truth that a data set gives: its attribute `target`, else that of its `task`, else class maps."""
    own = getattr(reader, "target", None)
    return own if isinstance(own, type) else _OF_TASK.get(getattr(reader, "task", ""), ClassMap)


def task_of(reader: Any) -> str:
    """The name of a data set's task: its attribute `task`, else the one that its kind of truth is known by."""
    kind = kind_of_set(reader)
    known = {kind: task for task, kind in _OF_TASK.items()}
    return getattr(reader, "task", None) or known.get(kind, kind.name)


def check_kind(reader: Any, target: Any) -> Any:
    """The kind of the set, where `target` is of it.

    Raises:
        UserError: the data set gives targets of another kind than it says.
    """
    kind = kind_of_set(reader)
    if not issubclass(kind_of(target), kind):
        given = type(target).__name__
        raise UserError(
            f"{type(reader).__name__} gives targets of {given} and says that it gives {kind.name} ({kind.__name__}); "
            f"let its attribute target be the class of its targets"
        )
    return kind
