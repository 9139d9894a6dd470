"""Per-class IoU, mIoU and pixel accuracy from one confusion matrix over a whole data set.

The matrix is counted over all pixels of all images and divided once at the end, as Cityscapes, ADE20K and VOC do
(a mean of per-image IoUs is another number). Counts are integers, so they add up exactly over ranks and batches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from densekd.ops.collectives import all_reduce_sum


class ConfusionMatrix:
    """Counts of (true class, predicted class).

    Args:
        num_classes: K.
        ignore_index: pixels with this label do not count, whatever was predicted.
        device: where the counts begin; `update` moves them to its tensors. A rank that is given nothing to count can
            only be summed where the others are, which NCCL wants on its GPU.
    """

    def __init__(
        self, num_classes: int, ignore_index: int = 255, *, device: torch.device | str = "cpu"
    ) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; expected at least 1")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        # row: truth
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add class maps of one shape, (N, H, W) or (H, W), any integer dtype.

        Raises:
            ValueError: shapes differ, or a value is outside the classes (labels may also be ignore_index).
        """
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction has shape {tuple(prediction.shape)} and target {tuple(target.shape)}; "
                "resize the logits to the label's size before the argmax"
            )
        k = self.num_classes
        valid = target != self.ignore_index
        truth = target[valid].long()
        guess = prediction[valid].long()
        if truth.numel() == 0:
            return
        for name, values in (("target", truth), ("prediction", guess)):
            low, high = int(values.min()), int(values.max())
            if low < 0 or high >= k:
                raise ValueError(
                    f"{name} has values {low} to {high}; expected 0 to {k - 1}"
                    + (f" or ignore_index {self.ignore_index}" if name == "target" else "")
                )
        counts = torch.bincount(truth * k + guess, minlength=k * k).view(k, k)
        self.counts = self.counts.to(counts.device) + counts

    def reduce(self) -> ConfusionMatrix:
        """Sum over ranks, in place. Call once, after the last update."""
        all_reduce_sum(self.counts)
        return self

    def iou(self) -> Tensor:
        """(K,) float64 intersection over union; NaN for a class in neither truth nor prediction."""
        counts = self.counts.double()
        hit = counts.diagonal()
        union = counts.sum(0) + counts.sum(1) - hit
        return torch.where(union > 0, hit / union, torch.nan)

    def miou(self) -> float:
        """Mean IoU over the classes that occur; NaN when nothing was counted."""
        return float(self.iou().nanmean())

    def pixel_accuracy(self) -> float:
        """Fraction of counted pixels that are right; NaN when nothing was counted."""
        total = int(self.counts.sum())  # exact: a quotient of integer tensors would be float32
        return int(self.counts.diagonal().sum()) / total if total else float("nan")
