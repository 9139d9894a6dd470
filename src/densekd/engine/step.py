"""One optimizer step: the student's phase, then the discriminator's, over the step's batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from densekd.distill.distiller import Distiller, HolisticMaps
from densekd.distill.student import Student
from densekd.engine.optim import gradient_norm
from densekd.errors import NonFiniteError
from densekd.models.finite import not_finite, said
from densekd.ops import collectives
from densekd.ops.conditions import Condition, deferred
from densekd.ops.names import teacher_section
from densekd.types import Batch

ADVICE = (
    "Checkpoints are written only while every weight is finite. To go on from the last one with other settings, start "
    "a new --name with --model.weights RUN/checkpoints/last.pt."
)
BLAMED = "the teacher"
# GradScaler starts at 65536 and halves at each overflow.
SMALLEST_SCALE = 2.0**-14
AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Step:
    """Repeats one thing: batches in, updated student (and discriminator), named scalars out.

    Args:
        distiller: forward passes and terms.
        optimizer: the student's.
        discriminator_optimizer: needed where the distiller has an adversary.
        amp: ``"none"``, ``"bf16"`` or ``"fp16"`` (with loss scaling); the discriminator stays in float32.
        clip: largest gradient norm of the student, or None.
        ema: averaged student to update after each step, or None.
    """

    def __init__(
        self,
        distiller: Distiller,
        optimizer: torch.optim.Optimizer,
        *,
        discriminator_optimizer: torch.optim.Optimizer | None = None,
        amp: str = "none",
        clip: float | None = None,
        ema: AveragedModel | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if distiller.adversary is not None and discriminator_optimizer is None:
            raise ValueError("the holistic term's discriminator needs an optimizer of its own")
        self.distiller = distiller
        self.optimizer = optimizer
        self.discriminator_optimizer = discriminator_optimizer
        self.dtype = AMP[amp]
        self.device = torch.device(device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp == "fp16")
        self.clip = clip
        self.ema = ema
        self.parameters = [p for g in optimizer.param_groups for p in g["params"]]

    def __call__(self, batches: Sequence[Batch], step: int) -> dict[str, float]:
        """Update once from `batches` (their losses are averaged).

        Returns:
            ``{"task/ce", "distill/pixel_wise", ..., "discriminator/adversarial", ..., "loss", "grad_norm"}``, and
            ``"weight/pixel_wise"`` of each term whose weight changes.

        Raises:
            NonFiniteError: a term or a gradient is NaN or infinite; no weight has changed.
            ValueError: a loss cannot be taken of these values (depth at or below 0 m); no weight has changed.
        """
        self.distiller.student.train()
        named, maps, norm = self._student_gradients(batches, step)
        # Both phases are checked before either network moves: the discriminator's works on detached maps.
        if self.distiller.adversary is not None:
            named.update(self._discriminator_gradients(maps, step))
        self._apply(norm, step)
        return named

    def _student_gradients(
        self, batches: Sequence[Batch], step: int
    ) -> tuple[dict[str, float], list[HolisticMaps], Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        kept: list[HolisticMaps] = []
        conditions: list[Condition] = []
        for i, batch in enumerate(batches):
            with _sync_only(self.distiller.student, i == len(batches) - 1):
                with self._autocast(), deferred() as found:
                    losses, maps = self.distiller.student_phase(batch, step)
                total = torch.stack([v.float() for v in losses.values()]).sum() / len(batches)
                self.scaler.scale(total).backward()
            _add(sums, losses, len(batches))
            conditions += found
            if maps is not None:
                kept.append(maps)
        self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(self.parameters).to(self.device)
        # The conditions of losses on what they were given are read with the losses.
        held = {f"condition {i}": c.holds.to(norm.dtype) for i, c in enumerate(conditions)}
        named = _values({**sums, "grad_norm": norm, **held})
        broken = [
            c.message() for c, name in zip(conditions, held, strict=True) if not named.pop(name)
        ]
        self._check_values(named, broken, step, batches)
        named["loss"] = sum(v for k, v in named.items() if k != "grad_norm")
        named.update(self.distiller.weights_at(step))
        return named, kept, norm

    def _check_values(
        self, named: dict[str, float], broken: Sequence[str], step: int, batches: Sequence[Batch]
    ) -> None:
        """Raise on every rank as soon as a condition of a loss is broken or something is non-finite on one."""
        bad = [k for k, v in named.items() if not math.isfinite(v) and k != "grad_norm"]
        # Under fp16 loss scaling a gradient overflows now and then; the scaler skips that step by itself.
        bad_gradient = not self.scaler.is_enabled() and not math.isfinite(named["grad_norm"])
        if not collectives.any_rank(bool(broken or bad) or bad_gradient, self.device):
            return
        for messages in collectives.gather_objects(broken):
            if messages:
                raise ValueError(messages[0])
        bad += self._not_finite_teachers(batches)
        network = bare(self.distiller.student)
        _raise_non_finite(
            bad, network, step, f"Lower optim.lr or the term's weight, or set optim.clip. {ADVICE}"
        )

    def _not_finite_teachers(self, batches: Sequence[Batch]) -> list[str]:
        """A line for every teacher whose answer for these images is the cause."""
        lines = []
        for name, teacher in self.distiller.teachers.items():
            with self._autocast():
                if all(teacher.answers(teacher(batch.images)) for batch in batches):
                    continue
            wrong, section = not_finite(teacher), teacher_section(name)
            weights = (
                f": of its weights, {said(wrong, len(teacher.state_dict()))}"
                if wrong
                else f", though its weights are finite: set {section}.precision fp32, or check {section}.input"
            )
            who = f"{BLAMED}{f' {name}' if name else ''}"
            lines.append(f"{who} gives NaN or infinity for these images{weights}")
        return lines

    def _discriminator_gradients(self, kept: Sequence[HolisticMaps], step: int) -> dict[str, float]:
        assert self.discriminator_optimizer is not None
        assert self.distiller.adversary is not None
        network = self.distiller.adversary.network
        network.train()
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for i, maps in enumerate(kept):
            # One forward and one backward for everything: what DDP needs to be exact with a gradient penalty.
            with _sync_only(network, i == len(kept) - 1):
                losses = self.distiller.discriminator_phase(maps)
                (torch.stack(list(losses.values())).sum() / len(kept)).backward()
            _add(sums, losses, len(kept))
        norm = gradient_norm(network.parameters()).to(self.device)
        named = _values({**sums, "discriminator/grad_norm": norm})
        finite = math.isfinite(named.pop("discriminator/grad_norm"))
        bad = [k for k, v in named.items() if not math.isfinite(v)]
        if collectives.any_rank(bool(bad) or not finite, self.device):
            _raise_non_finite(
                bad, network, step, f"Lower distill.holistic.lr or use its adam optimizer. {ADVICE}"
            )
        return named

    def _apply(self, norm: Tensor, step: int) -> None:
        if self.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE:
            raise NonFiniteError(
                f"step {step}: gradients overflow in fp16 however small the loss is scaled, so nothing is learned. "
                f"Use train.amp bf16 or none. {ADVICE}"
            )
        if self.discriminator_optimizer is not None:
            self.discriminator_optimizer.step()
        if self.ema is not None:
            self.ema.update_parameters(bare(self.distiller.student).model)

    def _autocast(self) -> AbstractContextManager:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def bare(student: nn.Module) -> Student:
    """The tapped network itself (with its terms), without DDP around it."""
    inner = student.module if isinstance(student, nn.parallel.DistributedDataParallel) else student
    assert isinstance(inner, Student)
    return inner


def _sync_only(module: nn.Module, last: bool) -> AbstractContextManager:
    """Under DDP, exchange gradients in the last of several backward passes only."""
    if last or not isinstance(module, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return module.no_sync()


def _add(sums: dict[str, Tensor], losses: dict[str, Tensor], count: int) -> None:
    for name, value in losses.items():
        value = value.detach().float() / count
        sums[name] = sums[name] + value if name in sums else value


def _values(tensors: dict[str, Tensor]) -> dict[str, float]:
    """All scalars in one transfer from the device."""
    if not tensors:
        return {}
    return dict(
        zip(tensors, torch.stack([t.reshape(()) for t in tensors.values()]).tolist(), strict=True)
    )


def _raise_non_finite(bad: list[str], network: nn.Module, step: int, advice: str) -> NoReturn:
    """Name the cause, on any rank: a teacher, weights, terms, or the parameter whose gradient is not finite."""
    everywhere = sorted({name for names in collectives.gather_objects(bad) for name in names})
    teachers = [name for name in everywhere if name.startswith(BLAMED)]
    if teachers:
        terms = [name for name in everywhere if name not in teachers]
        raise NonFiniteError(
            f"step {step}: {', '.join(terms) or 'the gradient'} is not finite, because {'; '.join(teachers)}. {ADVICE}"
        )
    wrong = not_finite(network)
    weights = (
        f" Before this step already, {said(wrong, len(network.state_dict()))}." if wrong else ""
    )
    if everywhere:
        raise NonFiniteError(
            f"step {step}: {', '.join(everywhere)} is not finite.{weights} {advice}"
        )
    names = [
        n
        for n, p in network.named_parameters()
        if p.grad is not None and not p.grad.isfinite().all()
    ]
    if not names:
        raise NonFiniteError(
            f"step {step}: every term is finite, and the gradient is too large: its norm is infinite on a process."
            f"{weights} {advice}"
        )
    raise NonFiniteError(
        f"step {step}: every term is finite but the gradient is not (first in {names[0]}).{weights} {advice}"
    )
