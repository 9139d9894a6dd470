"""Every forward pass and every term once, before any work is lost."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from densekd.distill.distiller import Distiller
from densekd.errors import UserError
from densekd.ops.names import teacher_section
from densekd.tasks import Task
from densekd.types import Batch

SPARSE = 0.3  # share of compared pixels below which there is a remark


def example_batch(
    task: Task, channels: int, size: tuple[int, int], device: torch.device, count: int = 1
) -> Batch:
    """`count` made-up images with made-up targets, where there is no data at hand."""
    return Batch(
        images=torch.rand(count, channels, *size, device=device),
        targets=task.example_targets(count, size, device),
        labelled=torch.ones(count, dtype=torch.bool, device=device),
        inside=torch.ones(count, *size, dtype=torch.bool, device=device),
        names=[""] * count,
    )


@torch.no_grad()
def dry_run(distiller: Distiller, batch: Batch, train_batch: int | None = None) -> list[str]:
    """Every forward pass and term once: shapes, taps, class counts and targets a loss cannot use fail here.

    Args:
        train_batch: as many of the images as a step has, up to all: the student sees them in training mode too. None:
            it does not.

    Returns:
        Remarks on what is legal but unlikely to be meant.
    """
    student, task = distiller.student.eval(), distiller.task
    trial = copy.copy(distiller)
    trial.terms = copy.deepcopy(distiller.terms)  # what a term remembers begins with the first step
    try:
        task.check_output(student(batch.images), "student")
        for name, teacher in distiller.teachers.items():
            output = teacher(batch.images)
            task.check_output(output, "teacher")
            if not teacher.answers(output):
                section = teacher_section(name)
                raise UserError(
                    f"the teacher{f' {name}' if name else ''} gives NaN or infinity for the first images, though its "
                    f"weights are finite: set {section}.precision fp32, or check {section}.input"
                )
        losses, _ = trial.student_phase(batch, step=2**31)
    except UserError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        height, width = batch.images.shape[-2:]
        raise UserError(
            f"the networks and terms do not fit at {height}x{width}: {error}"
        ) from error
    finally:
        student.train()
    if train_batch is not None:
        _try_training_mode(distiller.student, batch.images[:train_batch])
    remarks = []
    if batch.labelled.any() and not any(v for k, v in losses.items() if k.startswith("task/")):
        remarks.append(
            f"the supervised loss of a first batch ({', '.join(batch.names)}) is 0: nothing in it counts; are classes, "
            "range and unit of the labels those of the recipe?"
        )
    if distiller.pseudo_boxes is not None and batch.labelled.all():
        remarks.append(
            "distill.pseudo_boxes: every image of a first batch has a label, and the teacher's boxes teach the others "
            "alone; give them as data.unlabelled"
        )
    mask = task.mask(batch, distiller.mask) if distiller.terms else None
    if mask is not None and 0 < mask[batch.inside].float().mean() < SPARSE:
        share = float(mask[batch.inside].float().mean())
        remarks.append(
            f"distill.mask {distiller.mask} leaves {share:.0%} of a first batch to be compared with the teacher; "
            "--distill.mask padding compares all"
        )
    return remarks


def _try_training_mode(student: nn.Module, images: Tensor) -> None:
    """One forward pass as a step has it, which leaves no trace: a norm of one value a channel cannot be trained."""
    buffers = {name: value.clone() for name, value in student.named_buffers()}
    devices = [images.device] if images.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            student(images)
    except UserError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        if "out of memory" in str(error):
            raise
        height, width = images.shape[-2:]
        raise UserError(
            f"the student cannot be trained on batches of {len(images)} at {height}x{width}: {error}. Take a larger "
            "data.batch_size or data.crop"
        ) from error
    finally:
        for name, value in student.named_buffers():
            value.copy_(buffers[name])
