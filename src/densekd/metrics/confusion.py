"""Per-class IoU, mIoU and pixel accuracy from one confusion matrix over a whole data set.

The matrix is counted over all pixels of all images and divided once at the end, as Cityscapes, ADE20K and VOC do
(a mean of per-image IoUs is another number). Counts are integers, so they add up exactly over ranks and batches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from densekd.ops.collectives import all_reduce_sum

# The largest table of all pairs of values that counting uses: labels up to 255 for up to 1024 classes.
TABLE = 2**18
# Others (floats, torch's wider unsigned types, which know few operations) are counted as int64.
COUNTED = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class ConfusionMatrix:
    """Counts of (true class, predicted class).

    Args:
        num_classes: K.
        ignore_index: pixels with this label do not count, whatever was predicted.
        device: the device of the first counts; `update` moves them to its tensors' device. A rank that counts nothing
            still takes part in the sum over ranks, for which NCCL needs its counts on its GPU.
    """

    def __init__(
        self, num_classes: int, ignore_index: int = 255, *, device: torch.device | str = "cpu"
    ) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; expected at least 1")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        # A row is a true class.
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add class maps of one shape, (N, H, W) or (H, W), of any integer dtype; small dtypes are counted the fastest.

        Raises:
            ValueError: shapes differ, or a value is outside the classes. Labels may also be ignore_index, and the
                prediction there may have any value.
        """
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction has shape {tuple(prediction.shape)} and target {tuple(target.shape)}; "
                "resize the logits to the label's size before the argmax"
            )
        if target.numel() == 0:
            return
        guess, truth = (x if x.dtype in COUNTED else x.long() for x in (prediction, target))
        counts = self._count(guess, truth)
        if counts is None:
            counted = truth != self.ignore_index
            guess, truth = guess[counted], truth[counted]
            if truth.numel() == 0:
                return
            self._check(guess, truth)
            counts = self._count(guess, truth)
            assert counts is not None
        self.counts = self.counts.to(counts.device) + counts

    def _count(self, guess: Tensor, truth: Tensor) -> Tensor | None:
        """(K, K); None where some values do not count, or lie too far apart for a table of all of them.

        The table has a row for every label up to the largest, ignore_index included, so that one pass is enough.
        """
        k = self.num_classes
        ends = [end.long() for x in (guess, truth) for end in x.aminmax()]
        low_guess, high_guess, low, high = torch.stack(ends).tolist()
        low = min(low, 0)
        height, width = max(high + 1, k) - low, max(high_guess + 1, k)
        if low_guess < 0 or height * width > max(TABLE, k * k):
            return None
        kind = torch.int16 if height * width <= 2**15 else torch.int32
        index = truth.to(kind, copy=True)
        if low < 0:
            index -= low
        index = index.mul_(width).add_(guess.to(kind)).flatten()
        table = torch.bincount(index, minlength=height * width).view(height, width)
        if low <= self.ignore_index < low + height:
            table[self.ignore_index - low] = 0
        counts = table[-low : k - low, :k]
        return counts if counts.sum() == table.sum() else None

    def _check(self, guess: Tensor, truth: Tensor) -> None:
        """Raise ValueError for values outside of the classes."""
        k = self.num_classes
        for name, values in (("target", truth), ("prediction", guess)):
            low, high = int(values.min()), int(values.max())
            if low < 0 or high >= k:
                raise ValueError(
                    f"{name} has values {low} to {high}; expected 0 to {k - 1}"
                    + (f" or ignore_index {self.ignore_index}" if name == "target" else "")
                )

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
