"""``densekd data check``, ``densekd data shard`` and ``densekd data synthesize``."""

from __future__ import annotations

import json
from pathlib import Path

import tyro

from densekd.cli.arguments import Recipe, parse, read_recipe, split_overrides
from densekd.errors import UserError

USAGE = """usage: densekd data {check,shard,synthesize} ...

  check RECIPE        read every image and label of a recipe's data: counts, class histogram, bad pairs
  shard RECIPE        write a recipe's data as tar files (webdataset's layout), read at random from there
  synthesize FOLDER   write the built-in street scenes to disk in the Cityscapes layout

densekd data check --help, shard --help and synthesize --help explain each."""


def command(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if arguments[0] == "check":
        return _check(arguments[1:])
    if arguments[0] == "shard":
        return _shard(arguments[1:])
    if arguments[0] == "synthesize":
        return parse(synthesize, "data synthesize", arguments[1:])
    raise UserError(f"data {arguments[0]!r} is unknown; expected check, shard or synthesize")


def _check(arguments: list[str]) -> int:
    own, overrides = split_overrides(arguments)

    def check(config: Recipe, split: str | None = None, output: Path | None = None) -> int:
        """Read every image and label: counts, sizes, class histogram, value ranges, bad pairs.

        Ends with status 1 where a pair is bad, or where a run would stop or its scores would be worth nothing (error);
        with 0 where all is well or there are notes alone. Settings can be given as --section.key VALUE
        (--data.root FOLDER).

        Args:
            config: a YAML file, or the name of a shipped recipe (densekd list configs).
            split: one split; by default the recipe's training and validation splits.
            output: JSON file to write as well; must not exist.
        """
        settings = read_recipe(config, overrides)
        if output is not None and output.exists():
            raise UserError(f"--output {output} exists; give another path")
        from densekd.workflows.check import check_splits

        splits = [split] if split else [settings.data.train_split, settings.data.val_split]
        found = check_splits(settings, splits)
        for name, report in found.reports.items():
            print(f"--- {name}\n{report.to_text()}")
        for error in found.errors:
            print(f"error: {error}")
        for note in found.notes:
            print(f"note: {note}")
        if output is not None:
            output.write_text(json.dumps(found.to_dict(), indent=2))
            print(f"written to {output}")
        return 0 if found.good else 1

    return parse(check, "data check", own)


def _shard(arguments: list[str]) -> int:
    own, overrides = split_overrides(arguments)

    def shard(config: Recipe, out: Path, shard_images: int = 1000, split: str | None = None) -> int:
        """Write a recipe's images and labels as tar files, which `data.dataset: shards` and webdataset read.

        Images are taken as they are (JPEG, PNG, WebP); class maps become PNGs of class indices, boxes JSON, depth
        arrays of float32 metres. An index.json beside the tars has counts, places and digests.

        Args:
            config: a YAML file, or the name of a shipped recipe (densekd list configs).
            out: the folder to write; must not exist, or be empty.
            shard_images: samples of one tar file.
            split: one split; by default the recipe's training and validation splits.
        """
        settings = read_recipe(config, overrides)
        from densekd.workflows.shard import shard as write

        splits = [split] if split else [settings.data.train_split, settings.data.val_split]
        counts = write(settings, out, splits=splits, images=shard_images)
        print(f"{' + '.join(f'{count} {name}' for name, count in counts.items())} samples in {out}")
        return 0

    return parse(shard, "data shard", own)


def synthesize(
    folder: tyro.conf.Positional[Path],
    train: int = 400,
    val: int = 100,
    seed: int = 0,
    height: int = 512,
    width: int = 1024,
) -> int:
    """Write the built-in street scenes in the Cityscapes layout, with labels, boxes and depth.

    Args:
        folder: must not exist or be empty.
        train: number of training images.
        val: number of validation images.
        seed: of the renderer; the same seed gives the same bytes.
        height: of the images, in pixels.
        width: of the images, in pixels.
    """
    from densekd.workflows.synthesize import synthesize as write

    if train < 1 or val < 1 or min(height, width) < 32:
        raise UserError(
            f"got {train} training and {val} validation images of {height}x{width}; expected at least one of each "
            "and 32 pixels a side"
        )
    write(folder, splits={"train": train, "val": val}, seed=seed, height=height, width=width)
    print(f"{train} + {val} scenes of {height}x{width} in {folder}")
    return 0
