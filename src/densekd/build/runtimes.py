"""A recipe's teachers in another runtime than PyTorch, checked against PyTorch on its own first images."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from densekd.build.settings import naming_settings
from densekd.config.schema import Config
from densekd.distill.distiller import Distiller
from densekd.distill.source import wants_prediction
from densekd.distill.teacher import Teacher
from densekd.errors import UserError
from densekd.ops.names import teacher_section
from densekd.types import Batch

TOLERANCE = 1e-3  # of a map's largest value, in float32
# What int8 may change a term's value, and its gradient in the student's weights, by.
INT8_VALUE, INT8_GRADIENT = 0.1, 0.25
INT8 = "_int8"
CALIBRATION_BATCHES = 16  # of two images


def use_runtimes(
    config: Config,
    distiller: Distiller,
    batch: Batch,
    first_images: Callable[[int], Iterable[Tensor]],
) -> list[str]:
    """Put every teacher of another runtime into it, and say how far its maps are from PyTorch's.

    Args:
        batch: a few of the recipe's first images with their targets.
        first_images: so many batches of training images, for the ranges of int8.

    Raises:
        UserError: a package is missing, the teacher cannot be exported, or the error is above what is allowed.
    """
    remarks = []
    for name, teacher in distiller.teachers.items():
        where = teacher_section(name)
        runtime = config.every_teacher[where].runtime
        if runtime == "eager":
            continue
        if batch.images.device.type != "cpu":
            raise UserError(
                f"{where}.runtime: {runtime} computes on the CPU, and this run is on {batch.images.device.type}; leave "
                "it out, or give --device cpu"
            )
        with naming_settings({}, f"{where}.runtime"):
            found = _put(runtime, distiller, name, teacher, batch, first_images)
        remarks.append(f"{where}.runtime: {runtime} computes the teacher; {found}")
    return remarks


def _put(
    runtime: str,
    distiller: Distiller,
    name: str,
    teacher: Teacher,
    batch: Batch,
    first_images: Callable[[int], Iterable[Tensor]],
) -> str:
    # Imported where it is used: the exporter takes seconds to import, and most runs have no other runtime.
    from densekd.export.teacher import TeacherProgram, check_runtime, map_errors

    base = runtime.removesuffix(INT8)
    check_runtime(base)
    rounds = runtime != base
    prediction = asks_prediction(distiller, name)
    before = term_gradients(distiller, batch) if rounds else {}
    program = TeacherProgram(
        teacher.network,
        batch.images,
        runtime=base,
        prediction=prediction,
        calibration=first_images(CALIBRATION_BATCHES) if rounds else None,
    )
    with torch.no_grad():
        expected = teacher.network.forward(batch.images, prediction=prediction)
    errors = map_errors(expected, program(batch.images))
    worst = max(errors, key=lambda key: errors[key])
    if not rounds and not errors[worst] <= TOLERANCE:
        raise UserError(
            f"{runtime} differs from PyTorch by {errors[worst]:.1e} of the largest value of {worst}, on the first "
            f"images; at most {TOLERANCE:g} is allowed. Take another runtime, or eager"
        )
    teacher.program = program
    said = f"its maps are within {errors[worst]:.1e} of the largest value of PyTorch's"
    if not rounds:
        return said
    changed = term_errors(before, term_gradients(distiller, batch))
    for term, (value, gradient) in changed.items():
        if not (value <= INT8_VALUE and gradient <= INT8_GRADIENT):
            teacher.program = None
            raise UserError(
                f"{runtime} changes {term} by {value:.1%} and its gradient by {gradient:.1%} on the first images; at "
                f"most {INT8_VALUE:.0%} and {INT8_GRADIENT:.0%} are allowed. Take {base}, which computes in float32, "
                "or eager"
            )
    if not changed:
        return said
    value, gradient = (max(pair[i] for pair in changed.values()) for i in (0, 1))
    return f"{said}, the terms change by at most {value:.1%} and their gradients by {gradient:.1%}"


def asks_prediction(distiller: Distiller, name: str) -> bool:
    """Whether anything takes the prediction of the teacher of this name (empty: the only one)."""
    own = [term for term in distiller.terms if term.teacher_name in (None, name or None)]
    return (
        distiller.adversary is not None
        or distiller.pseudo_boxes is not None
        or any(wants_prediction(term, distiller.task) for term in own)
    )


def term_gradients(distiller: Distiller, batch: Batch) -> dict[str, tuple[float, Tensor]]:
    """Every term that teaches: its value, and its gradient in the weights of the student's network, in one row.

    The student is in eval mode, and neither it nor a term remembers anything of this. The discriminator's score of the
    student does not depend on the teacher, so it is not among them.
    """
    trial = copy.copy(distiller)
    trial.terms = copy.deepcopy(distiller.terms)
    for term in trial.terms:
        # A weight that ends at 0 would hide the term, and a balanced one a change of its size.
        term.weight, term.balance = 1.0, None
    student = distiller.student
    inner = getattr(student, "module", student)
    parameters = [p for p in inner.model.parameters() if p.requires_grad]  # pyrefly: ignore
    training = student.training
    student.eval()
    found = {}
    try:
        with torch.random.fork_rng([]), torch.enable_grad():
            torch.manual_seed(0)  # of terms that draw
            losses, _ = trial.student_phase(batch, step=2**31)
            for name, loss in losses.items():
                if (
                    not name.startswith("distill/")
                    or name == "distill/holistic"
                    or not loss.requires_grad
                ):
                    continue
                parts = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
                row = [p.double().flatten() for p in parts if p is not None]
                found[name.replace("/", ".")] = (
                    float(loss.detach()),
                    torch.cat(row) if row else torch.zeros(1).double(),
                )
    finally:
        student.train(training)
    return found


def term_errors(
    before: Mapping[str, tuple[float, Tensor]], after: Mapping[str, tuple[float, Tensor]]
) -> dict[str, tuple[float, float]]:
    """Name of a term -> by how much its value and its gradient differ, each relative to what it was."""
    errors = {}
    for name, (value, gradient) in before.items():
        new_value, new_gradient = after[name]
        errors[name] = (
            abs(new_value - value) / max(abs(value), 1e-12),
            float((new_gradient - gradient).norm()) / max(float(gradient.norm()), 1e-12),
        )
    return errors


def installed(runtime: str) -> bool:
    """Whether the packages of a runtime are there."""
    packages = ["onnx", "onnxscript", "onnxruntime"]
    if runtime.startswith("openvino"):
        packages.append("openvino")
    return all(importlib.util.find_spec(package) is not None for package in packages)
