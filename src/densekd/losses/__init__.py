"""Losses: each a function of tensors, with a thin class of the same name that stores arguments."""

from densekd.losses.conventions import scale_between
from densekd.losses.cross_entropy import (
    CrossEntropy,
    OhemCrossEntropy,
    SegmentationLoss,
    cross_entropy,
    ohem_cross_entropy,
    segmentation_loss,
)
from densekd.losses.holistic import Holistic, discriminator_loss, gradient_penalty, holistic
from densekd.losses.pair_wise import PairWise, pair_wise
from densekd.losses.pixel_wise import PixelWise, pixel_wise

__all__ = [
    "CrossEntropy",
    "Holistic",
    "OhemCrossEntropy",
    "PairWise",
    "PixelWise",
    "SegmentationLoss",
    "cross_entropy",
    "discriminator_loss",
    "gradient_penalty",
    "holistic",
    "ohem_cross_entropy",
    "pair_wise",
    "pixel_wise",
    "scale_between",
    "segmentation_loss",
]
