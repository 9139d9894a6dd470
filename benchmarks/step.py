"""The cost of distillation over its floor: time(distil step) / (time(teacher forward) + time(student step alone)).

    python -m benchmarks.step [--device cpu|cuda] [--case NAME ...] [--pairs 20] [--dry] [--output FILE]

With the holistic term the floor also holds the discriminator's own cost, measured alone: it scores the student's map
with the gradient back to that map, and runs its own phase with penalty and update. The teacher has the same form,
precision and batch in numerator and denominator.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import measure
from benchmarks.cases import CASES, SIZE, STANDARD, Case, make_case, make_step
from densekd.distill.distiller import Distiller
from densekd.engine.launch import started
from densekd.profiling.step_time import floor_of

TEACHER_FORM = ("precision", "fold_norms", "channels_last", "compile", "batch_size")


def make_arms(
    case: Case, device: torch.device, **options: Any
) -> tuple[dict[str, Callable[[], Any]], dict[str, Any]]:
    """Name -> one call of that part, and what was built. All arms share the student, the teacher and the batch."""
    config, full, batch = make_case(case, device, **options)
    student, task, teacher = full.student, full.task, full.teacher
    assert teacher is not None
    assert config.teacher is not None
    alone = make_step(config, Distiller(student, task), device)
    pairs = make_step(config, Distiller(student, task, teacher=teacher, terms=full.terms), device)
    whole = make_step(config, full, device)
    _, maps = full.student_phase(batch)
    assert maps is not None
    arms = {
        **floor_of(whole, alone, [batch]),
        "pi_pa": lambda: pairs([batch], 0),
        "pi_pa_ho": lambda: whole([batch], 0),
    }
    built = {
        "batch": list(batch.images.shape),
        "classes": case.classes,
        "amp": config.train.amp,
        "channels_last": config.train.channels_last,
        "student": config.model.name,
        "compile": config.train.compile,
        "teacher": config.teacher.name,
        "teacher_form": {key: getattr(config.teacher, key) for key in TEACHER_FORM},
        "map": list(maps.student.shape),
    }
    return arms, built


def measure_case(
    case: Case, device: torch.device, rounds: measure.Rounds, **options: Any
) -> dict[str, Any]:
    """The seconds of every arm, and the two ratios."""
    arms, built = make_arms(case, device, **options)
    seconds = rounds.seconds(arms, device)
    floor = measure.total(seconds["teacher"], seconds["student"])
    return {
        **built,
        "seconds": {name: measure.spread(values) for name, values in seconds.items()},
        "ratio": {
            "pi_pa": measure.ratio(seconds["pi_pa"], floor),
            "pi_pa_ho": measure.ratio(
                seconds["pi_pa_ho"], measure.total(floor, seconds["discriminator"])
            ),
        },
        "peak_bytes": {name: measure.peak_memory(arm, device) for name, arm in arms.items()},
        "raw_seconds": seconds,
    }


def as_table(cases: dict[str, dict[str, Any]]) -> str:
    head = ["pair", "batch", "teacher s", "student s", "discriminator s"]
    head += ["Pi+Pa s", "ratio", "Pi+Pa+Ho s", "ratio"]
    rows = []
    for name, case in cases.items():
        time = {k: f"{v['median']:.4f}" for k, v in case["seconds"].items()}
        part = {k: measure.with_interval(v) for k, v in case["ratio"].items()}
        rows.append(
            [
                name, measure.times(case["batch"]), time["teacher"], time["student"],
                time["discriminator"], time["pi_pa"], part["pi_pa"], time["pi_pa_ho"], part["pi_pa_ho"],
            ]
        )  # fmt: skip
    return measure.table(head, rows)


def main(arguments: list[str] | None = None) -> int:
    parser = measure.make_parser("step", __doc__)
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=STANDARD)
    parser.add_argument("--size", **SIZE)
    parser.add_argument("--amp", choices=["none", "bf16", "fp16"], default="none")
    parser.add_argument("--channels-last", action="store_true", help="student, images and teacher")
    parser.add_argument("--compile", action="store_true", help="the student")
    parser.add_argument("--teacher-precision", choices=["same", "fp32", "bf16", "fp16"])
    parser.add_argument("--teacher-channels-last", action=argparse.BooleanOptionalAction)
    parser.add_argument("--teacher-compile", action="store_true", default=None)
    parser.add_argument("--teacher-batch", type=int, metavar="N")
    parser.add_argument("--no-fold", dest="fold", action="store_false", default=None)
    args = parser.parse_args(arguments)
    device = measure.pick(args.device, args.clock)
    path, rounds = measure.begin(args, f"step-{device.type}")
    form = {
        "precision": args.teacher_precision,
        "channels_last": args.teacher_channels_last,
        "compile": args.teacher_compile,
        "batch_size": args.teacher_batch,
        "fold_norms": args.fold,
    }
    options = {
        "size": tuple(args.size) if args.size else None,
        "amp": args.amp,
        "channels_last": args.channels_last,
        "compiled": args.compile,
        "teacher": {key: value for key, value in form.items() if value is not None},
        "dry": args.dry,
    }
    with started(device.type) as process:
        device = process.device
        cases = measure.one_by_one(
            args.case, lambda name: measure_case(CASES[name], device, rounds, **options)
        )
    return measure.finish("step", path, device, rounds, as_table(cases), cases=cases)


if __name__ == "__main__":
    raise SystemExit(main())
