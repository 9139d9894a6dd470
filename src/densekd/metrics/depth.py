"""The field's errors of depth maps: each error over the valid pixels of an image, then the mean over images.

Source: Eigen et al. (NeurIPS 2014) for the errors and crops, KITTI's depth devkit for SILog.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from densekd.ops.collectives import all_reduce_sum, is_distributed

ERRORS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog", "delta1", "delta2", "delta3")
ALIGNMENTS = ("median", "least_squares")
# top, bottom, left, right as fractions of the image.
CROPS = {
    # Rows 45 to 470 and columns 41 to 600 of 480 x 640: what Eigen et al. score of NYUv2.
    "nyu_eigen": (45 / 480, 471 / 480, 41 / 640, 601 / 640),
    "kitti_eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
}


def crop_box(crop: str, height: int, width: int) -> tuple[int, int, int, int]:
    """top, bottom, left, right (ends excluded) of a crop by name, in proportion to the image (rounded down)."""
    top, bottom, left, right = CROPS[crop]
    # 45 / 480 * 480 may come out below 45.
    rows = [int(f * height + 1e-6) for f in (top, bottom)]
    columns = [int(f * width + 1e-6) for f in (left, right)]
    return rows[0], rows[1], columns[0], columns[1]


class DepthMetrics:
    """Depth errors, averaged over images.

    With p the prediction, t the truth and d = log p - log t, means over the valid pixels of an image:
    ``abs_rel`` |p - t| / t, ``sq_rel`` (p - t)² / t, ``rmse`` √(p - t)², ``rmse_log`` √d², ``log10`` |log₁₀ p - log₁₀
    t|, ``silog`` 100 · √(mean d² - (mean d)²) as KITTI has it (the standard deviation of d, in per cent), and
    ``delta1`` to ``delta3``, the fraction with max(p / t, t / p) below 1.25, 1.25², 1.25³. Metres and natural
    logarithms.

    A pixel is valid where its truth is finite, within [min_depth, max_depth] and inside the crop. A prediction is
    clamped to that range (NaN becomes min_depth), after the alignment.

    Args:
        min_depth, max_depth: metres.
        crop: None, ``"nyu_eigen"``, ``"kitti_eigen"`` or ``"garg"``, in proportion to the image: NYUv2's box is exact
            at 480x640 and scaled at other sizes.
        align: None; ``"median"``, which scales a prediction so that its median is the truth's; or ``"least_squares"``,
            which fits scale and shift of depth to the truth. They are for networks that know depth up to such a factor:
            scores with an alignment use the truth, and compare only with others of the same kind.
        device: the device on which the sums are joined over ranks (NCCL needs its GPU); errors are computed on the CPU,
            since not every device (Apple's MPS) has float64.

    Raises:
        ValueError: a name is unknown, or the range is not valid.
    """

    def __init__(
        self,
        min_depth: float,
        max_depth: float,
        crop: str | None = None,
        align: str | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 0 < min_depth < max_depth:
            raise ValueError(
                f"min_depth is {min_depth} and max_depth {max_depth}; expected 0 < min_depth < max_depth"
            )
        for name, value, choices in (("crop", crop, tuple(CROPS)), ("align", align, ALIGNMENTS)):
            if value is not None and value not in choices:
                raise ValueError(
                    f"{name} is {value!r}; choose None or one of {', '.join(map(repr, choices))}"
                )
        self.min_depth = float(min_depth)
        self.max_depth = float(max_depth)
        self.crop = crop
        self.align = align
        self.device = torch.device(device)
        # The sums of ERRORS over images, then the numbers of images and pixels.
        self.sums = torch.zeros(len(ERRORS) + 2, dtype=torch.float64)

    def update(
        self, prediction: Tensor, target: Tensor, sizes: Sequence[tuple[int, int]] | None = None
    ) -> None:
        """Add a batch; an image without a valid pixel does not count.

        Args:
            prediction: (N, 1, H, W) metres.
            target: (N, 1, H, W) metres, 0 where unknown.
            sizes: (height, width) of each image without padding at the bottom and right; the crop is relative to it.

        Raises:
            ValueError: shapes differ.
        """
        if prediction.shape != target.shape or prediction.ndim != 4 or prediction.shape[1] != 1:
            raise ValueError(
                f"prediction has shape {tuple(prediction.shape)} and target {tuple(target.shape)}; expected depth "
                "(N, 1, H, W) of one size: resize the prediction to the target first"
            )
        for i in range(prediction.shape[0]):
            height, width = sizes[i] if sizes is not None else target.shape[-2:]
            self._add(prediction[i, 0, :height, :width], target[i, 0, :height, :width])

    def _add(self, prediction: Tensor, target: Tensor) -> None:
        if self.crop is not None:
            top, bottom, left, right = crop_box(self.crop, *target.shape)
            prediction, target = (x[top:bottom, left:right] for x in (prediction, target))
        valid = target.isfinite() & (target >= self.min_depth) & (target <= self.max_depth)
        t = target[valid].cpu().double()
        if t.numel() == 0:
            return
        p = prediction[valid].cpu().double().nan_to_num(nan=self.min_depth)
        p = aligned(p, t, self.align).clamp(self.min_depth, self.max_depth)
        d = p.log() - t.log()
        ratio = torch.maximum(p / t, t / p)
        error = p - t
        values = [
            (error.abs() / t).mean(),
            (error.square() / t).mean(),
            error.square().mean().sqrt(),
            d.square().mean().sqrt(),
            (p.log10() - t.log10()).abs().mean(),
            100 * (d - d.mean()).square().mean().sqrt(),
            *((ratio < 1.25**k).double().mean() for k in (1, 2, 3)),
        ]
        row = torch.stack([*values, t.new_tensor(1.0), t.new_tensor(float(t.numel()))])
        self.sums += row

    def reduce(self) -> DepthMetrics:
        """Sum over ranks, in place. Call once, after the last update."""
        if is_distributed():
            self.sums = all_reduce_sum(self.sums.to(self.device)).cpu()
        return self

    def compute(self) -> dict[str, Any]:
        """The errors (None when nothing was counted), ``images`` and ``pixels`` counted, and the settings."""
        sums = self.sums.tolist()
        images = sums[-2]
        means = {
            name: value / images if images else None
            for name, value in zip(ERRORS, sums[: len(ERRORS)], strict=True)
        }
        return {
            **means,
            "images": int(images),
            "pixels": int(sums[-1]),
            "min_depth": self.min_depth,
            "max_depth": self.max_depth,
            "crop": self.crop,
            "align": self.align,
        }


def aligned(prediction: Tensor, target: Tensor, how: str | None) -> Tensor:
    """Flat predictions scaled (``"median"``) or scaled and shifted (``"least_squares"``) to flat targets."""
    if how == "median":
        # The mean of the middle two where there are two, as in numpy; torch.median takes the lower one.
        return prediction * (middle(target) / middle(prediction).clamp(min=1e-12))
    if how == "least_squares":
        p, t = prediction - prediction.mean(), target - target.mean()
        spread = p.square().sum()
        # A flat prediction has no scale to fit, so only the shift is fitted.
        scale = torch.where(spread > 0, (p * t).sum() / spread.clamp(min=1e-12), 0.0)
        return scale * p + target.mean()
    return prediction


def middle(x: Tensor) -> Tensor:
    """The median; `torch.quantile` has a limit on its size."""
    ordered = x.sort().values
    return (ordered[(len(x) - 1) // 2] + ordered[len(x) // 2]) / 2
