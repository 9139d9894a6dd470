"""`demo`: teacher, ablation and pictures on the built-in scenes, on any machine, in minutes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import yaml

from densekd.config.load import load_config, shipped_configs, to_tree
from densekd.engine.checkpoint import write_text_atomic
from densekd.engine.folder import RunFolder
from densekd.errors import UserError
from densekd.workflows.ablate import ablate, term_variants
from densekd.workflows.children import Child, run_children
from densekd.workflows.pictures import save_comparison
from densekd.workflows.run import changed_settings

PICTURES = (0, 3, 7, 12)


def demo(folder: Path, *, overrides: dict, device: str = "auto", seeds: int = 1) -> int:
    """Train a teacher, run the ablation on it, draw the pictures; the same command goes on where it was stopped."""
    begin = time.perf_counter()
    cores = os.cpu_count() or 1
    teacher_config = load_config(
        shipped_configs() / "demo" / "teacher.yaml",
        {k: v for k, v in overrides.items() if k.startswith("data.")},
    )
    teacher = RunFolder(folder / "teacher")
    config = load_config(
        shipped_configs() / "demo" / "student.yaml",
        {**overrides, "teacher.weights": str(teacher.student)},
    )
    if folder.exists() and any(folder.iterdir()):
        if not teacher.config.exists():
            raise UserError(f"{folder} exists and is no demo's folder; give another --name")
        if changed := changed_settings(teacher, teacher_config):
            raise UserError(
                f"{folder} holds another demo: {'; '.join(changed)}; give another --name"
            )
    recipe = folder / "teacher.yaml"
    write_text_atomic(recipe, yaml.safe_dump(to_tree(teacher_config), sort_keys=False))
    child = Child(
        "teacher",
        [
            "train",
            str(recipe),
            "--out",
            str(folder),
            "--name",
            "teacher",
            "--device",
            device,
            "--resume",
        ],
        teacher,
        teacher_config.train.steps,
    )
    status = run_children([child], jobs=1, threads=cores)
    if status:
        return status
    status, table = ablate(config, folder=folder / "ablation", seeds=seeds, device=device)
    if status:
        return status
    variants = term_variants(config)
    first, last = variants[0], variants[-1]
    assert config.teacher is not None
    seed = f"seed{config.seed}"
    weights = {v.key: RunFolder(folder / "ablation" / v.key / seed).student for v in (first, last)}
    picture = folder / "images" / "comparison.png"
    save_comparison(
        config,
        [
            ("teacher", config.teacher, teacher.student),
            ("student alone", config.model, weights[first.key]),
            (f"distilled ({last.title})", config.model, weights[last.key]),
        ],
        picture,
        indices=PICTURES,
    )
    write_text_atomic(folder / "table.md", table)
    seconds = time.perf_counter() - begin
    print(f"\n{table}\npictures {picture}\ntable    {folder / 'table.md'}")
    print(f"{seconds / 60:.1f} minutes")
    return 0
