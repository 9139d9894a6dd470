"""The cost of a step whose teacher is stored, over the student's own step; and what storing changes.

    python -m benchmarks.teacher_cache [--case NAME ...] [--camvid FOLDER --teacher FILE --student FILE] [--dry]

Every record exists already (filling is not measured). What storing changes is measured on the networks of each case,
which are random, and with --camvid on trained ones (ESPNet-C from ESPNet) that see augmented training images: values of
the terms, and their gradient at the student's weights, against those of the live teacher.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.cases import CASES, STANDARD, Case, make_case, make_step
from densekd.build.data import build_augment, build_reader, build_train_loader
from densekd.build.distiller import build_distiller
from densekd.build.task import build_task
from densekd.config.load import load_config
from densekd.distill.distiller import Distiller
from densekd.distill.source import LiveTeacher
from densekd.distill.stored.plan import make_plan
from densekd.distill.stored.store import TeacherCache
from densekd.engine.launch import Process, started
from densekd.errors import UserError
from densekd.types import Batch

STORAGES: dict[str, dict[str, Any]] = {
    "fp16": {"storage": "fp16"},
    "int8": {"storage": "int8"},
    "top 4": {"storage": "top_k", "top_k": 4},
    "top 2": {"storage": "top_k", "top_k": 2},
}


def with_cache(
    full: Distiller, terms: list[str], batch: Batch, folder: Path, **options: Any
) -> Distiller:
    """The same networks with some of the terms and no discriminator, their teacher's maps of this batch stored."""
    assert full.teacher is not None
    some = [term for term in full.terms if term.name in terms]
    distiller = Distiller(full.student, full.task, teacher=full.teacher, terms=some, mask=full.mask)
    live = distiller.source
    assert isinstance(live, LiveTeacher)
    plan = make_plan(full.student, live, batch.images, mask=full.mask, **options)
    cache = TeacherCache(live, plan, folder=folder, identity={}, images=len(batch), epochs=1)
    cache.maps(batch, full.task.mask(batch, full.mask))
    return distiller.with_source(cache)


