"""Depth: metres (N, 1, h, w), or logits of depth bins (N, B, h, w), against `DepthMaps`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import cv2
import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from typing_extensions import Doc

from densekd.losses._checks import full_precision
from densekd.losses.berhu import BerHu
from densekd.losses.depth_cross_entropy import DepthCrossEntropy
from densekd.losses.depth_l1 import DepthL1
from densekd.losses.silog import SiLog
from densekd.losses.virtual_normal import VirtualNormal
from densekd.metrics.depth import DepthMetrics
from densekd.ops.depth_bins import bins_to_depth, check_range
from densekd.ops.resize import resize_labels, resize_map
from densekd.ops.tiling import Views, predict_dense
from densekd.targets import DepthTarget
from densekd.tasks.base import Column
from densekd.types import Batch, DenseOutput, DepthMaps

LOSSES = ("cross_entropy", "virtual_normal", "silog", "berhu", "l1")
# Of the constant guess: rows it tells apart, and columns it looks at in each.
GUESS_ROWS, GUESS_COLUMNS = 32, 64


class Depth:
    """What the engine asks of a task, for depth.

    A true depth counts where it is finite and within [min_depth, max_depth]; everywhere else neither loss nor score
    looks. Maps are compared at the target's size: logits of bins are resized there for the cross-entropy; for every
    other loss and for scores the network's depth is (decoded, where there are bins, and then) resized.

    The signature says what the arguments are. Losses of weight 0 are left out; `crop` and `align` are those of
    `DepthMetrics`.

    Raises:
        ValueError: a range that is none, unknown losses, or losses that do not go with the network's form.
    """

    name = "depth"
    target = DepthTarget
    metric_names = ("abs_rel", "rmse", "silog", "delta1")
    smaller_is_better = frozenset({"abs_rel", "rmse", "silog"})
    quick_metric = "delta1"
    columns = (
        Column("abs_rel", "AbsRel", 1, 3),
        Column("rmse", "RMSE m", 1, 3),
        Column("delta1", "δ<1.25", 100, 2),
    )
    map_names = ("depth",)
    holistic_channels = 1
    holistic_activation = "none"

    def __init__(
        self,
        *,
        min_depth: Annotated[
            float, Gt(0), Doc("metres; a true depth outside the range counts nowhere")
        ] = 0.1,
        max_depth: Annotated[
            float, Gt(0), Doc("metres; predictions are clamped to the range when they are scored")
        ] = 10.0,
        bins: Annotated[
            int,
            Ge(0),
            Doc("the network gives logits of so many bins, equal in log depth; 0: it gives metres"),
        ] = 0,
        losses: Annotated[
            Mapping[str, Annotated[float, Ge(0)]] | None,
            Doc(
                "weights of cross_entropy (bins only), virtual_normal (needs intrinsics), silog, berhu and l1; null: "
                "with bins {cross_entropy: 1, virtual_normal: 6} as in the code of VNL, else {silog: 1} as in BTS"
            ),
        ] = None,
        crop: Annotated[
            Literal["nyu_eigen", "kitti_eigen", "garg"] | None, Doc("the region that is scored")
        ] = None,
        align: Annotated[
            Literal["median", "least_squares"] | None,
            Doc("how a prediction is scaled to the truth when it is scored"),
        ] = None,
        virtual_normal_samples: Annotated[
            float,
            Gt(0),
            Doc("point triples of an image: a share of its pixels in (0, 1], or a count"),
        ] = 0.15,
    ) -> None:
        if losses is None:
            losses = {"cross_entropy": 1.0, "virtual_normal": 6.0} if bins else {"silog": 1.0}
        check_losses(losses, bins)
        self.range = (float(min_depth), float(max_depth))
        check_range(self.range, bins or 2)
        self.bins = bins
        self.losses = {name: float(weight) for name, weight in losses.items() if weight > 0}
        self.crop = crop
        self.align = align
        self.classes: list[str] = []
        self.network_arguments = {"num_classes": bins or 1, "depth_range": self.range}
        self.term_options = {"pixel_wise": {"form": "softmax" if bins else "regression"}}
        self.terms: dict[str, nn.Module] = {
            "cross_entropy": DepthCrossEntropy(depth_range=self.range),
            "virtual_normal": VirtualNormal(samples=virtual_normal_samples),
            "silog": SiLog(),
            "berhu": BerHu(),
            "l1": DepthL1(),
        }
        self.metric()  # crop and align are checked now, not after the training

    def check_output(self, output: DenseOutput, who: str) -> None:
        """Raise ValueError unless the prediction is (N, bins or 1, h, w); a teacher may always give 1."""
        shape = getattr(output.prediction, "shape", None)
        channels = self.bins or 1
        # A teacher of depth itself has a map of depth, which a student with bins has too.
        fits = (channels,) if who == "student" else (channels, 1)
        if shape is None or len(shape) != 4 or shape[1] not in fits:
            form = f"depth with {self.bins} bins" if self.bins else "depth without bins"
            raise ValueError(
                f"the {who}'s prediction has shape {None if shape is None else tuple(shape)}; "
                f"{form} expects (N, {channels}, h, w)"
            )

    def loss(self, output: DenseOutput, batch: Batch) -> dict[str, Tensor]:
        """Weighted supervised terms; images without labels count nothing."""
        target: Tensor = batch.targets.depth
        mask = self.valid(batch)
        depth = None
        if set(self.losses) != {"cross_entropy"}:
            depth = resize_map(self.decode(output.prediction), target.shape[-2:])
        terms = {}
        for name, weight in self.losses.items():
            term = self.terms[name]
            if name == "cross_entropy":
                value = term(output.prediction, target, mask=mask)
            elif name == "virtual_normal":
                value = term(depth, target, batch.targets.intrinsics, mask=mask)
            else:
                value = term(depth, target, mask=mask)
            terms[f"task/{name}"] = weight * value
        return terms

    def valid(self, batch: Batch) -> Tensor:
        """(N, H, W) bool: the pixels whose depth is known and in range."""
        depth = batch.targets.depth[:, 0]
        low, high = self.range
        # NaN compares false.
        in_range = (depth >= low) & (depth <= high)
        return in_range & batch.inside & batch.labelled[:, None, None]

    def mask(self, batch: Batch, kind: str) -> Tensor | None:
        """(N, H, W) bool: which pixels distillation compares.

        ``"label"``: pixels with valid depth, and every pixel inside an image that has none at all; ``"padding"``: every
        pixel inside its image; ``"none"``: no mask.
        """
        if kind == "none":
            return None
        if kind == "padding":
            return batch.inside
        return self.valid(batch) | (batch.inside & ~batch.labelled[:, None, None])

    def decode(self, prediction: Tensor) -> Tensor:
        """Bin logits (N, B, h, w) -> metres (N, 1, h, w); metres as they are (scores clamp them).

        An exported file and networks of other libraries give metres where ours gives bins.
        """
        has_bins = self.bins and prediction.shape[1] > 1
        return bins_to_depth(prediction, self.range) if has_bins else prediction

    def map(self, output: DenseOutput, name: str = "prediction") -> Tensor:
        """``"prediction"``: bin logits or metres, as the network gives them; ``"depth"``: metres (N, 1, h, w)."""
        if name == "depth":
            return self.decode(output.prediction)
        return output.prediction

    def confidence(self, output: DenseOutput) -> Tensor:
        """(N, 1, h, w): the probability of the most likely bin; ones without bins, where the network does not say."""
        if self.bins:
            return output.prediction.float().softmax(1).amax(1, keepdim=True)
        return torch.ones_like(output.prediction)

    def holistic_map(self, output: DenseOutput) -> Tensor:
        """(N, 1, h, w): log depth, 0 at min_depth and 1 at max_depth."""
        return self.place(full_precision(self.decode(output.prediction)))

    def place(self, depth: Tensor) -> Tensor:
        """Metres -> [0, 1] in log depth; beyond the range, the end of it."""
        low, high = (math.log(v) for v in self.range)
        return (depth.clamp(*self.range).log() - low) / (high - low)

    def predict(self, network: nn.Module, batch: Batch, views: Views) -> Tensor:
        """(N, 1, H, W) float32 metres at the size of the batch's images.

        Each view is decoded at the network's resolution and then resized; several views are averaged in metres. As in
        training, a scale (not `short_side`) stands for coming nearer: what is d metres away looks d / scale away, so
        depth seen at a scale is multiplied by it.
        """
        metres = [
            scale
            * predict_dense(
                lambda images: self.decode(network(images).prediction),
                batch.images,
                (batch.images.shape[-2], batch.images.shape[-1]),
                replace(views, scales=(scale,)),
                average=lambda depth: depth,
            )
            for scale in views.scales
        ]
        return torch.stack(metres).mean(0)

    def metric(self, device: torch.device | str = "cpu") -> DepthMetric:
        """Sums of its own; `device` is that of the predictions."""
        return DepthMetric(self, DepthMetrics(*self.range, self.crop, self.align, device=device))

    def constant_guess(self, targets: Iterable[Any]) -> Tensor:
        """(GUESS_ROWS,) metres: the median training depth of each height in the image.

        By rows, since in rooms and streets alike the floor is near and at the bottom: a stronger guess than one median.

        Args:
            targets: of the training set; each has ``.depth`` (H, W), or is a tuple that begins with one that has.
        """
        low, high = self.range
        rows = []
        for target in targets:
            target = target[0] if isinstance(target, tuple) else target
            depth = torch.as_tensor(np.asarray(target.depth, np.float32))
            rows.append(resize_labels(depth[None], (GUESS_ROWS, GUESS_COLUMNS))[0])
        if not rows:
            raise ValueError("no training targets to guess from")
        seen = torch.cat(rows, dim=1)  # (GUESS_ROWS, all columns)
        seen = seen.where((seen >= low) & (seen <= high), torch.nan)
        # A height at which nothing was ever measured takes the median of all.
        return seen.nanmedian(dim=1).values.nan_to_num(nan=float(seen.nanmedian()))

    def guess(self, constant: Tensor, batch: Batch) -> Tensor:
        """(N, 1, H, W) metres: the rows' medians, interpolated to the images' height."""
        n, _, height, width = batch.images.shape
        rows = resize_map(constant.float().view(1, 1, -1, 1), (height, 1))
        return rows.to(batch.images.device).expand(n, 1, height, width)

    def example_targets(self, n: int, size: tuple[int, int], device: torch.device) -> DepthMaps:
        """Depth that falls from the top row to the bottom one, seen by a camera of 60° or so, and a hole in it."""
        height, width = size
        low, high = self.range
        place = torch.linspace(0.9, 0.1, height, device=device)
        rows = (math.log(low) + place * (math.log(high) - math.log(low))).exp()
        depth = rows.view(1, 1, height, 1).repeat(n, 1, 1, width)
        depth[..., : height // 8, : width // 8] = 0.0
        camera = [0.9 * width, 0.9 * width, (width - 1) / 2, (height - 1) / 2]
        return DepthMaps(depth, torch.tensor(camera, device=device).repeat(n, 1))

    def picture(self, image: np.ndarray, answer: Any) -> np.ndarray:
        """(H, W, 3) uint8 RGB of the image's size: log depth in colours, near red and far blue, unknown black.

        Args:
            image: (H, W, C).
            answer: has ``.depth`` (h, w), as a reader's target does, or a (1, h, w) or (h, w) map of metres.
        """
        depth = torch.as_tensor(getattr(answer, "depth", answer)).detach().cpu().float()
        depth = resize_labels(depth.reshape(1, *depth.shape[-2:]), image.shape[:2])[0]
        known = (depth.isfinite() & (depth > 0)).numpy()
        near = 1 - self.place(depth.nan_to_num(nan=self.range[0]))
        colours = cv2.applyColorMap((near * 255).round().byte().numpy(), cv2.COLORMAP_TURBO)
        return np.ascontiguousarray(colours[..., ::-1]) * known[..., None].astype(np.uint8)

    def summary(self, scores: Mapping[str, Any]) -> list[str]:
        """Lines for people, the main score last."""
        if not scores["images"]:
            return ["no image has a known depth to score", "AbsRel -"]
        how = f"{scores['min_depth']:g} to {scores['max_depth']:g} m"
        how += f", crop {scores['crop']}" if scores["crop"] else ""
        how += f", aligned by {scores['align']}" if scores["align"] else ""
        deltas = ", ".join(f"{100 * scores[f'delta{k}']:.2f} %" for k in (1, 2, 3))
        return [
            f"{scores['images']} images, {scores['pixels']} pixels, {how}",
            f"within 1.25, 1.25², 1.25³: {deltas}",
            f"RMSE {scores['rmse']:.3f} m, RMSE log {scores['rmse_log']:.3f}, log10 {scores['log10']:.3f}, "
            f"SqRel {scores['sq_rel']:.3f}, SILog {scores['silog']:.2f}",
            f"AbsRel {scores['abs_rel']:.4f}",
        ]


def check_losses(losses: Mapping[str, float], bins: int) -> None:
    if unknown := sorted(set(losses) - set(LOSSES)):
        raise ValueError(
            f"depth has no loss {unknown[0]!r}; choose of {', '.join(LOSSES)}, each with its weight"
        )
    if not losses or not any(weight > 0 for weight in losses.values()):
        raise ValueError(f"losses are {dict(losses)}; depth needs one with a weight above 0")
    if not all(0 <= weight < math.inf for weight in losses.values()):
        raise ValueError(f"losses are {dict(losses)}; weights are finite numbers from 0 up")
    if losses.get("cross_entropy") and not bins:
        raise ValueError(
            "the loss cross_entropy needs depth bins: set bins (VNL: 150), or take silog, berhu or l1"
        )


class DepthMetric:
    """`DepthMetrics` over batches and ranks."""

    def __init__(self, task: Depth, errors: DepthMetrics) -> None:
        self.task = task
        self.errors = errors

    def update(self, prediction: Tensor, batch: Batch) -> None:
        """Add (N, 1, H, W) metres; images without labels count nothing."""
        target = batch.targets.depth.masked_fill(~self.task.valid(batch)[:, None], 0.0)
        # Padding is at the bottom and right; the crop goes by the image without it.
        heights = batch.inside.any(2).sum(1).tolist()
        widths = batch.inside.any(1).sum(1).tolist()
        self.errors.update(prediction, target, list(zip(heights, widths, strict=True)))

    def compute(self) -> dict[str, Any]:
        """See `DepthMetrics.compute`. Joins all ranks."""
        return self.errors.reduce().compute()
