"""torchvision's networks: ``{name: torchvision, options: {arch: lraspp_mobilenet_v3_large}}``, or a detector's name."""

from __future__ import annotations

from torch import nn
from torchvision.models import detection, get_model, get_model_weights, list_models, segmentation

from densekd.errors import UserError
from densekd.models.foreign._package import declare
from densekd.models.foreign.torchvision_detection import KINDS, torchvision_detector
from densekd.ops.names import did_you_mean
from densekd.types import InputSpec


def torchvision(
    num_classes: int,
    *,
    arch: str,
    weights: str | None = None,
    backbone_weights: str | None = None,
    aux_head: bool = False,
) -> nn.Module:
    """The library's own network, so that what is saved loads there with ``strict=True``.

    Args:
        arch: torchvision's name, such as deeplabv3_resnet50, or of detectors fcos_resnet50_fpn,
            retinanet_resnet50_fpn (and _v2), ssd300_vgg16, ssdlite320_mobilenet_v3_large.
        weights: torchvision's name of weights for the whole network, such as DEFAULT (VOC's 21 classes; of detectors
            COCO's category ids), which it downloads.
        backbone_weights: the same for the backbone, such as DEFAULT (ImageNet).
        aux_head: have the auxiliary head (FCN and DeepLab).
    """
    known = list_models(segmentation)
    if arch in list_models(detection) and arch not in KINDS:
        raise UserError(
            f"arch {arch} finds regions first and classes afterwards, which cannot be compared place by place; take "
            f"one of {', '.join(KINDS)}"
        )
    if arch not in known and arch not in KINDS:
        raise UserError(f"arch {arch!r} is unknown; {did_you_mean(arch, [*known, *KINDS])}")
    # LR-ASPP has no auxiliary head and no argument for one. Weights of the whole network bring theirs.
    has_choice = not arch.startswith("lraspp") and weights is None
    if aux_head and arch.startswith("lraspp"):
        raise UserError(f"arch {arch} has no auxiliary head; leave aux_head out")
    more = {"aux_loss": aux_head} if has_choice else {}
    if arch in KINDS and aux_head:
        raise UserError(f"arch {arch} has no auxiliary head; leave aux_head out")
    try:
        if arch in KINDS:
            return torchvision_detector(num_classes, arch, weights, backbone_weights)
        if weights is not None:
            count = len(get_model_weights(arch)[weights].meta["categories"])
            if count != num_classes:
                raise UserError(
                    f"weights {weights} of {arch} are for {count} classes; the task has {num_classes}"
                )
        network = get_model(
            arch,
            weights=weights,
            weights_backbone=backbone_weights,
            num_classes=num_classes,
            **more,
        )
    except (KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        names = [entry.name for entry in get_model_weights(arch)]
        raise UserError(
            f"weights {weights!r} are unknown; {did_you_mean(str(weights), names)}"
        ) from error
    except OSError as error:
        raise UserError(f"torchvision cannot fetch the weights of {arch}: {error}") from error
    if not aux_head and hasattr(network, "aux_classifier"):
        # Weights of the whole network bring the head; without it the network is as it is when built at random.
        setattr(network, "aux_classifier", None)  # noqa: B010 - the attribute is typed as a module
    tap = "backbone:high" if arch.startswith("lraspp") else "backbone:out"
    # All of torchvision's weights for segmentation take ImageNet's mean and std.
    return declare(network, InputSpec(), num_classes, tap)
