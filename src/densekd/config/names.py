"""Every name a recipe can use, and where it is. Strings only: this file imports nothing.

A dotted path of your own (my_pkg.my_file.MyLoss) works wherever a name does.
"""

MODELS = {
    "espnet": "densekd.models.espnet.espnet",
    "espnet_c": "densekd.models.espnet.espnet_c",
    "espnetv2": "densekd.models.espnetv2.espnetv2",
    "mobilenetv2plus": "densekd.models.mobilenetv2plus.mobilenetv2plus",
    "pspnet_resnet18": "densekd.models.pspnet.pspnet_resnet18",
    "pspnet_resnet101": "densekd.models.pspnet.pspnet_resnet101",
    "psp_timm": "densekd.models.timm_heads.psp_timm",
    "fpn_timm": "densekd.models.timm_heads.fpn_timm",
    "fcos_mobilenetv2_c128": "densekd.models.fcos.fcos_mobilenetv2_c128",
    "fcos_resnet50": "densekd.models.fcos.fcos_resnet50",
    "fcos_timm": "densekd.models.fcos.fcos_timm",
    "retinanet_timm": "densekd.models.retinanet.retinanet_timm",
    "depth_timm": "densekd.models.depth_timm.depth_timm",
    "vnl": "densekd.models.vnl.vnl",
    "smp": "densekd.models.foreign.smp.smp",
    "torchvision": "densekd.models.foreign.torchvision.torchvision",
    "hf": "densekd.models.foreign.hf.hf",
    "exported": "densekd.models.foreign.exported.exported",
}
# Networks that come with their weights, if the option ``weights`` does not say otherwise.
SELF_TRAINED = ("hf", "exported")
# Networks that cannot be trained.
TEACHERS_ONLY = ("exported",)
# What the networks of `MODELS` predict, where it is not "segmentation".
MODEL_TASKS = {
    "fcos_mobilenetv2_c128": "detection",
    "fcos_resnet50": "detection",
    "fcos_timm": "detection",
    "retinanet_timm": "detection",
    "depth_timm": "depth",
    "vnl": "depth",
}
PROGRAMS = (".onnx", ".pt2", ".xml")  # how the names of exported files end
# The weights that are to be had for the networks of `MODELS`, besides those that a run of one's own writes: the paper's
# authors' files, ImageNet's for the backbone, another library's. docs/models.md says where from.
MODEL_WEIGHTS = {
    "espnet": "authors' CamVid",
    "espnet_c": "authors' CamVid",
    "espnetv2": "authors' Cityscapes",
    "mobilenetv2plus": "ImageNet",
    "pspnet_resnet18": "authors', ImageNet",
    "pspnet_resnet101": "authors', ImageNet",
    "psp_timm": "ImageNet",
    "fpn_timm": "ImageNet",
    "fcos_mobilenetv2_c128": "ImageNet",
    "fcos_resnet50": "COCO, ImageNet",
    "fcos_timm": "ImageNet",
    "retinanet_timm": "ImageNet",
    "depth_timm": "ImageNet",
    "vnl": "ImageNet",
    "smp": "its library's",
    "torchvision": "its library's",
    "hf": "its folder's",
    "exported": "its own",
}
DATASETS = {
    "ade20k": "densekd.data.ADE20K",
    "camvid": "densekd.data.CamVid",
    "cityscapes": "densekd.data.Cityscapes",
    "coco": "densekd.data.Coco",
    "coco_masks": "densekd.data.CocoMasks",
    "depth_folder": "densekd.data.DepthFolder",
    "folder": "densekd.data.Folder",
    "hf_dataset": "densekd.data.HFDataset",
    "idd_lite": "densekd.data.IDDLite",
    "kitti": "densekd.data.Kitti",
    "nyuv2": "densekd.data.NYUv2",
    "scenes": "densekd.data.SceneSet",
    "shards": "densekd.data.Shards",
    "voc": "densekd.data.VOC",
    "voc_boxes": "densekd.data.VOCBoxes",
}
# name -> (where it is, what it compares where the recipe does not say)
LOSSES = {
    "pixel_wise": ("densekd.losses.PixelWise", "prediction"),
    "pair_wise": ("densekd.losses.PairWise", "features"),
    "feature_mimic": ("densekd.losses.FeatureMimic", "features"),
    "attention_transfer": ("densekd.losses.AttentionTransfer", "features"),
    "channel_affinity": ("densekd.losses.ChannelAffinity", "prediction"),
    "channel_wise": ("densekd.losses.ChannelWise", "prediction"),
    "class_affinity": ("densekd.losses.ClassAffinity", "prediction"),
    "cross_image": ("densekd.losses.CrossImage", "features"),
    "cross_image_memory": ("densekd.losses.CrossImageMemory", "features"),
    "decoupled": ("densekd.losses.Decoupled", "prediction"),
    "dist": ("densekd.losses.Dist", "prediction"),
    "fitnet": ("densekd.losses.FitNet", "features"),
    "intra_class": ("densekd.losses.IntraClass", "features"),
    "localization": ("densekd.losses.Localization", "features"),
    "masked_generative": ("densekd.losses.MaskedGenerative", "features"),
    "pearson_features": ("densekd.losses.PearsonFeatures", "features"),
    "similarity_preserving": ("densekd.losses.SimilarityPreserving", "features"),
    "ssi": ("densekd.losses.SSI", "depth"),
}
TASKS = {
    "segmentation": "densekd.tasks.segmentation.Segmentation",
    "detection": "densekd.tasks.detection.Detection",
    "depth": "densekd.tasks.depth.Depth",
}

# Settings that make the same step in another way: `densekd tune` tries them, and `train.auto` takes what is fastest.
STEP_FORMS = (
    "teacher.channels_last",
    "teacher.batch_size",
    "teacher.precision",
    "teacher.compile",
    "teacher.runtime",
    "train.channels_last",
    "train.amp",
    "train.compile",
)
# Each needs the package, and our extra, of its own name.
TRACKERS = {
    "tensorboard": "densekd.engine.trackers.tensorboard.TensorBoard",
    "wandb": "densekd.engine.trackers.wandb.WandB",
    "mlflow": "densekd.engine.trackers.mlflow.MLflow",
    "trackio": "densekd.engine.trackers.trackio.Trackio",
}
