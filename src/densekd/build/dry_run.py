"""Every forward pass and every term once, before any work is lost."""

from __future__ import annotations

import copy

import torch

from densekd.distill.distiller import Distiller
from densekd.errors import UserError
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
def dry_run(distiller: Distiller, batch: Batch) -> list[str]:
    """Every forward pass and term once: shapes, taps, class counts and targets a loss cannot use fail here.

    Returns:
        Remarks on what is legal but unlikely to be meant.
    """
    student, task = distiller.student.eval(), distiller.task
    trial = copy.copy(distiller)
    trial.terms = copy.deepcopy(distiller.terms)  # what a term remembers begins with the first step
    try:
        task.check_output(student(batch.images), "student")
        for teacher in distiller.teachers.values():
            task.check_output(teacher(batch.images), "teacher")
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
    remarks = []
    if batch.labelled.any() and not any(v for k, v in losses.items() if k.startswith("task/")):
        remarks.append(
            f"the supervised loss of a first batch ({', '.join(batch.names)}) is 0: nothing in it counts; are classes, "
            "range and unit of the labels those of the recipe?"
        )
    mask = task.mask(batch, distiller.mask) if distiller.terms else None
    if mask is not None and 0 < mask[batch.inside].float().mean() < SPARSE:
        share = float(mask[batch.inside].float().mean())
        remarks.append(
            f"distill.mask {distiller.mask} leaves {share:.0%} of a first batch to be compared with the teacher; "
            "--distill.mask padding compares all"
        )
    return remarks
