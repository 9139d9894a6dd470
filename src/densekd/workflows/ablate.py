"""`ablate`: the same student on one budget with more and more terms, or over the values of one setting."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from densekd.build import provenance
from densekd.build.teachers import build_label_space, build_teacher, is_trained
from densekd.config.load import dump_config, make_config, to_tree
from densekd.config.schema import Config
from densekd.engine.folder import RunFolder
from densekd.engine.launch import available_cores, pick_device, started
from densekd.errors import UserError
from densekd.ops.files import write_text
from densekd.ops.names import teacher_section
from densekd.profiling import count_macs, count_parameters
from densekd.report.records import read_result
from densekd.workflows.ablation_table import CONSTANT, task_and_size, write_table
from densekd.workflows.baseline import constant_guess_scores
from densekd.workflows.children import Child, run_children
from densekd.workflows.doctor.machine import setting_findings
from densekd.workflows.evaluate import evaluate_teacher
from densekd.workflows.resume import changed_settings
from densekd.workflows.variants import Variant, setting_variants, term_variants


def ablate(
    config: Config,
    *,
    folder: Path,
    seeds: int = 1,
    over: str | None = None,
    jobs: int | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> tuple[int, str]:
    """Run every variant and seed that has no result yet; returns (exit status, Markdown table).

    The same command goes on where it was stopped. A folder that holds another ablation is refused.

    Args:
        quiet: print nothing, and show no bars.
    """
    if not config.every_teacher and over is None:
        raise UserError("teacher: missing; the ablation compares a student with and without one")
    distil = bool(config.every_teacher)
    config = replace(config, note=config.note or provenance.teachers_note(config))
    variants = term_variants(config) if over is None else setting_variants(config, over, distil)
    for where, section in config.every_teacher.items():
        if not is_trained(section):
            raise UserError(
                f"{where}.weights: missing; the ablation distils from a trained teacher and scores it; give "
                f"--{where}.weights FILE"
            )
    _check_folder(folder, config)
    # Scored before the folder is made: wrong weights or data end here and leave nothing behind.
    teachers = _teacher_rows(config, folder, device, quiet) if distil else None
    if not (folder / "config.yaml").exists():
        write_text(folder / "config.yaml", dump_config(config))
    if teachers is not None and not (folder / "teacher.json").exists():
        write_text(folder / "teacher.json", json.dumps(teachers, indent=2) + "\n")
    if not (folder / CONSTANT).exists():
        guess = constant_guess_scores(config)
        write_text(folder / CONSTANT, json.dumps(guess, indent=2) + "\n")
    if not quiet:
        with started(device) as process:
            for finding in setting_findings(config, process.device):
                print(f"{finding.level}: {finding}")
    children = []
    for seed in range(config.seed, config.seed + seeds):
        for variant in variants:
            children.append(_child(variant, seed, folder, device))
    status = run_children(children, jobs=jobs or default_jobs(device), quiet=quiet)
    table = write_table(config, folder, variants, seeds, teachers)
    return status, table


def default_jobs(device: str) -> int:
    """Runs side by side: one a CPU core (a thread each), or one on a GPU."""
    return 1 if pick_device(device).type != "cpu" else available_cores()


def lone_children(config: Config, *, folder: Path, seeds: int, device: str) -> list[Child]:
    """The ablation's parts that need no teacher, for a caller that trains the teacher beside them."""
    _check_folder(folder, config)
    if not (folder / "config.yaml").exists():
        write_text(folder / "config.yaml", dump_config(config))
    alone = [v for v in term_variants(config) if not v.distil]
    return [
        _child(variant, seed, folder, device)
        for seed in range(config.seed, config.seed + seeds)
        for variant in alone
    ]


def _check_folder(folder: Path, config: Config) -> None:
    """The ablation's folder is new, or this ablation's."""
    record = RunFolder(folder)
    if not record.occupied():
        return
    if not record.config.exists():
        raise UserError(f"{folder} exists and is no ablation's folder; give another --name")
    changed = changed_settings(record, config)
    if changed:
        raise UserError(
            f"{folder} holds an ablation with other settings: {'; '.join(changed)}; give another --name"
        )


def _child(variant: Variant, seed: int, folder: Path, device: str) -> Child:
    config = variant.config
    if not variant.distil:
        config = replace(config, data=replace(config.data, unlabelled=None))
    # Rows side by side would time one another, and must differ in nothing else.
    config = replace(config, train=replace(config.train, auto=False))
    tree = {**to_tree(config), "seed": seed}
    if not variant.distil:
        # As `train` writes it; and "teacher saw val" says nothing of a student that has no teacher.
        tree.update(teacher=None, teachers=None, distill={}, note="")
    recipe = folder / "configs" / f"{variant.key}_seed{seed}.yaml"
    text = yaml.safe_dump(tree, sort_keys=False)
    if not recipe.exists() or recipe.read_text(encoding="utf-8") != text:
        write_text(recipe, text)
    name = f"seed{seed}"
    command = "distill" if variant.distil else "train"
    arguments = [
        command, str(recipe), "--out", str(folder / variant.key), "--name", name,
        "--device", device, "--resume",
    ]  # fmt: skip
    title = f"{variant.title} (seed {seed})"
    child = Child(
        title, arguments, RunFolder(folder / variant.key / name), variant.config.train.steps
    )
    # One that goes on checks this itself; a finished one is not started again.
    if child.finished and (changed := changed_settings(child.folder, make_config(tree, title))):
        raise UserError(
            f"{child.folder.path} was made with other settings: {'; '.join(changed)}; give another --name"
        )
    return child


def _teacher_rows(config: Config, folder: Path, device: str, quiet: bool) -> dict[str, Any]:
    """The teachers' own scores and sizes, measured once: what one has, or, of several, a row each under ``rows``."""
    path = folder / "teacher.json"
    digest = provenance.identity(config)
    if path.exists():
        found = read_result(path, needs=("digest",)) or {}
        if found["digest"] != digest:
            raise UserError(
                f"{folder} holds an ablation from another teacher: the content of {' or '.join(digest)} has changed; "
                "give another --name"
            )
        return found
    if not config.teachers:
        return {"digest": digest, **_teacher_row(config, None, device, quiet)}
    rows = {name: _teacher_row(config, name, device, quiet) for name in config.teachers}
    return {"digest": digest, "rows": rows}


def _teacher_row(config: Config, name: str | None, device: str, quiet: bool) -> dict[str, Any]:
    where = teacher_section(name)
    section = config.every_teacher[where]
    split = config.data.val_split
    task, size = task_and_size(config)
    space = build_label_space(section, task, where)
    network, _ = build_teacher(section, task, torch.device("cpu"), space, where)
    if getattr(network, "gives_depth", None) == "inverse":  # relative: it has no score in metres
        scores: dict[str, Any] = {column.key: None for column in task.columns}
    else:
        scores = evaluate_teacher(config, split, name=name, device=device, quiet=quiet)
    return {
        "scores": scores,
        "parameters": count_parameters(network),
        "macs": count_macs(network, section.in_channels, size),
    }
