"""Images a second and core of the training stream from tar files (`data.dataset: shards`), against folders.

    python -m benchmarks.shards --camvid FOLDER [--pairs 12] [--clock cpu] [--dry] [--output FILE]

The pictures of `benchmarks.data_path`, as files and as the shards that `densekd data shard` makes of them. One process
and one thread read, augment and collate batches of 8. The files are in the page cache. The script also measures how
long a reader takes to begin, a sample: a folder that is listed, shards with their index, and shards whose headers are
read.
"""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from benchmarks.data_path import BATCH, SETS, make_set, parse_with_camvid
from densekd.config.load import make_config
from densekd.data import Augment, Folder, Shards, TrainLoader
from densekd.workflows.shard import shard

BASE = "folder"


def measure_set(
    name: str, camvid: Path | None, rounds: measure.Rounds, *, images: int, dry: bool
) -> dict[str, Any]:
    about = SETS[name]
    size, crop = ((64, 128), (48, 48)) if dry else (about["size"], about["crop"])
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as temporary:
        folder, tars = Path(temporary, "set"), Path(temporary, "tars")
        count = 4 if dry else images
        reader = make_set(camvid, folder, size, about["ending"], count)
        recipe = {
            "task": "segmentation",
            "model": {"name": "espnet_c"},
            "data": {"dataset": "folder", "root": str(folder)},
        }
        shard(make_config(recipe, "benchmark"), tars, splits=["train"], images=max(1, count // 4))
        bare = Path(temporary, "bare")
        bare.mkdir()
        for path in tars.glob("*.tar"):
            shutil.copy(path, bare)
        augment = Augment(crop=crop, scale=(0.5, 2.0))
        streams = {
            way: iter(TrainLoader(source, batch_size=BATCH, transform=augment))
            for way, source in ((BASE, reader), ("shards", Shards(tars)))
        }
        seconds = rounds.seconds({k: partial(next, v) for k, v in streams.items()}, cpu)
        begin = rounds.seconds(
            {
                BASE: partial(Folder, folder),
                "index": partial(Shards, tars),
                "headers": partial(Shards, bare, mask="seg.png", classes=reader.classes),
            },
            cpu,
        )
        return {
            "size": list(size),
            "crop": list(crop),
            "images": count,
            "images_per_s": {k: measure.spread([BATCH / x for x in v]) for k, v in seconds.items()},
            "time_over_folder": measure.ratio(seconds["shards"], seconds[BASE]),
            "begin_seconds_a_sample": {
                k: measure.spread([x / count for x in v]) for k, v in begin.items()
            },
        }


def as_table(sets: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, found in sets.items():
        speed = {k: f"{v['median']:.1f}" for k, v in found["images_per_s"].items()}
        start = {k: f"{1e3 * v['median']:.3f}" for k, v in found["begin_seconds_a_sample"].items()}
        over = measure.with_interval(found["time_over_folder"])
        rows.append([name, speed[BASE], speed["shards"], over, *start.values()])
    head = ["set", "folder, images/s", "shards, images/s", "time over folder"]
    return measure.table([*head, "begin: folder, ms a sample", "index", "headers"], rows)


def main(arguments: list[str] | None = None) -> int:
    parser = measure.make_parser("shards", __doc__, pairs=12)
    args = parse_with_camvid(parser, arguments, images=64)
    device = measure.pick(args.device, args.clock)
    path, rounds = measure.begin(args, "shards")
    sets = {
        name: measure_set(name, args.camvid, rounds, images=args.images, dry=args.dry)
        for name in SETS
    }
    return measure.finish(
        "shards", path, device, rounds, as_table(sets), threads=1, batch=BATCH, sets=sets
    )


if __name__ == "__main__":
    raise SystemExit(main())
