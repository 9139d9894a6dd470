"""`ablate`: the same student on one budget with more and more terms, or over the values of one setting."""

from __future__ import annotations

import json
import statistics
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from densekd.build import provenance
from densekd.build.data import build_reader, input_size
from densekd.build.networks import build_network
from densekd.build.task import build_task, check_task
from densekd.config.load import dump_config, make_config, to_tree
from densekd.config.schema import Config
from densekd.config.tree import apply_overrides, parse_yaml
from densekd.engine.folder import RunFolder
from densekd.engine.launch import available_cores, pick_device
from densekd.errors import UserError
from densekd.ops.files import write_text
from densekd.profiling import count_macs, count_parameters
from densekd.tasks import Column, Task
from densekd.workflows.baseline import constant_guess_scores
from densekd.workflows.children import Child, run_children
from densekd.workflows.evaluate import evaluate_weights
from densekd.workflows.run import changed_settings

SHORT = {"pixel_wise": "Pi", "pair_wise": "Pa", "holistic": "Ho", "feature_mimic": "Mimic"}
CONSTANT = "constant_guess.json"
ORDER = ["pixel_wise", "pair_wise", "holistic"]  # the paper's; other terms follow as written


@dataclass
class Variant:
    """A row of the table."""

    key: str  # folder name
    title: str
    config: Config
    distil: bool


def term_variants(config: Config) -> list[Variant]:
    """Student alone, then one term more a row: the paper's table."""
    names = [*config.distill.terms, *(["holistic"] if config.distill.holistic else [])]
    if not names:
        raise UserError(
            "distill: no term to ablate; add pixel_wise, pair_wise or holistic with a weight"
        )
    names.sort(key=lambda n: ORDER.index(n) if n in ORDER else ORDER.index("pair_wise") + 0.5)
    variants = [Variant("student", "student alone", config, distil=False)]
    for count in range(1, len(names) + 1):
        used = names[:count]
        tree = to_tree(config)
        for name in names[count:]:
            tree["distill"][name] = None
        shorts = [SHORT.get(n, n) for n in used]
        variants.append(
            Variant(
                "_".join(s.lower() for s in shorts),
                " ".join(f"+{s}" for s in shorts),
                make_config(tree, "ablate"),
                distil=True,
            )
        )
    return variants


def setting_variants(config: Config, over: str, distil: bool) -> list[Variant]:
    """One row a value of ``KEY=a,b,c``."""
    key, equals, text = over.partition("=")
    if not equals or not text:
        raise UserError(
            f"--over {over!r}: expected KEY=value,value, e.g. distill.pair_wise.granularity=1,2,4"
        )
    if key in ("seed", "note", "data.val_split") or key.startswith("teacher."):
        raise UserError(
            f"--over {key}: all rows of a table share it; "
            + ("use --seeds N" if key == "seed" else "run one ablation for each value")
        )
    values = parse_yaml(f"[{text}]", "--over")
    for i, value in enumerate(values):
        if repr(value) in map(repr, values[:i]):  # 1 and 1.0 are different granularities
            raise UserError(f"--over {over!r}: the value {value!r} stands twice")
    variants = []
    for value in values:
        tree = deepcopy(to_tree(config))
        apply_overrides(tree, {key: value})
        safe = "".join(c if c.isalnum() or c in ".-" else "_" for c in str(value))
        title = f"{key} = {value}"
        variant = make_config(tree, f"--over {key}")
        check_task(variant.task)
        variants.append(Variant(f"{key}={safe}", title, variant, distil))
    return variants


def ablate(
    config: Config,
    *,
    folder: Path,
    seeds: int = 1,
    over: str | None = None,
    jobs: int | None = None,
    device: str = "auto",
) -> tuple[int, str]:
    """Run every variant and seed that has no result yet; returns (exit status, Markdown table).

    The same command goes on where it was stopped. A folder that holds another ablation is refused.
    """
    if config.teacher is None and over is None:
        raise UserError("teacher: missing; the ablation compares a student with and without one")
    distil = config.teacher is not None
    config = replace(config, note=config.note or provenance.teacher_note(config.teacher))
    variants = term_variants(config) if over is None else setting_variants(config, over, distil)
    if config.teacher is not None and config.teacher.weights is None:
        raise UserError(
            "teacher.weights: missing; the ablation distils from a trained teacher and scores it; give "
            "--teacher.weights FILE"
        )
    _check_folder(folder, config)
    # Scored before the folder is made: wrong weights or data end here and leave nothing behind.
    teacher = _teacher_row(config, folder, device) if config.teacher is not None else None
    if not (folder / "config.yaml").exists():
        write_text(folder / "config.yaml", dump_config(config))
    if teacher is not None and not (folder / "teacher.json").exists():
        write_text(folder / "teacher.json", json.dumps(teacher, indent=2) + "\n")
    if not (folder / CONSTANT).exists():
        guess = constant_guess_scores(config)
        write_text(folder / CONSTANT, json.dumps(guess, indent=2) + "\n")
    children = []
    for seed in range(config.seed, config.seed + seeds):
        for variant in variants:
            children.append(_child(variant, seed, folder, device))
    status = run_children(children, jobs=jobs or default_jobs(device))
    table = write_table(config, folder, variants, seeds, teacher)
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
    tree = {**to_tree(variant.config), "seed": seed}
    if not variant.distil:
        # As `train` writes it; and "teacher saw val" says nothing of a student that has no teacher.
        tree.update(teacher=None, distill={}, note="")
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


