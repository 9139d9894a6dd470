"""The cost of each form of the frozen teacher: its forward as loaded, folded, channels_last, in bf16, compiled.

    OMP_NUM_THREADS=1 python -m benchmarks.teacher [--case NAME ...] [--form NAME ...] [--pairs 20] [--clock cpu]

Each form has what the forms before it have, except that compiled does without bf16. Weights and images are the
same in all, so the record also holds how far each form's prediction is from the loaded network's.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.cases import CASES, SIZE, STANDARD, Case, make_case
from densekd.distill.teacher import Teacher
from densekd.engine.launch import started

LOADED = "loaded"
FORMS: dict[str, dict[str, Any]] = {
    LOADED: {"fold_norms": False, "channels_last": False, "precision": "fp32"},
    "folded": {"channels_last": False, "precision": "fp32"},
    "channels_last": {"channels_last": True, "precision": "fp32"},
    "bf16": {"channels_last": True, "precision": "bf16"},
    "compiled": {"channels_last": True, "precision": "fp32", "compile": True},
}


def answers(teacher: Teacher, images: Tensor) -> Tensor:
    """The logits of all levels in one row."""
    prediction = teacher(images).prediction
    maps = [prediction] if isinstance(prediction, Tensor) else prediction.logits
    return torch.cat([x.float().flatten() for x in maps])


def measure_case(
    case: Case, device: torch.device, forms: list[str], rounds: measure.Rounds, **options: Any
) -> dict[str, Any]:
    """The time of every form over that of the loaded network, and how far its answers are from it."""
    teachers = {}
    for name in [LOADED, *forms]:
        config, distiller, batch = make_case(case, device, teacher=FORMS[name], **options)
        assert distiller.teacher is not None
        assert config.teacher is not None
        teachers[name] = distiller.teacher
    images = batch.images
    first = answers(teachers[LOADED], images)
    differences = {
        name: float((answers(teachers[name], images) - first).abs().max() / first.abs().max())
        for name in forms
    }
    calls = {name: partial(teacher, images) for name, teacher in teachers.items()}
    seconds = rounds.seconds(calls, device)
    return {
        "teacher": config.teacher.name,
        "batch": list(images.shape),
        "seconds": {name: measure.spread(values) for name, values in seconds.items()},
        "ratio": {name: measure.ratio(seconds[name], seconds[LOADED]) for name in forms},
        "largest_difference": differences,
        "peak_bytes": {name: measure.peak_memory(call, device) for name, call in calls.items()},
        "raw_seconds": seconds,
    }


def as_table(cases: dict[str, dict[str, Any]]) -> str:
    rows = [
        [
            found["teacher"], measure.times(found["batch"]), f"{found['seconds'][LOADED]['median']:.3f}", name,
            f"{found['seconds'][name]['median']:.3f}", measure.with_interval(ratio),
            f"{found['largest_difference'][name]:.1e}",
        ]
        for found in cases.values()
        for name, ratio in found["ratio"].items()
    ]  # fmt: skip
    head = ["teacher", "batch", "loaded s", "form", "s", "time over loaded", "difference"]
    return measure.table(head, rows)


def main(arguments: list[str] | None = None) -> int:
    parser = measure.make_parser("teacher", __doc__)
    forms = [name for name in FORMS if name != LOADED]
    standard = [form for form in forms if form != "compiled"]
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=STANDARD)
    parser.add_argument("--form", nargs="+", choices=forms, default=standard)
    parser.add_argument("--size", **SIZE)
    args = parser.parse_args(arguments)
    device = measure.pick(args.device, args.clock)
    path, rounds = measure.begin(args, f"teacher-{device.type}")
    options = {"size": tuple(args.size) if args.size else None, "dry": args.dry}
    with started(device.type) as process:
        device = process.device
        cases = measure.one_by_one(
            args.case, lambda name: measure_case(CASES[name], device, args.form, rounds, **options)
        )
    return measure.finish("teacher", path, device, rounds, as_table(cases), cases=cases)


if __name__ == "__main__":
    raise SystemExit(main())
