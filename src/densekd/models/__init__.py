"""Networks, taps, and weights on disk. Names for configs stand in `densekd.config.names`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from densekd.models.depth_timm import DepthTimm, depth_timm
from densekd.models.espnet import ESPNet, ESPNetC, espnet, espnet_c
from densekd.models.espnetv2 import ESPNetv2, espnetv2
from densekd.models.label_space import LabelSpace
from densekd.models.mobilenetv2plus import MobileNetV2Plus, mobilenetv2plus
from densekd.models.pspnet import PSPNet, pspnet_resnet18, pspnet_resnet101
from densekd.models.tap_list import TapRow, list_taps
from densekd.models.taps import Taps
from densekd.models.timm_heads import FPNTimm, PSPTimm, fpn_timm, psp_timm
from densekd.models.vnl import VNL, vnl
from densekd.models.weights import load_weights, read_metadata, read_weights, save_weights

if TYPE_CHECKING:
    from densekd.models.fcos import fcos_mobilenetv2_c128, fcos_resnet50, fcos_timm
    from densekd.models.retinanet import retinanet_timm

__all__ = [
    "VNL",
    "DepthTimm",
    "ESPNet",
    "ESPNetC",
    "ESPNetv2",
    "FPNTimm",
    "LabelSpace",
    "MobileNetV2Plus",
    "PSPNet",
    "PSPTimm",
    "TapRow",
    "Taps",
    "depth_timm",
    "espnet",
    "espnet_c",
    "espnetv2",
    "fcos_mobilenetv2_c128",
    "fcos_resnet50",
    "fcos_timm",
    "fpn_timm",
    "list_taps",
    "load_weights",
    "mobilenetv2plus",
    "psp_timm",
    "pspnet_resnet18",
    "pspnet_resnet101",
    "read_metadata",
    "read_weights",
    "retinanet_timm",
    "save_weights",
    "vnl",
]

# torchvision takes as long to import as torch: only for those who ask for a detector.
_DETECTORS = {
    "fcos_mobilenetv2_c128": "densekd.models.fcos",
    "fcos_resnet50": "densekd.models.fcos",
    "fcos_timm": "densekd.models.fcos",
    "retinanet_timm": "densekd.models.retinanet",
}


def __getattr__(name: str) -> Any:
    if name in _DETECTORS:
        return getattr(importlib.import_module(_DETECTORS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
