"""What is known about one image: a class for each kind of truth, and `TargetKind`, which says what a kind can do."""

from densekd.targets.boxes import BoxReport, BoxTarget, box_areas, to_boxes
from densekd.targets.depth import (
    DepthReport,
    DepthTarget,
    Intrinsics,
    resized_intrinsics,
    to_depth_maps,
)
from densekd.targets.kind import TargetKind, check_kind, kind_of, kind_of_set, task_of
from densekd.targets.labels import ClassMap, LabelReport
from densekd.targets.report import CheckReport
from densekd.targets.window import Window

__all__ = [
    "BoxReport",
    "BoxTarget",
    "CheckReport",
    "ClassMap",
    "DepthReport",
    "DepthTarget",
    "Intrinsics",
    "LabelReport",
    "TargetKind",
    "Window",
    "box_areas",
    "check_kind",
    "kind_of",
    "kind_of_set",
    "resized_intrinsics",
    "task_of",
    "to_boxes",
    "to_depth_maps",
]
