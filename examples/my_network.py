"""A network of your own: a function that takes num_classes and gives any nn.Module."""

from torch import nn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from densekd.types import InputSpec


def lraspp(num_classes: int, *, pretrained_backbone: bool = False) -> nn.Module:
    """torchvision's LR-ASPP on MobileNetV3."""
    network = lraspp_mobilenet_v3_large(
        weights=None,
        weights_backbone="DEFAULT" if pretrained_backbone else None,  # DEFAULT downloads
        num_classes=num_classes,
    )
    # Both are optional. Without input_spec a recipe takes RGB in [0, 1] with ImageNet's mean and std, as here.
    network.input_spec = InputSpec()
    # What pair_wise compares where the recipe does not say; the colon goes into the dict that backbone returns.
    network.pair_wise_tap = "backbone:high"
    return network
