"""Losses: each a function of tensors, with a thin class of the same name that stores arguments."""

from densekd.losses.berhu import BerHu, berhu
from densekd.losses.conventions import scale_between
from densekd.losses.cross_entropy import (
    CrossEntropy,
    OhemCrossEntropy,
    SegmentationLoss,
    cross_entropy,
    ohem_cross_entropy,
    segmentation_loss,
)
from densekd.losses.depth_cross_entropy import DepthCrossEntropy, depth_cross_entropy
from densekd.losses.depth_l1 import DepthL1, depth_l1
from densekd.losses.feature_mimic import FeatureMimic, feature_mimic
from densekd.losses.holistic import Holistic, discriminator_loss, gradient_penalty, holistic
from densekd.losses.pair_wise import PairWise, pair_wise, pool_nodes
from densekd.losses.pixel_wise import PixelWise, pixel_wise
from densekd.losses.silog import SiLog, silog
from densekd.losses.virtual_normal import VirtualNormal, virtual_normal
from densekd.losses.wants import Wants

__all__ = [
    "BerHu",
    "CrossEntropy",
    "DepthCrossEntropy",
    "DepthL1",
    "FeatureMimic",
    "Holistic",
    "OhemCrossEntropy",
    "PairWise",
    "PixelWise",
    "SegmentationLoss",
    "SiLog",
    "VirtualNormal",
    "Wants",
    "berhu",
    "cross_entropy",
    "depth_cross_entropy",
    "depth_l1",
    "discriminator_loss",
    "feature_mimic",
    "gradient_penalty",
    "holistic",
    "ohem_cross_entropy",
    "pair_wise",
    "pixel_wise",
    "pool_nodes",
    "scale_between",
    "segmentation_loss",
    "silog",
    "virtual_normal",
]