def measure_case(
    case: Case, device: torch.device, rounds: measure.Rounds, **options: Any
) -> dict[str, Any]:
    config, full, batch = make_case(case, device, **options)
    batch.keys = [(0, i) for i in range(len(batch))]
    both = ["pixel_wise", "pair_wise"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        step = partial(make_step, config, device=device)
        live = Distiller(full.student, full.task, teacher=full.teacher, terms=full.terms)
        form = "fp16"
        try:
            stored = with_cache(full, both, batch, folder)
        except UserError:  # deep random networks pass what fp16 holds
            form = "int8"
            stored = with_cache(full, both, batch, folder, storage=form)
        steps = {
            "student": step(Distiller(full.student, full.task)),
            "pi": step(with_cache(full, both[:1], batch, folder, storage=form)),
            "pi_pa": step(stored),
            "pi_pa_int8": step(with_cache(full, both, batch, folder, storage="int8")),
            "pi_pa_live": step(live),
        }
        arms: dict[str, Callable[[], Any]] = {
            arm: partial(made, [batch], 0) for arm, made in steps.items()
        }
        mask = full.task.mask(batch, full.mask)
        cache = stored.source
        assert cache is not None
        arms["read"] = lambda: cache.maps(batch, mask)
        seconds = rounds.seconds(arms, device)
        return {
            "batch": list(batch.images.shape),
            "classes": case.classes,
            "storage": form,
            "student": config.model.name,
            "teacher": None if config.teacher is None else config.teacher.name,
            "seconds": {arm: measure.spread(found) for arm, found in seconds.items()},
            "ratio": {
                arm: measure.ratio(found, seconds["student"])
                for arm, found in seconds.items()
                if arm != "student"
            },
            "storages": measure_storages(full, batch, folder),
            "raw_seconds": seconds,
        }


def measure_storages(full: Distiller, batch: Batch, folder: Path) -> dict[str, Any]:
    """Bytes an image; relative error of each term's value and of the gradient at the student's weights."""
    terms = [term.name for term in full.terms]
    values, gradients = {}, {}
    for term in terms:
        some = [t for t in full.terms if t.name == term]
        live = Distiller(full.student, full.task, teacher=full.teacher, terms=some, mask=full.mask)
        values[term], gradients[term] = _gradient(live, term, batch)
    found: dict[str, Any] = {}
    for name, options in STORAGES.items():
        if options.get("top_k", 0) >= len(full.task.classes):
            continue
        rows = found[name] = {"bytes": 0, "maps": {}, "terms": {}}
        try:
            stores = [with_cache(full, [term], batch, folder, **options) for term in terms]
        except UserError as error:
            found[name] = {"refused": str(error)}
            continue
        for term, distiller in zip(terms, stores, strict=True):
            assert isinstance(distiller.source, TeacherCache)
            for kept in distiller.source.plan.kept:
                rows["maps"][kept.name] = kept.storage.nbytes
            value, gradient = _gradient(distiller, term, batch)
            rows["terms"][term] = {
                "value": abs(float(value / values[term]) - 1),
                "gradient": float((gradient - gradients[term]).norm() / gradients[term].norm()),
            }
        rows["bytes"] = sum(rows["maps"].values())
    return found


def _gradient(distiller: Distiller, term: str, batch: Batch) -> tuple[Tensor, Tensor]:
    """Value of a term, and its gradient over all weights of the student (in eval mode, so that nothing moves)."""
    student = distiller.student.eval()
    student.zero_grad(set_to_none=True)
    losses, _ = distiller.student_phase(batch)
    value = losses[f"distill/{term}"]
    value.backward()
    grads = [p.grad.flatten() for p in student.parameters() if p.grad is not None]
    student.train()
    return value.detach(), torch.cat(grads)


def trained_storages(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """`measure_storages` with the given weights on four augmented training images of CamVid."""
    given = {
        "data.root": str(args.camvid),
        "data.batch_size": 4,
        "data.workers": 0,
        "teacher.weights": str(args.teacher),
        "model.weights": str(args.student),
        "distill.holistic": None,
    }
    config = load_config("camvid/espnet_c_from_espnet", given)
    reader = build_reader(config.data, config.data.train_split, training=True)
    task = build_task(config, reader)
    full, spec = build_distiller(config, task, distil=True, device=device)
    augment = build_augment(config.data, reader, spec)
    loader = build_train_loader(config, reader, augment, Process(0, 1, device), 0)
    batch = next(iter(loader)).to(device)
    batch.keys = [(0, i) for i in range(len(batch))]
    with tempfile.TemporaryDirectory() as folder:
        rows = measure_storages(full, batch, Path(folder))
    return {
        "teacher": args.teacher.name,
        "student": args.student.name,
        "batch": list(batch.images.shape),
        "storages": rows,
    }


def as_table(cases: dict[str, dict[str, Any]]) -> str:
    head = [
        "pair",
        "batch",
        "student s",
        "Pi / student",
        "Pi+Pa / student",
        "int8",
        "live teacher",
        "read s",
    ]
    rows = []
    for name, case in cases.items():
        part = {arm: measure.with_interval(v) for arm, v in case["ratio"].items()}
        time = {arm: f"{v['median']:.4f}" for arm, v in case["seconds"].items()}
        shown = [part[arm] for arm in ("pi", "pi_pa", "pi_pa_int8", "pi_pa_live")]
        rows.append([name, measure.times(case["batch"]), time["student"], *shown, time["read"]])
    return measure.table(head, rows)


def storages_table(found: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, part in found.items():
        for storage, row in part.items():
            if "refused" in row:
                rows.append([name, storage, *["refused"] * 5])
                continue
            cells = [
                f"{100 * row['terms'][term][what]:.2g} %"
                for term in ("pixel_wise", "pair_wise")
                for what in ("value", "gradient")
            ]
            rows.append([name, storage, f"{row['bytes'] / 1000:.1f}", *cells])
    head = [
        "networks",
        "storage",
        "kB an image",
        "Pi value",
        "Pi gradient",
        "Pa value",
        "Pa gradient",
    ]
    return measure.table(head, rows)


def main(arguments: list[str] | None = None) -> int:
    parser = measure.make_parser("teacher_cache", __doc__, pairs=10)
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=STANDARD)
    parser.add_argument("--camvid", type=Path, help="for the errors of trained networks, with:")
    parser.add_argument("--teacher", type=Path, help="weights of ESPNet")
    parser.add_argument("--student", type=Path, help="weights of ESPNet-C")
    args = parser.parse_args(arguments)
    if args.camvid is not None and None in (args.teacher, args.student):
        raise SystemExit("--camvid needs --teacher FILE and --student FILE")
    device = measure.pick(args.device, args.clock)
    path, rounds = measure.begin(args, f"teacher_cache-{device.type}")
    trained = None
    with started(device.type) as process:
        device = process.device
        cases = measure.one_by_one(
            args.case, lambda name: measure_case(CASES[name], device, rounds, dry=args.dry)
        )
        if args.camvid is not None:
            trained = trained_storages(args, device)
    errors = {name: case["storages"] for name, case in cases.items()}
    if trained is not None:
        errors["trained"] = trained["storages"]
    tables = as_table(cases), storages_table(errors)
    return measure.finish(
        "teacher_cache", path, device, rounds, *tables, cases=cases, trained=trained
    )


if __name__ == "__main__":
    raise SystemExit(main())
