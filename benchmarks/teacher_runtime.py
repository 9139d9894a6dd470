"""The frozen teacher's forward pass by what computes it: PyTorch, torch.compile, ONNX Runtime, OpenVINO, and int8.

    OMP_NUM_THREADS=1 python -m benchmarks.teacher_runtime [--case NAME] [--size N H W] [--form NAME ...] [--clock cpu]

Each form is timed in turns with the network as it was loaded, on the same images. Beside its time stand the largest
difference of a map (as a share of the map's largest value) and what it changes the terms and their gradients in the
student by. The weights and images are random, so int8 is calibrated on noise: what it costs the student of a trained
teacher, a training says (docs/benchmarks.md).
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch

from benchmarks import measure
from benchmarks.cases import CASES, SIZE, make_case
from densekd.build.runtimes import INT8, asks_prediction, term_errors, term_gradients
from densekd.engine.launch import started
from densekd.export.teacher import TeacherProgram, map_errors

LOADED = "loaded"
FOLDED = {"channels_last": False, "precision": "fp32"}
# What torch.compile is given in the forms that it makes.
COMPILED: dict[str, dict[str, Any]] = {
    "compiled": {},
    "compiled_frozen": {"options": {"freezing": True}},  # weights as constants, packed once
}
# Form -> the teacher's settings.
FORMS: dict[str, dict[str, Any]] = {
    LOADED: {**FOLDED, "fold_norms": False},
    "folded": FOLDED,
    "channels_last": {**FOLDED, "channels_last": True},
    "compiled": FOLDED,
    "compiled_frozen": FOLDED,
    "onnxruntime": {**FOLDED, "runtime": "onnxruntime"},
    "openvino": {**FOLDED, "runtime": "openvino"},
    "onnxruntime_int8": {**FOLDED, "runtime": "onnxruntime_int8"},
    "openvino_int8": {**FOLDED, "runtime": "openvino_int8"},
}


def measure_case(
    name: str, device: torch.device, forms: list[str], rounds: measure.Rounds, **options: Any
) -> dict[str, Any]:
    """Time, errors and the seconds of getting ready, of every form against the loaded network."""
    calls, maps, gradients, ready = {}, {}, {}, {}
    batch = None
    for form in [LOADED, *forms]:
        print(f"{form} ...", flush=True)
        config, distiller, drawn = make_case(CASES[name], device, teacher=FORMS[form], **options)
        batch = (
            drawn if batch is None else batch
        )  # folding draws, so that the later ones are others
        teacher = distiller.teacher
        assert teacher is not None
        assert config.teacher is not None
        begin = time.process_time()
        runtime = config.teacher.runtime
        if form in COMPILED:
            teacher.network.compile(**COMPILED[form])
        elif runtime != "eager":
            others = torch.rand(
                8, *batch.images.shape[1:], generator=torch.Generator().manual_seed(1)
            )
            teacher.program = TeacherProgram(
                teacher.network,
                batch.images,
                runtime=runtime.removesuffix(INT8),
                prediction=asks_prediction(distiller, ""),
                calibration=[others] if runtime.endswith(INT8) else None,
            )
        maps[form] = teacher(batch.images)
        ready[form] = time.process_time() - begin
        gradients[form] = term_gradients(distiller, batch)
        calls[form] = partial(teacher, batch.images)
    assert batch is not None
    seconds = rounds.seconds(calls, device)
    terms = {form: term_errors(gradients[LOADED], gradients[form]) for form in forms}
    return {
        "teacher": config.teacher.name,
        "batch": list(batch.images.shape),
        "seconds": {form: measure.spread(values) for form, values in seconds.items()},
        "ratio": {form: measure.ratio(seconds[form], seconds[LOADED]) for form in forms},
        "map_errors": {form: map_errors(maps[LOADED], maps[form]) for form in forms},
        "term_errors": {
            form: {term: {"value": value, "gradient": gradient} for term, (value, gradient) in found.items()}
            for form, found in terms.items()
        },
        "ready_seconds": ready,
        "raw_seconds": seconds,
    }  # fmt: skip


def as_table(found: dict[str, Any]) -> str:
    rows = []
    for form, ratio in found["ratio"].items():
        terms = found["term_errors"][form].values()
        rows.append(
            [
                form, f"{found['seconds'][form]['median']:.3f}", measure.with_interval(ratio),
                f"{max(found['map_errors'][form].values()):.1e}",
                f"{max(term['value'] for term in terms):.1e}",
                f"{max(term['gradient'] for term in terms):.1e}",
                f"{found['ready_seconds'][form]:.0f}",
            ]
        )  # fmt: skip
    title = f"{found['teacher']}, {measure.times(found['batch'])}; loaded {found['seconds'][LOADED]['median']:.3f} s"
    head = ["form", "s", "time over loaded", "maps", "terms", "gradients", "ready after s"]
    return f"{title}\n\n{measure.table(head, rows)}"


def main(arguments: list[str] | None = None) -> int:
    parser = measure.make_parser("teacher_runtime", __doc__, pairs=10)
    forms = [form for form in FORMS if form != LOADED]
    parser.add_argument("--case", choices=list(CASES), default="pspnet_r18_from_r101")
    parser.add_argument("--form", nargs="+", choices=forms, default=forms)
    parser.add_argument("--size", **SIZE)
    args = parser.parse_args(arguments)
    device = measure.pick(args.device, args.clock)
    if device.type != "cpu":
        raise SystemExit("--device: the runtimes compute on the CPU; give cpu")
    path, rounds = measure.begin(args, "teacher_runtime")
    size = tuple(args.size) if args.size else None
    with started(device.type) as process:
        found = measure_case(args.case, process.device, args.form, rounds, size=size, dry=args.dry)
    return measure.finish(
        "teacher_runtime", path, device, rounds, as_table(found), case=args.case, **found
    )


if __name__ == "__main__":
    raise SystemExit(main())
