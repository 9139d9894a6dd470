"""What each form of the frozen teacher costs: its forward as loaded, folded, channels_last, in bf16, compiled.

    OMP_NUM_THREADS=1 python -m benchmarks.teacher [--case NAME ...] [--form NAME ...] [--pairs 20] [--clock cpu]

Each form has what the forms before it have, except that compiled does without bf16. Weights and images are the
same in all, so the record also holds how far each form's prediction is from the loaded network's.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.cases import CASES, Case, make_case
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
STANDARD = [
    "espnet_c_from_espnet",
    "espnet_from_psp_lite0",
    "pspnet_r18_from_r101",
    "fcos_mv2_from_r50",
]


def answers(teacher: Teacher, images: Tensor) -> Tensor:
    """The logits, of all levels in one row."""
    prediction = teacher(images).prediction
    maps = [prediction] if isinstance(prediction, Tensor) else prediction.logits
    return torch.cat([x.float().flatten() for x in maps])


def measure_case(
    case: Case, device: torch.device, forms: list[str], args: argparse.Namespace
) -> dict[str, Any]:
    size = tuple(args.size) if args.size else None
    teachers = {}
    for name in [LOADED, *forms]:
        config, distiller, batch = make_case(
            case, device, size=size, dry=args.dry, teacher=FORMS[name]
        )
        assert distiller.teacher is not None
        assert config.teacher is not None
        teachers[name] = distiller.teacher
    images = batch.images
    first = answers(teachers[LOADED], images)
    differences = {
        name: float((answers(teachers[name], images) - first).abs().max() / first.abs().max())
        for name in forms
    }
    pairs, warmup = (2, 1) if args.dry else (args.pairs, args.warmup)
    seconds = measure.interleave(
        {
            name: partial(measure.timed, partial(teacher, images), device, args.clock)
            for name, teacher in teachers.items()
        },
        pairs=pairs,
        warmup=warmup,
    )
    return {
        "teacher": config.teacher.name,
        "batch": list(images.shape),
        "seconds": {name: measure.spread(values) for name, values in seconds.items()},
        "ratio": {name: measure.ratio(seconds[name], seconds[LOADED]) for name in forms},
        "largest_difference": differences,
        "peak_bytes": {
            name: measure.peak_memory(partial(teacher, images), device)
            for name, teacher in teachers.items()
        },
        "raw_seconds": seconds,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.teacher", description=__doc__.split("\n")[0]
    )
    measure.common_arguments(parser)
    forms = [name for name in FORMS if name != LOADED]
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=STANDARD)
    parser.add_argument(
        "--form", nargs="+", choices=forms, default=[f for f in forms if f != "compiled"]
    )
    parser.add_argument("--size", nargs=3, type=int, metavar=("BATCH", "HEIGHT", "WIDTH"))
    args = parser.parse_args(arguments)
    device = measure.pick(args.device, args.clock)
    path = measure.output_path(args.output, f"teacher-{device.type}" + ("-dry" if args.dry else ""))
    cases = {}
    with started(device.type) as process:
        for name in args.case:
            print(f"{name} ...", flush=True)
            cases[name] = measure_case(CASES[name], process.device, args.form, args)
        result = measure.record(
            "teacher", process.device, clock=args.clock, pairs=args.pairs, cases=cases
        )
    measure.write(result, path)
    rows = [
        [
            found["teacher"], "×".join(map(str, found["batch"])), f"{found['seconds'][LOADED]['median']:.3f}", name,
            f"{found['seconds'][name]['median']:.3f}",
            f"{r['median']:.3f} [{r['interval'][0]:.3f}, {r['interval'][1]:.3f}]",
            f"{found['largest_difference'][name]:.1e}",
        ]
        for found in cases.values()
        for name, r in found["ratio"].items()
    ]  # fmt: skip
    head = ["teacher", "batch", "loaded s", "form", "s", "time over loaded", "difference"]
    print(measure.table(head, rows))
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
