"""Images a second and core of the training stream: decoded each time, or from the cache on disk, in memory, on a GPU.

    python -m benchmarks.data_path --camvid FOLDER [--pairs 20] [--clock cpu] [--dry] [--output FILE]

CamVid's pictures and labels: as they are, and enlarged to 2048×1024 as PNG and as JPEG. One process and one thread
read, augment and collate batches of 8, which is the work of a loader's worker. The files are in the page cache. The
script also measures making the cache, its first read with the checksums, and other ways to do parts of Augment.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks import measure
from densekd.data import Augment, CachedSet, DeviceLoader, Folder, SceneSet, TrainLoader, cached
from densekd.data.base import DenseSet, Sample
from densekd.data.files import read_image, read_labels

BATCH = 8
SETS: dict[str, dict[str, Any]] = {
    "2048x1024 png": {"size": (1024, 2048), "ending": ".png", "crop": (512, 512)},
    "2048x1024 jpeg": {"size": (1024, 2048), "ending": ".jpg", "crop": (512, 512)},
    "480x360 png": {"size": (360, 480), "ending": ".png", "crop": (360, 480)},
}
BASE = "decoded each time"


def pictures(camvid: Path | None, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images and labels of CamVid's training split, evenly spread; of the scenes where `camvid` is None."""
    if camvid is None:
        scenes = SceneSet(length=count)
        for index in range(count):
            yield scenes.read(index).image, scenes.read(index).target
        return
    files = sorted((camvid / "train").glob("*.png"))
    for file in files[:: max(1, len(files) // count)][:count]:
        yield read_image(file), read_labels(camvid / "trainannot" / file.name)


def make_set(
    camvid: Path | None, folder: Path, size: tuple[int, int], ending: str, count: int
) -> Folder:
    """The pictures as files of one size."""
    for kind in ("images", "masks"):
        (folder / "train" / kind).mkdir(parents=True)
    (folder / "classes.txt").write_text("\n".join(f"class {i}" for i in range(12)) + "\n")
    for index, (image, labels) in enumerate(pictures(camvid, count)):
        if image.shape[:2] != size:
            image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC)
            labels = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        file = folder / "train" / "images" / f"{index}{ending}"
        cv2.imwrite(str(file), image[..., ::-1])
        cv2.imwrite(str(folder / "train" / "masks" / f"{index}.png"), labels)
    return Folder(folder)


def keep(reader: DenseSet, folder: Path | None) -> CachedSet:
    return cached({"train": reader}, folder=folder, budget_gb=4)["train"]


def measure_set(
    name: str,
    camvid: Path | None,
    device: torch.device,
    rounds: measure.Rounds,
    *,
    images: int,
    dry: bool,
) -> dict[str, Any]:
    about = SETS[name]
    size, crop = ((64, 128), (48, 48)) if dry else (about["size"], about["crop"])
    clock = partial(measure.timed, device=torch.device("cpu"), clock=rounds.clock)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        count = 4 if dry else images
        reader = make_set(camvid, folder / "set", size, about["ending"], count)
        files = [path for i in range(count) for path in reader.paths(i) if path is not None]
        build, first = [], []
        for turn in range(2 if dry else 3):
            place = folder / f"cache{turn}"
            build.append(clock(lambda place=place: keep(reader, place)) / count)
            kept = keep(reader, place)
            first.append(clock(partial(_read_all, kept)) / count)
        ways: dict[str, DenseSet] = {
            BASE: reader,
            "disk": keep(reader, folder / "cache0"),
            "ram": keep(reader, None),
        }
        arms: dict[str, Callable[[], float]] = {}
        for jitter in (0.0, 0.3):
            augment = Augment(crop=crop, scale=(0.5, 2.0), color_jitter=jitter)
            for way, source in ways.items():
                stream = iter(TrainLoader(source, batch_size=BATCH, transform=augment))
                arms[_label(way, jitter)] = partial(clock, partial(next, stream))
            if device.type == "cuda":
                loader = DeviceLoader(kept, device=device, batch_size=BATCH, transform=augment)
                arms[_label("device", jitter)] = partial(
                    measure.timed, partial(next, iter(loader)), device, rounds.clock
                )
        seconds = rounds.interleaved(arms)
        return {
            "size": list(size),
            "crop": list(crop),
            "images": count,
            "file_bytes": sum(path.stat().st_size for path in files),
            "cache_bytes": kept.size,
            "seconds_a_batch": {k: {**measure.spread(v), "all": v} for k, v in seconds.items()},
            "images_per_s": {k: measure.spread([BATCH / x for x in v]) for k, v in seconds.items()},
            "times_faster": {
                label: measure.ratio(
                    seconds[_label(BASE, 0.3 if label.endswith("jitter") else 0.0)], values
                )
                for label, values in seconds.items()
            },
            "build_seconds_an_image": measure.spread(build),
            "first_read_seconds_an_image": measure.spread(first),
        }


def _read_all(kept: CachedSet) -> None:
    """Every sample, with its checksum as in the first epoch of a run, and without its augmentation."""
    for index in range(len(kept)):
        kept.read(index)


def _label(way: str, jitter: float) -> str:
    return f"{way}, jitter" if jitter else way


def measure_parts(rounds: measure.Rounds, *, dry: bool) -> dict[str, Any]:
    """A crop of 512×512 from a window of 683×683 (scale 0.75), mirrored: each part, and another way to do it."""
    side, window = (48, 64) if dry else (512, 683)
    image = np.random.default_rng(0).integers(0, 256, (2 * window, 3 * window, 3), dtype=np.uint8)
    cut = image[5 : 5 + window, 9 : 9 + window]
    step = window / side
    move = np.array([[-step, 0, (side - 0.5) * step - 0.5], [0, step, 0.5 * step - 0.5]])
    crop, planes = np.ascontiguousarray(cut[:side, :side]), np.empty((3, side, side), np.uint8)
    ways: dict[str, Callable[[], Any]] = {
        "resize and mirror, OpenCV": lambda: cv2.flip(cv2.resize(cut, (side, side)), 1),
        "resize and mirror, one warp": lambda: cv2.warpAffine(
            cut, move, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        ),
        "mirror, OpenCV": lambda: cv2.flip(crop, 1),
        "mirror, NumPy": lambda: np.ascontiguousarray(crop[:, ::-1]),
        "planes, OpenCV": lambda: cv2.split(crop, list(planes)),
        "planes, NumPy": lambda: np.copyto(planes, crop.transpose(2, 0, 1)),
    }  # fmt: skip
    sample = Sample(image, np.zeros(image.shape[:2], np.uint8), "parts")
    for name, jitter in (("all of Augment", 0.0), ("all of Augment, jitter", 0.3)):
        augment = Augment(crop=(side, side), scale=0.75, color_jitter=jitter)
        ways[name] = partial(augment, sample, np.random.default_rng(0))
    repeats = 2 if dry else 20

    def repeated(call: Callable[[], Any]) -> float:
        def run() -> None:
            for _ in range(repeats):
                call()

        return measure.timed(run, torch.device("cpu"), rounds.clock) / repeats

    arms = {name: partial(repeated, call) for name, call in ways.items()}
    seconds = rounds.interleaved(arms)
    return {name: measure.spread(values) for name, values in seconds.items()}


def as_table(sets: dict[str, dict[str, Any]]) -> str:
    head = ["set", "way", "images/s", "times faster"]
    rows = []
    for name, found in sets.items():
        for label, speed in found["images_per_s"].items():
            faster = measure.with_interval(found["times_faster"][label], 1)
            rows.append([name, label, f"{speed['median']:.1f}", faster])
    return measure.table(head, rows)


def cost_table(sets: dict[str, dict[str, Any]]) -> str:
    head = [
        "set",
        "files MB an image",
        "cache MB an image",
        "made ms an image",
        "first read ms an image",
    ]
    rows = [
        [
            name,
            *(
                f"{found[kind] / found['images'] / 1e6:.2f}"
                for kind in ("file_bytes", "cache_bytes")
            ),
            *(
                f"{1e3 * found[f'{kind}_seconds_an_image']['median']:.1f}"
                for kind in ("build", "first_read")
            ),
        ]
        for name, found in sets.items()
    ]
    return measure.table(head, rows)


def parse_with_camvid(
    parser: argparse.ArgumentParser, arguments: list[str] | None, *, images: int
) -> argparse.Namespace:
    """The options of a script on CamVid's images, ``camvid`` None in a dry run; from here on one thread computes."""
    parser.add_argument("--camvid", type=Path, default=os.environ.get("DENSEKD_CAMVID"))
    parser.add_argument("--images", type=int, default=images, help="files a set")
    args = parser.parse_args(arguments)
    if args.camvid is None and not args.dry:
        raise SystemExit("--camvid FOLDER (or $DENSEKD_CAMVID): CamVid in the SegNet layout")
    args.camvid = None if args.dry else Path(args.camvid)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse_with_camvid(measure.make_parser("data_path", __doc__), arguments, images=16)
    device = measure.pick(args.device, args.clock)
    path, rounds = measure.begin(args, "data_path")
    sets = {
        name: measure_set(name, args.camvid, device, rounds, images=args.images, dry=args.dry)
        for name in SETS
    }
    parts = measure_parts(rounds, dry=args.dry)
    rows = [[name, f"{1e3 * found['median']:.3f}"] for name, found in parts.items()]
    tables = as_table(sets), "", cost_table(sets), "", measure.table(["part", "ms"], rows)
    return measure.finish(
        "data_path", path, device, rounds, *tables, threads=1, batch=BATCH, sets=sets, parts=parts
    )


if __name__ == "__main__":
    raise SystemExit(main())
