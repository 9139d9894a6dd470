"""Data sets, augmentation, loaders and checks. docs/data.md tells layouts and the order contract."""

from densekd.data.augment import Augment, augment
from densekd.data.base import DenseSet, Sample, SegmentationSet, distinct_colours
from densekd.data.cache import CachedSet, cached
from densekd.data.check import check_all, sample_check
from densekd.data.collate import Item, collate
from densekd.data.device import DeviceLoader
from densekd.data.files import read_image, read_labels
from densekd.data.items import Items
from densekd.data.loader import EvalLoader, TrainLoader, Unlabelled
from densekd.data.paired_files import FileOptions, PairedFiles
from densekd.data.part import Part, held_out
from densekd.data.sets._depth_files import DepthFiles
from densekd.data.sets.ade20k import ADE20K
from densekd.data.sets.camvid import CamVid
from densekd.data.sets.cityscapes import Cityscapes, to_label_ids
from densekd.data.sets.coco import Coco
from densekd.data.sets.coco_masks import CocoMasks
from densekd.data.sets.depth_folder import DepthFolder
from densekd.data.sets.folder import Folder
from densekd.data.sets.hf_dataset import HFDataset
from densekd.data.sets.idd_lite import IDDLite
from densekd.data.sets.kitti import Kitti
from densekd.data.sets.nyuv2 import NYUv2
from densekd.data.sets.scenes import SceneSet
from densekd.data.sets.shards import Shards
from densekd.data.sets.voc import VOC
from densekd.data.sets.voc_boxes import VOCBoxes
from densekd.data.unlabelled import ImageFolder
from densekd.targets import BoxTarget, CheckReport, DepthTarget, task_of

__all__ = [
    "ADE20K",
    "VOC",
    "Augment",
    "BoxTarget",
    "CachedSet",
    "CamVid",
    "CheckReport",
    "Cityscapes",
    "Coco",
    "CocoMasks",
    "DenseSet",
    "DepthFiles",
    "DepthFolder",
    "DepthTarget",
    "DeviceLoader",
    "EvalLoader",
    "FileOptions",
    "Folder",
    "HFDataset",
    "IDDLite",
    "ImageFolder",
    "Item",
    "Items",
    "Kitti",
    "NYUv2",
    "PairedFiles",
    "Part",
    "Sample",
    "SceneSet",
    "SegmentationSet",
    "Shards",
    "TrainLoader",
    "Unlabelled",
    "VOCBoxes",
    "augment",
    "cached",
    "check_all",
    "collate",
    "distinct_colours",
    "held_out",
    "read_image",
    "read_labels",
    "sample_check",
    "task_of",
    "to_label_ids",
]