def _teacher_row(config: Config, folder: Path, device: str) -> dict[str, Any]:
    """The teacher's own score and size, measured once."""
    path = folder / "teacher.json"
    digest = provenance.identity(config)
    if path.exists():
        row = json.loads(path.read_text(encoding="utf-8"))
        if row["digest"] != digest:
            raise UserError(
                f"{folder} holds an ablation from another teacher: the content of teacher.weights has changed; give "
                "another --name"
            )
        return row
    assert config.teacher is not None
    tree = to_tree(config)
    model = {k: tree["teacher"][k] for k in tree["model"]}
    alone = make_config({**tree, "model": model, "teacher": None, "distill": {}}, "teacher")
    scores = evaluate_weights(alone, None, config.data.val_split, device=device)
    task, size = _task_and_size(config)
    network, _ = build_network(alone.model, task, "teacher")
    return {
        "digest": digest,
        "scores": scores,
        "parameters": count_parameters(network),
        "macs": count_macs(network, alone.model.in_channels, size),
    }


def _task_and_size(config: Config) -> tuple[Task, tuple[int, int]]:
    reader = build_reader(config.data, config.data.train_split, training=True)
    return build_task(config, reader), input_size(config, reader)


def write_table(
    config: Config,
    folder: Path,
    variants: list[Variant],
    seeds: int,
    teacher: dict[str, Any] | None,
) -> str:
    """The Markdown table of what came out; also written to table.md and results.json."""
    task, size = _task_and_size(config)
    rows: list[dict[str, Any]] = []

    def add(title: str, scores: list[dict[str, Any]], **more: Any) -> None:
        values = {column.key: [s[column.key] for s in scores] for column in task.columns}
        rows.append({"title": title, "scores": values, **more})

    if (folder / CONSTANT).exists():
        guess = json.loads((folder / CONSTANT).read_text(encoding="utf-8"))
        add("constant guess", [guess])
    if teacher is not None:
        name = config.teacher.name if config.teacher else ""
        sizes = {k: teacher[k] for k in ("parameters", "macs")}
        add(f"teacher ({name})", [teacher["scores"]], **sizes)
    for variant in variants:
        results = []
        for seed in range(config.seed, config.seed + seeds):
            path = RunFolder(folder / variant.key / f"seed{seed}").result
            if path.exists():
                results.append(json.loads(path.read_text(encoding="utf-8")))
        if results:
            sizes = {k: results[0][k] for k in ("parameters", "macs")}
            seconds = [r["seconds"] for r in results]
            add(variant.title, [r["scores"] for r in results], **sizes, seconds=seconds)
    headings = [f"{c.heading} on {config.data.val_split}" for c in task.columns[:1]]
    headings += [c.heading for c in task.columns[1:]]
    lines = [
        f"| network | {' | '.join(headings)} | parameters (M) | MACs (G, {size[0]}×{size[1]}) |",
        f"| --- |{' ---: |' * (len(headings) + 2)}",
    ]
    for row in rows:
        cells = [_mean_std(row["scores"][c.key], c) for c in task.columns]
        cells += (
            [f"{row['parameters'] / 1e6:.3f}", f"{row['macs'] / 1e9:.3f}"]
            if "parameters" in row
            else ["", ""]
        )
        lines.append(f"| {row['title']}{_count(row, seeds)} | {' | '.join(cells)} |")
    run = {r["title"] for r in rows}
    empty = " |" * (len(headings) + 2)
    lines += [f"| {v.title} (not run yet) |{empty}" for v in variants if v.title not in run]
    note = f" Note: {config.note}." if config.note else ""
    lines += [
        "",
        f"Student {config.model.name}, {config.train.steps} steps of {config.data.batch_size} images, last weights, "
        f"{seeds} seed{'s' if seeds > 1 else ''}{' (mean ± std)' if seeds > 1 else ''}.{note}",
    ]
    text = "\n".join(lines) + "\n"
    write_text(folder / "table.md", text)
    write_text(folder / "results.json", json.dumps(rows, indent=2) + "\n")
    return text


def _count(row: dict[str, Any], seeds: int) -> str:
    """Says how many seeds a row has, where it is not all of them (a stopped ablation)."""
    if "seconds" not in row:  # the teacher is one network, the constant guess none
        return ""
    count = len(row["seconds"])
    return "" if count == seeds else f" ({count} of {seeds} seeds so far)"


def _mean_std(values: list[float | None], column: Column) -> str:
    """A dash where a score does not exist (no object of any class in the split)."""
    known = [column.factor * v for v in values if v is not None]
    if not known:
        return "–"
    mean = f"{statistics.fmean(known):.{column.decimals}f}"
    if len(known) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(known):.{column.decimals}f}"
