"""`demo`: teacher, ablation and pictures on the built-in scenes, on any machine, in minutes."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from densekd.build.data import build_reader
from densekd.config.load import load_config, shipped_configs, to_tree
from densekd.config.schema import Config
from densekd.engine.folder import RunFolder
from densekd.errors import UserError
from densekd.ops.files import write_text
from densekd.workflows.ablate import ablate, default_jobs, lone_children
from densekd.workflows.children import Child, run_children
from densekd.workflows.pictures import save_comparison
from densekd.workflows.report import try_report
from densekd.workflows.resume import changed_settings
from densekd.workflows.synthesize import synthesize
from densekd.workflows.variants import term_variants

RECIPES = shipped_configs() / "demo"
SCENES = {"train": 400, "val": 100}
SIZE = (96, 192)  # height, width
PICTURES = (0, 3, 7, 12)
MARK = "teacher.yaml"  # what shows that a folder is a demo's


def demo(
    folder: Path,
    *,
    overrides: dict[str, Any],
    task: str = "segmentation",
    device: str = "auto",
    seeds: int = 1,
    scale: float = 1.0,
) -> int:
    """Write scenes, train a teacher, run the ablation on it, draw pictures; returns the exit status.

    The same command goes on where it was stopped.

    Args:
        task: ``"segmentation"``, ``"detection"`` or ``"depth"``; each has its two recipes.
        overrides: dotted settings of the student's recipe; those of ``data.`` hold for the teacher too.
        scale: factor on the number of scenes and steps (tests).
    """
    begin = time.perf_counter()
    if "data.root" in overrides:
        raise UserError(
            "data.root: the demo makes its own scenes; use `densekd ablate` for your data"
        )
    scenes = folder / "scenes"
    shared = {k: v for k, v in overrides.items() if k.startswith("data.")}
    shared["data.root"] = str(scenes)
    teacher = RunFolder(folder / "teacher")
    teacher_config = _scaled(load_config(RECIPES / f"{task}_teacher.yaml", shared), scale)
    config = load_config(
        RECIPES / f"{task}_student.yaml",
        {**overrides, **shared, "teacher.weights": str(teacher.student)},
    )
    config = _scaled(config, scale)
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise UserError(f"{folder} exists and is no demo's folder; give another --name")
    if changed := changed_settings(teacher, teacher_config):
        raise UserError(f"{folder} holds another demo: {'; '.join(changed)}; give another --name")
    write_text(folder / MARK, yaml.safe_dump(to_tree(teacher_config), sort_keys=False))

    _write_scenes(scenes, scale, extras=task != "segmentation")
    child = Child(
        "teacher",
        ["train", str(folder / MARK), "--out", str(folder), "--name", "teacher",
         "--device", device, "--resume"],
        teacher,
        teacher_config.train.steps,
    )  # fmt: skip
    # The student alone needs no teacher, so both train at once: on few cores, single threads side by side do more
    # than threads that share a step.
    alone = lone_children(config, folder=folder / "ablation", seeds=seeds, device=device)
    status = run_children([child, *alone], jobs=default_jobs(device))
    if status:
        return status
    status, table = ablate(config, folder=folder / "ablation", seeds=seeds, device=device)
    if status:
        return status
    picture = folder / "images" / "comparison.png"
    _draw(config, folder, teacher, picture)
    write_text(folder / "table.md", table)
    page = try_report(folder, device=device)
    minutes = (time.perf_counter() - begin) / 60
    print(
        f"\n{table}\npictures  {picture}\ntable     {folder / 'table.md'}\n{page}\n{minutes:.1f} minutes"
    )
    return 0


def _scaled(config: Config, scale: float) -> Config:
    steps = max(2, round(config.train.steps * scale))
    options = dict(config.data.train_options)
    if "labelled" in options:
        options["labelled"] = max(1, round(options["labelled"] * scale))
    return replace(
        config,
        train=replace(config.train, steps=steps),
        data=replace(config.data, train_options=options),
    )


def _write_scenes(folder: Path, scale: float, *, extras: bool) -> None:
    if folder.exists():
        return
    splits = {name: max(4, round(count * scale)) for name, count in SCENES.items()}
    synthesize(folder, splits=splits, seed=0, height=SIZE[0], width=SIZE[1], extras=extras)


def _draw(config: Config, folder: Path, teacher: RunFolder, picture: Path) -> None:
    variants = term_variants(config)
    first, last = variants[0], [variant for variant in variants if variant.distil][-1]
    assert config.teacher is not None
    runs = {
        v.key: RunFolder(folder / "ablation" / v.key / f"seed{config.seed}") for v in (first, last)
    }
    count = len(build_reader(config.data, config.data.val_split, training=False))
    save_comparison(
        config,
        [
            ("teacher", config.teacher, teacher.student),
            (first.title, config.model, runs[first.key].student),
            (f"distilled, {last.title}", config.model, runs[last.key].student),
        ],
        picture,
        indices=[i for i in PICTURES if i < count],
    )
