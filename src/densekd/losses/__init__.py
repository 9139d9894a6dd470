"""Losses: each a function of tensors, with a thin class of the same name that stores arguments."""

from densekd.losses.attention_transfer import AttentionTransfer, attention_transfer
from densekd.losses.berhu import BerHu, berhu
from densekd.losses.channel_affinity import ChannelAffinity, channel_affinity
from densekd.losses.channel_wise import ChannelWise, channel_wise
from densekd.losses.class_affinity import ClassAffinity, class_affinity
from densekd.losses.conventions import scale_between
from densekd.losses.cross_entropy import (
    CrossEntropy,
    OhemCrossEntropy,
    SegmentationLoss,
    cross_entropy,
    ohem_cross_entropy,
    segmentation_loss,
)
from densekd.losses.cross_image import CrossImage, cross_image
from densekd.losses.cross_image_memory import CrossImageMemory
from densekd.losses.decoupled import Decoupled, decoupled
from densekd.losses.depth_cross_entropy import DepthCrossEntropy, depth_cross_entropy
from densekd.losses.depth_l1 import DepthL1, depth_l1
from densekd.losses.dist import Dist, dist
from densekd.losses.feature_mimic import FeatureMimic, feature_mimic
from densekd.losses.fitnet import FitNet, fitnet
from densekd.losses.holistic import Holistic, discriminator_loss, gradient_penalty, holistic
from densekd.losses.intra_class import IntraClass, intra_class
from densekd.losses.localization import Localization, localization
from densekd.losses.masked_generative import MaskedGenerative, masked_generative
from densekd.losses.pair_wise import PairWise, pair_wise, pool_nodes
from densekd.losses.pearson_features import PearsonFeatures, pearson_features
from densekd.losses.pixel_wise import PixelWise, pixel_wise
from densekd.losses.silog import SiLog, silog
from densekd.losses.similarity_preserving import SimilarityPreserving, similarity_preserving
from densekd.losses.ssi import SSI, ssi
from densekd.losses.virtual_normal import VirtualNormal, virtual_normal
from densekd.losses.wants import Wants

__all__ = [
    "SSI",
    "AttentionTransfer",
    "BerHu",
    "ChannelAffinity",
    "ChannelWise",
    "ClassAffinity",
    "CrossEntropy",
    "CrossImage",
    "CrossImageMemory",
    "Decoupled",
    "DepthCrossEntropy",
    "DepthL1",
    "Dist",
    "FeatureMimic",
    "FitNet",
    "Holistic",
    "IntraClass",
    "Localization",
    "MaskedGenerative",
    "OhemCrossEntropy",
    "PairWise",
    "PearsonFeatures",
    "PixelWise",
    "SegmentationLoss",
    "SiLog",
    "SimilarityPreserving",
    "VirtualNormal",
    "Wants",
    "attention_transfer",
    "berhu",
    "channel_affinity",
    "channel_wise",
    "class_affinity",
    "cross_entropy",
    "cross_image",
    "decoupled",
    "depth_cross_entropy",
    "depth_l1",
    "discriminator_loss",
    "dist",
    "feature_mimic",
    "fitnet",
    "gradient_penalty",
    "holistic",
    "intra_class",
    "localization",
    "masked_generative",
    "ohem_cross_entropy",
    "pair_wise",
    "pearson_features",
    "pixel_wise",
    "pool_nodes",
    "scale_between",
    "segmentation_loss",
    "silog",
    "similarity_preserving",
    "ssi",
    "virtual_normal",
]
