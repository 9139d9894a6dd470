"""The few types that cross rooms: batches, what a wrapped network returns, what a network wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class InputSpec:
    """What a network wants to see, applied to images that are RGB in [0, 1] everywhere else.

    Args:
        mean: per channel, in the network's own channel order and range.
        std: per channel, in the network's own channel order and range.
        order: ``"rgb"`` or ``"bgr"`` (three channels only).
        range: the largest value of the input before the mean is taken off: 1.0 or 255.0.
        size: (height, width) the network was trained at, or None. Information, not enforced.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    order: str = "rgb"
    range: float = 1.0
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        # YAML and JSON give lists.
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        if self.size is not None:
            object.__setattr__(self, "size", (int(self.size[0]), int(self.size[1])))
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"input mean has {len(self.mean)} values and std {len(self.std)}: give one of each per channel"
            )
        if any(s <= 0 for s in self.std):
            raise ValueError(f"input std must be positive, got {self.std}")
        if self.order not in ("rgb", "bgr"):
            raise ValueError(f"input order is {self.order!r}; expected 'rgb' or 'bgr'")
        if self.order == "bgr" and len(self.mean) != 3:
            raise ValueError(f"input order 'bgr' needs 3 channels, mean has {len(self.mean)}")

    @property
    def channels(self) -> int:
        return len(self.mean)

    def constants(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std, (1, C, 1, 1), as `like` in dtype and device."""
        return (
            like.new_tensor(self.mean).view(1, -1, 1, 1),
            like.new_tensor(self.std).view(1, -1, 1, 1),
        )

    def normalize(self, images: Tensor, constants: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(N, C, H, W) float RGB in [0, 1] -> the network's own input.

        Args:
            constants: what `constants` gave, kept on the device: made anew, they are two copies to it that wait.
        """
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ValueError(
                f"images have shape {tuple(images.shape)}; this network takes (N, {self.channels}, H, W). "
                "Set in_channels and the input's mean and std to match the data."
            )
        if self.order == "bgr":
            images = images.flip(1)
        mean, std = self.constants(images) if constants is None else constants
        return (images * self.range - mean) / std

    def fill(self) -> tuple[int, ...]:
        """The uint8 RGB colour that becomes (nearly) zero after `normalize`: what padding is made of."""
        mean = self.mean[::-1] if self.order == "bgr" else self.mean
        return tuple(min(255, max(0, round(m * 255 / self.range))) for m in mean)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


# One map, or one a level of a feature pyramid, fine to coarse.
Maps = Tensor | list[Tensor]


@dataclass
class DenseOutput:
    """What a tapped network returns, whatever it is underneath.

    Attributes:
        prediction: logits (N, K, h, w), depth (N, 1, h, w), depth-bin logits (N, B, h, w), `DetectorOutput`, or
            `SetPrediction`.
        aux: auxiliary logits, or None.
        features: tapped tensors by the name they were asked for under; a list where a tap asks for all levels of a
            pyramid (``"fpn:*"``).
    """

    prediction: Any
    aux: Tensor | None = None
    features: dict[str, Maps] = field(default_factory=dict)


@dataclass
class DetectorOutput:
    """What a detector's heads say, before any assignment, threshold or NMS; the same in training and evaluation.

    A is the number of anchors a location (FCOS: 1), K the number of classes; one entry a level, fine to coarse.

    Attributes:
        logits: (N, A * K, h, w) class logits, anchor-major: channel a * K + k.
        boxes: (N, A * 4, h, w), in the detector's own coding.
        centerness: (N, 1, h, w) logits (FCOS), or None.
        anchors: (h * w * A, 4) XYXY in pixels of the input, location-major.
        kind: ``"fcos"``, ``"retinanet"`` or ``"ssd"``: whose rules assign and decode. SSD has as many logits more: the
            first of each anchor's is the background's, and a softmax goes over them.
    """

    logits: list[Tensor]
    boxes: list[Tensor]
    centerness: list[Tensor] | None
    anchors: list[Tensor]
    kind: str


@dataclass
class SetPrediction:
    """What a detector of the DETR family says: a set of boxes. An entry of it is a query, and no place in the image.

    Attributes:
        logits: (N, Q, K), a yes or no of each class (RT-DETR, D-FINE, Deformable DETR).
        boxes: (N, Q, 4) centre x, centre y, width, height as shares of the image.
    """

    logits: Tensor
    boxes: Tensor


class DecodedBoxes(NamedTuple):
    """The boxes of all places of a batch, before any threshold or NMS: what an exported detector gives.

    Attributes:
        boxes: (N, P, 4) XYXY in pixels of the input, inside it.
        scores: (N, P, K) in [0, 1].
        levels: (P,) int64, the pyramid's level of each place.
        kind: as in `DetectorOutput`.
    """

    boxes: Tensor
    scores: Tensor
    levels: Tensor
    kind: str


class FinalBoxes(NamedTuple):
    """The boxes of a batch after NMS, best first: what an exported detector with its decoding gives.

    Attributes:
        boxes: (N, D, 4) XYXY in pixels of the input, inside it.
        scores: (N, D) in [0, 1]; 0 where an image has fewer than D boxes.
        labels: (N, D) int64; -1 there.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Feature:
    """A tensor a network offers for tapping: module path, channels, stride against the input."""

    path: str
    channels: int
    stride: int


_BOX_FIELDS = ("boxes", "labels", "ignored", "areas")  # the tensors of `Boxes`


@dataclass
class Boxes:
    """The objects of one image.

    Attributes:
        boxes: (n, 4) float32 XYXY in pixels of the image as it is in the batch; x1 > x0 and y1 > y0.
        labels: (n,) int64 class indices.
        ignored: (n,) bool: crowds (COCO) and difficult objects (VOC), neither learned from nor counted in a score.
        areas: (n,) float32, in pixels: of the object's mask where it is known (COCO), else of the box.
        image_id: of the annotation file, for ``results.json``.
        size: (height, width) of the image without the batch's padding.
    """

    boxes: Tensor
    labels: Tensor
    ignored: Tensor
    areas: Tensor
    image_id: int
    size: tuple[int, int]

    def to(self, device: torch.device) -> Boxes:
        return Boxes.all_to([self], device)[0]

    @staticmethod
    def all_to(images: Sequence[Boxes], device: torch.device) -> list[Boxes]:
        """Those of a batch on `device`, in one copy of all their bytes."""
        if all(getattr(image, name).device == device for image in images for name in _BOX_FIELDS):
            return list(images)
        tensors = [
            (i, name, getattr(x, name)) for i, x in enumerate(images) for name in _BOX_FIELDS
        ]
        # Wide types first, so that each begins at a multiple of its type's size.
        tensors.sort(key=lambda entry: -entry[2].element_size())
        flat = [tensor.contiguous().view(-1).view(torch.uint8) for _, _, tensor in tensors]
        packed = torch.cat(flat)
        if device.type == "cuda" and packed.device.type == "cpu":
            packed = packed.pin_memory()  # else the host waits for the copy
        there = packed.to(device, non_blocking=True).split([len(part) for part in flat])
        moved: list[dict[str, Any]] = [{} for _ in images]
        for (i, name, tensor), part in zip(tensors, there, strict=True):
            moved[i][name] = part.view(tensor.dtype).view(tensor.shape)
        return [replace(image, **fields) for image, fields in zip(images, moved, strict=True)]


@dataclass
class Detections:
    """What was found in one image, best first.

    Attributes:
        boxes: (m, 4) float32 XYXY in pixels of the image as it is in the batch, inside it.
        scores: (m,) in [0, 1].
        labels: (m,) int64 class indices.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@dataclass
class DepthMaps:
    """True depth of a batch.

    Attributes:
        depth: (N, 1, H, W) float32 metres along the optical axis; 0 where unknown.
        intrinsics: (N, 4) float32 fx, fy, cx, cy in pixels of the image as it is in the batch; NaN where unknown.
    """

    depth: Tensor
    intrinsics: Tensor

    def to(self, device: torch.device) -> DepthMaps:
        return DepthMaps(
            self.depth.to(device, non_blocking=True), self.intrinsics.to(device, non_blocking=True)
        )


class SampleKey(NamedTuple):
    """What an augmented sample is known by: its image and target are a function of it.

    Attributes:
        epoch: the epoch that its augmentation is drawn for.
        index: its number in its set.
        source: the number of its set among those that are trained on; 0 for the first or only one.
    """

    epoch: int
    index: int
    source: int = 0


@dataclass
class Batch:
    """One batch. A loader's images are uint8 and its class maps of few bits; `to` moves them and makes them float in
    [0, 1] and int64.

    Attributes:
        images: (N, C, H, W), RGB.
        targets: as their kind of truth has them: class maps (N, H, W) class indices with ignore_index, int64 after
            `to`; boxes a list of `Boxes`, one an image; depth `DepthMaps`.
        labelled: (N,) bool, False where an image came without a label (its target is all ignore_index).
        inside: (N, H, W) bool, False where the pixel is padding.
        names: one a sample, to name it in messages.
        keys: one a sample; None for a sample without a key (it stands in for an unreadable file, or is evaluated).
    """

    images: Tensor
    targets: Any
    labelled: Tensor
    inside: Tensor
    names: list[str]
    keys: list[SampleKey | None] = field(default_factory=list)

    @classmethod
    def of(cls, images: Tensor, targets: Any) -> Batch:
        """A batch of a loader of your own: every image has its label and no padding.

        Args:
            images: (N, C, H, W), RGB, float in [0, 1] (or uint8, which `to` makes so).
            targets: of all N images, on the same device.
        """
        n, _, height, width = images.shape
        return cls(
            images=images,
            targets=targets,
            labelled=torch.ones(n, dtype=torch.bool, device=images.device),
            inside=torch.ones(n, height, width, dtype=torch.bool, device=images.device),
            names=[""] * n,
        )

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def to(self, device: torch.device, channels_last: bool = False) -> Batch:
        images = self.images.to(device, non_blocking=True)
        if images.dtype == torch.uint8:
            images = images.float().div_(255.0)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        targets = moved(self.targets, device)
        if isinstance(targets, Tensor) and targets.dtype in (torch.uint8, torch.int16, torch.int32):
            targets = targets.long()
        return Batch(
            images=images,
            targets=targets,
            labelled=self.labelled.to(device, non_blocking=True),
            inside=self.inside.to(device, non_blocking=True),
            names=self.names,
            keys=self.keys,
        )


def moved(targets: Any, device: torch.device) -> Any:
    """Targets of any kind on `device`; what cannot move stays as it is."""
    if isinstance(targets, Tensor):
        return targets.to(device, non_blocking=True)
    if isinstance(targets, list) and targets and all(isinstance(t, Boxes) for t in targets):
        return Boxes.all_to(targets, device)
    if isinstance(targets, list):
        return [moved(target, device) for target in targets]
    return targets.to(device) if hasattr(targets, "to") else targets
