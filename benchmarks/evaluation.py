"""The cost of evaluation after the network's forward: upsampling, argmax, confusion matrix; and several views.

    python -m benchmarks.evaluation --camvid FOLDER --weights ESPNetC_pixel_pair.pth [--pairs 10] [--dry]

The logits are ESPNet-C's, trained on CamVid, at an eighth of 2048×1024: CamVid's images are 480×360, of which the
middle 480×240 is enlarged. Nineteen classes are made of eleven by repeating eight of them, lowered by 5. Noise is the
worst case: every cell lies on a border. Without --camvid and --weights, and with --dry, the script measures noise
alone. Six views are three scales, mirrored and not; with their forward passes they are measured at 1024×512.

The arms:
    loops: F.interpolate, argmax in NumPy, three counts a class over NumPy arrays
    plain: F.interpolate, argmax, bincount of the labelled pixels
    tuned: the fastest PyTorch code for it that we know: max for argmax, int16, ignored pixels in a bin of their own
    densekd: argmax_map, ConfusionMatrix; int64 labels as in the others
    densekd_uint8: with uint8 labels
and, measured on a part of the pixels only, the counting by a loop over pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import measure
from densekd.data import CamVid
from densekd.metrics import ConfusionMatrix
from densekd.models import Taps, espnet_c, load_weights
from densekd.ops.argmax import argmax_map
from densekd.ops.resize import ALIGN_CORNERS, resize_labels, resize_map
from densekd.ops.tiling import Predict, Views, predict_classes

IGNORED = 255
VIEWS = Views(scales=(0.75, 1.0, 1.25), flip=True)


def upsample(logits: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=ALIGN_CORNERS)


def loops(logits: Tensor, target: Tensor) -> np.ndarray:
    """(3, K): true positives, predicted and true pixels of each class."""
    scores = upsample(logits, target.shape[-2:])[0].cpu().numpy()
    guess = np.argmax(scores, axis=0)
    truth = target[0].cpu().numpy()
    guess = np.where(truth == IGNORED, IGNORED, guess)
    return np.array(
        [
            [np.sum((guess == c) & (truth == c)), np.sum(guess == c), np.sum(truth == c)]
            for c in range(len(scores))
        ]
    ).T


def plain(logits: Tensor, target: Tensor) -> Tensor:
    k = logits.shape[1]
    guess = upsample(logits, target.shape[-2:]).argmax(1)
    known = target != IGNORED
    return torch.bincount(target[known] * k + guess[known], minlength=k * k).view(k, k)


def tuned(logits: Tensor, target: Tensor) -> Tensor:
    k = logits.shape[1]
    guess = upsample(logits, target.shape[-2:]).max(1).indices.to(torch.int16)
    place = torch.where(target == IGNORED, k * k, target.to(torch.int16) * k + guess)
    return torch.bincount(place.flatten(), minlength=k * k + 1)[:-1].view(k, k)


def densekd(logits: Tensor, target: Tensor) -> Tensor:
    matrix = ConfusionMatrix(logits.shape[1], IGNORED)
    matrix.update(argmax_map(logits, target.shape[-2:]), target)
    return matrix.counts


def pixel_loop(guess: np.ndarray, truth: np.ndarray, k: int) -> np.ndarray:
    counts = np.zeros((k, k), np.int64)
    for row in range(truth.shape[0]):
        for column in range(truth.shape[1]):
            if truth[row, column] != IGNORED:
                counts[truth[row, column], guess[row, column]] += 1
    return counts


ARMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "loops": loops,
    "plain": plain,
    "tuned": tuned,
    "densekd": densekd,
    "densekd_uint8": lambda logits, target: densekd(logits, target.byte()),
}


def network(weights: Path) -> Taps:
    net = espnet_c(num_classes=11)
    load_weights(net, weights)
    return Taps(net).eval()


def real_images(folder: Path, size: Sequence[int], count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(1, 3, *size) in [0, 1] and (1, *size) labels, from the middle 480×240 of CamVid's images."""
    reader = CamVid(folder, "val")
    for i in np.linspace(0, len(reader) - 1, count).astype(int):
        sample = reader.read(int(i))
        assert sample.target is not None
        rows = slice(len(sample.image) // 6, -(len(sample.image) // 6))
        image = cv2.resize(sample.image[rows], (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        image = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        target = torch.from_numpy(np.ascontiguousarray(sample.target[rows]))[None]
        yield image, resize_labels(target, size).long()


def nineteen(logits: Tensor) -> Tensor:
    return torch.cat([logits, logits[:, :8] - 5], 1)


def noise(size: Sequence[int], count: int, small: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(0)
    target = torch.randint(0, 19, (1, *small), generator=g)
    return [
        (torch.randn(1, 19, *small, generator=g), resize_labels(target, size)) for _ in range(count)
    ]


def make_cases(
    args: argparse.Namespace, device: torch.device
) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Name -> (logits, target) of some images."""
    if args.dry:
        return {"noise, 19 classes, 16×32": noise((128, 256), 1, (16, 32))}
    cases = {}
    size = (1024, 2048)
    if args.camvid is not None:
        net = network(args.weights).to(device)
        for seen, name in ((size, "128×256"), ((1025, 2049), "129×257")):
            found = []
            targets = [target for _, target in real_images(args.camvid, size, args.images)]
            for (image, _), target in zip(
                real_images(args.camvid, seen, args.images), targets, strict=True
            ):
                with torch.no_grad():
                    found.append((net(image.to(device)).prediction.contiguous(), target.to(device)))
            if seen == size:
                cases[f"CamVid, 11 classes, {name}"] = found
            cases[f"CamVid, 19 classes, {name}"] = [(nineteen(x), y) for x, y in found]
    pairs = noise(size, 1, (128, 256))
    cases["noise, 19 classes, 128×256"] = [(x.to(device), y.to(device)) for x, y in pairs]
    return cases


def border_cells(logits: Tensor) -> float:
    """The share of cells whose four corners do not agree on the top class."""
    top = logits.argmax(1)
    corners = [top[:, :-1, :-1], top[:, :-1, 1:], top[:, 1:, :-1], top[:, 1:, 1:]]
    return 1 - torch.stack([c == corners[0] for c in corners]).all(0).float().mean().item()


def check(logits: Tensor, target: Tensor) -> int:
    """Pixels whose class differs from the plain way's; the counts of all arms must agree."""
    counts = plain(logits, target)
    for form in (tuned, densekd, ARMS["densekd_uint8"]):
        assert torch.equal(form(logits, target).cpu(), counts.cpu())
    assert np.array_equal(loops(logits, target)[0], counts.diagonal().cpu().numpy())
    size = target.shape[-2:]
    return int((argmax_map(logits, size) != upsample(logits, size).argmax(1)).sum())


def pixel_loop_seconds(pair: tuple[Tensor, Tensor], clock: str) -> dict[str, float]:
    """Seconds an image of the loop over pixels, from a 64th of its rows."""
    logits, target = (x.cpu() for x in pair)
    guess, truth = (
        x[0, :: min(64, x.shape[1])].numpy()
        for x in (argmax_map(logits, target.shape[-2:]), target)
    )
    call = partial(pixel_loop, guess, truth, logits.shape[1])
    seconds = measure.timed(call, torch.device("cpu"), clock)
    part = truth.size / target.numel()
    return {"measured_fraction": part, "scaled_seconds": seconds / part}


def measure_case(
    pairs: Sequence[tuple[Tensor, Tensor]], device: torch.device, rounds: measure.Rounds
) -> dict[str, Any]:
    def seconds(form: Callable[[Tensor, Tensor], Any]) -> float:
        def images() -> None:
            for logits, target in pairs:
                form(logits, target)

        return measure.timed(images, device, rounds.clock) / len(pairs)

    # The conversion of labels is not timed: a loader gives uint8.
    bytes_ = [(logits, target.byte()) for logits, target in pairs]

    def uint8() -> float:
        def images() -> None:
            for logits, target in bytes_:
                densekd(logits, target)

        return measure.timed(images, device, rounds.clock) / len(pairs)

    arms = {name: partial(seconds, form) for name, form in ARMS.items()} | {"densekd_uint8": uint8}
    found = rounds.interleaved(arms)
    result = {
        "images": len(pairs),
        "classes": pairs[0][0].shape[1],
        "logits": list(pairs[0][0].shape[-2:]),
        "size": list(pairs[0][1].shape[-2:]),
        "border_cells": [border_cells(logits) for logits, _ in pairs],
        "differing_pixels": sum(check(*pair) for pair in pairs),
        "seconds": {name: measure.spread(values) for name, values in found.items()},
        "times_faster": {
            name: measure.ratio(found[name], found["densekd"]) for name in ("loops", "plain", "tuned")
        },
        "pixel_loop": pixel_loop_seconds(pairs[0], rounds.clock),
        "raw_seconds": found,
    }  # fmt: skip
    result["extra_bytes"] = {
        name: measure.extra_memory(partial(ARMS[name], *pairs[0]), device)
        for name in ("plain", "densekd")
    }
    return result


def whole_views(predict: Predict, images: Tensor, size: tuple[int, int]) -> Tensor:
    """The plain way: each view on its own, each map of full size, kept until all are there."""
    passes = []
    for scaled_size in VIEWS.sizes(*images.shape[-2:]):
        scaled = resize_map(images, scaled_size)
        for flipped in (False, True):
            maps = predict(scaled.flip(-1) if flipped else scaled).float()
            passes.append(resize_map(maps.flip(-1) if flipped else maps, size))
    total = passes[0].softmax(1)
    for maps in passes[1:]:
        total = total + maps.softmax(1)
    return (total / len(passes)).argmax(1)


def ways(image: Tensor) -> dict[str, Callable[[Predict], Tensor]]:
    size = (image.shape[-2], image.shape[-1])
    return {
        "plain": lambda predict: whole_views(predict, image, size),
        "densekd": lambda predict: predict_classes(predict, image, size, VIEWS),
    }


def views_after_forward(
    forward: Predict, image: Tensor, device: torch.device, rounds: measure.Rounds
) -> dict[str, Any]:
    """What comes after the forward passes, which are made once. `extra_bytes` are those of tensors."""
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        out = forward(x)
        kept.extend(out.split(1))
        return out

    def replay() -> Predict:
        maps = iter(kept)
        return lambda x: torch.cat([next(maps) for _ in range(len(x))])

    ways(image)["densekd"](keep)
    calls = {name: lambda way=way: way(replay()) for name, way in ways(image).items()}
    found = rounds.seconds(calls, device)
    extra = {name: measure.extra_memory(call, device)["tensors"] for name, call in calls.items()}
    differing = int((calls["plain"]() != calls["densekd"]()).sum())
    return compared(image, found, extra, differing)


def views_with_forward(
    forward: Predict, image: Tensor, device: torch.device, rounds: measure.Rounds
) -> dict[str, Any]:
    """Everything. `extra_bytes` are by how much the process grows (on a GPU, those of tensors)."""
    calls = {name: lambda way=way: way(forward) for name, way in ways(image).items()}
    differing = int((calls["plain"]() != calls["densekd"]()).sum())  # and warms up
    before = measure.peak_memory(lambda: None, device) or 0
    peaks: dict[str, int | None] = {}

    def watched(name: str) -> float:
        seconds: list[float] = []
        peak = measure.peak_memory(
            lambda: seconds.append(measure.timed(calls[name], device, rounds.clock)), device
        )
        peaks[name] = max(peaks.get(name) or 0, (peak or 0) - before)
        return seconds[0]

    fewer = measure.Rounds(max(2, rounds.pairs // 2), 0, rounds.clock)
    found = fewer.interleaved({name: partial(watched, name) for name in calls})
    return compared(image, found, peaks, differing)


def compared(
    image: Tensor, found: dict[str, list[float]], extra: dict[str, int | None], differing: int
) -> dict[str, Any]:
    return {
        "size": list(image.shape[-2:]),
        "views": VIEWS.count,
        "differing_pixels": differing,
        "seconds": {name: measure.spread(values) for name, values in found.items()},
        "times_faster": measure.ratio(found["plain"], found["densekd"]),
        "extra_bytes": extra,
        "raw_seconds": found,
    }


def as_table(cases: dict[str, dict[str, Any]]) -> str:
    head = ["logits", "border cells", *(f"{name} ms" for name in ARMS)]
    head += [f"{name} / densekd" for name in ("loops", "plain", "tuned")]
    head += ["pixels that differ"]
    rows = [
        [
            name,
            f"{100 * sum(case['border_cells']) / len(case['border_cells']):.0f} %",
            *(f"{1e3 * case['seconds'][arm]['median']:.1f}" for arm in ARMS),
            *(
                measure.with_interval(case["times_faster"][arm], 1)
                for arm in ("loops", "plain", "tuned")
            ),
            str(case["differing_pixels"]),
        ]
        for name, case in cases.items()
    ]
    return measure.table(head, rows)


def views_table(views: dict[str, dict[str, Any]]) -> str:
    head = ["six views", "plain s", "densekd s", "times faster", "plain MiB", "densekd MiB"]
    head += ["pixels that differ"]
    rows = [
        [
            f"{name}, {found['size'][1]}×{found['size'][0]}",
            *(f"{found['seconds'][way]['median']:.2f}" for way in ("plain", "densekd")),
            measure.with_interval(found["times_faster"], 1),
            *(f"{found['extra_bytes'][way] / 2**20:.0f}" for way in ("plain", "densekd")),
            str(found["differing_pixels"]),
        ]
        for name, found in views.items()
    ]
    return measure.table(head, rows)


def main(arguments: list[str] | None = None) -> int:
    parser = measure.make_parser("evaluation", __doc__, pairs=10)
    parser.add_argument("--camvid", type=Path, help="folder of CamVid")
    parser.add_argument("--weights", type=Path, help="of ESPNet-C with CamVid's 11 classes")
    parser.add_argument("--images", type=int, default=2, help="of CamVid's val, evenly spread")
    parser.add_argument("--part", nargs="+", choices=["one", "six"], default=["one", "six"], help="views")  # fmt: skip
    args = parser.parse_args(arguments)
    if (args.camvid is None) != (args.weights is None):
        parser.error("--camvid and --weights come together")
    device = measure.pick(args.device, args.clock)
    path, rounds = measure.begin(args, "evaluation")
    fields: dict[str, Any] = {
        "cases": {
            name: measure_case(pairs, device, rounds)
            for name, pairs in (make_cases(args, device) if "one" in args.part else {}).items()
        }
    }
    tables = [as_table(fields["cases"])]
    net = None
    if "six" not in args.part:
        pass
    elif args.dry:
        net = Taps(espnet_c(num_classes=11, p=1, q=1)).eval().to(device)
        large = small = torch.rand(1, 3, 64, 128).to(device)
    elif args.camvid is not None:
        net = network(args.weights).to(device)
        large, small = (
            next(real_images(args.camvid, size, 1))[0].to(device)
            for size in ((1024, 2048), (512, 1024))
        )
    if net is not None:
        forward = torch.no_grad()(lambda x: net(x).prediction)
        fields["views"] = {
            "after the forward passes": views_after_forward(forward, large, device, rounds),
            "with them": views_with_forward(forward, small, device, rounds),
        }
        tables.append(views_table(fields["views"]))
    return measure.finish("evaluation", path, device, rounds, *tables, **fields)


if __name__ == "__main__":
    raise SystemExit(main())
