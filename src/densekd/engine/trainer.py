"""The loop, visible: take batches, step, and every so often log, save and evaluate."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from densekd.engine.checkpoint import keep_as, newest_checkpoint, save_atomic
from densekd.engine.folder import RunFolder
from densekd.engine.launch import Process, StopRequest
from densekd.engine.log import Log, cut_metrics
from densekd.engine.optim import set_lr
from densekd.engine.step import Step, bare
from densekd.errors import NonFiniteError, UserError
from densekd.models.finite import not_finite, said
from densekd.models.weights import save_weights
from densekd.ops import collectives
from densekd.types import Batch


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make every random draw of a step (dropout, the penalty's alpha) a pure function of seed, step and rank.

    So a resumed run needs no random state: it draws what the uninterrupted run would have drawn.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=7).digest()
    torch.manual_seed(int.from_bytes(digest, "big"))


class Training:
    """Everything that holds state over steps, saved and restored together.

    Args:
        step: the optimizer step.
        folder: where the run lives.
        process: this process among all.
        metadata: strings that travel in the student's safetensors file (input spec, class names).
        identity: what must be the same when the run goes on and stands in no setting (the teacher's digest).
    """

    def __init__(
        self,
        step: Step,
        folder: RunFolder,
        process: Process,
        *,
        metadata: dict[str, str],
        identity: dict[str, str] | None = None,
    ) -> None:
        self.step = step
        self.folder = folder
        self.process = process
        self.metadata = metadata
        self.identity = {**(identity or {}), "processes": str(process.world_size)}
        self.done = 0
        self.saved: int | None = None  # the step of the checkpoint that is there
        self.remarks: list[str] = []  # what was odd about the checkpoints that the run goes on from
        self.last_is_good = True
        self.scored = 0  # the step of the last evaluation
        self.seconds = 0.0  # over all starts of the run
        self.skipped: dict[str, str] = {}
        self.best: float | None = None
        self.scores: dict[str, Any] | None = None
        # Step values since the last logged row, kept so that a resumed run logs the rows of an uninterrupted one.
        self.sums: dict[str, float] = {}
        self.counted = 0

    @property
    def student(self) -> nn.Module:
        """The bare network that is trained."""
        return bare(self.step.distiller.student).model

    @property
    def result(self) -> nn.Module:
        """The network to evaluate and share: the averaged one where there is one."""
        ema: AveragedModel | None = self.step.ema
        return self.student if ema is None else ema.module

    def save(self) -> None:
        """Write ``last.pt`` (rank 0), and keep the one before as ``previous.pt``.

        Ranks hold equal state: what differs by rank is drawn anew each step.

        Raises:
            NonFiniteError: weights hold NaN or infinity; the checkpoints stay as they are.
        """
        self.check_finite()
        self.saved = self.done
        if self.process.rank != 0:
            return
        step, adversary = self.step, self.step.distiller.adversary
        state = {
            "step": self.done,
            "best": self.best,
            "scores": self.scores,
            "scored": self.scored,
            "seconds": self.seconds,
            "skipped": dict(self.skipped),
            "identity": self.identity,
            "sums": self.sums,
            "counted": self.counted,
            "student": self.student.state_dict(),
            "terms": bare(step.distiller.student).terms_state(),
            "optimizer": step.optimizer.state_dict(),
            "scaler": step.scaler.state_dict(),
            "ema": None if step.ema is None else step.ema.state_dict(),
            "discriminator": None if adversary is None else adversary.discriminator.state_dict(),
            "discriminator_optimizer": None
            if step.discriminator_optimizer is None
            else step.discriminator_optimizer.state_dict(),
        }
        if self.last_is_good and self.folder.last.exists():
            keep_as(self.folder.last, self.folder.previous)
        save_atomic(state, self.folder.last)
        self.last_is_good = True

    def check_finite(self) -> None:
        """Raise NonFiniteError on every rank where weights that would be saved are not finite on one."""
        wrong = self._not_finite()
        if not collectives.any_rank(bool(wrong), self.process.device):
            return
        everywhere = sorted({line for lines in collectives.gather_objects(wrong) for line in lines})
        there = (
            "no checkpoint has been written yet"
            if self.saved is None
            else f"{self.folder.last} is of step {self.saved}, and its weights are finite"
        )
        raise NonFiniteError(
            f"step {self.done}: {'; '.join(everywhere)}. These weights are not saved; {there}. Lower optim.lr, "
            "optim.weight_decay or a term's weight, or set optim.clip, and start again under another --name"
        )

    def _not_finite(self) -> list[str]:
        """A line for every network of the run whose weights are not finite."""
        step = self.step
        networks: dict[str, nn.Module | None] = {
            "student": self.student,
            "averaged student": step.ema,
        }
        networks |= {f"term {term.name}": term for term in bare(step.distiller.student).each_term()}
        if step.distiller.adversary is not None:
            networks["discriminator"] = step.distiller.adversary.discriminator
        return [
            f"{name}: {said(found, len(network.state_dict()))}"
            for name, network in networks.items()
            if network is not None and (found := not_finite(network))
        ]

    def save_student(self, path: Path) -> None:
        """The bare network's weights alone (rank 0)."""
        if self.process.rank == 0:
            save_weights(self.result, path, self.metadata)

    def resume(self) -> bool:
        """Restore the newest checkpoint that can be read and cut the log to it; False where there is none yet.

        Where ``last.pt`` is damaged, ``previous.pt`` is taken and `remarks` says so.

        Raises:
            UserError: every checkpoint is damaged, or of a run that began otherwise.
        """
        state, path, wrong = newest_checkpoint((self.folder.last, self.folder.previous))
        if state is None or path is None:
            if self.process.rank == 0:
                cut_metrics(self.folder.metrics, 0)
            return False
        self.last_is_good = not wrong
        try:
            self._restore(state, path)
        except UserError:
            raise
        # The bytes are those that were written; so some other program, or version, wrote them.
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, IndexError) as error:
            raise UserError(
                f"--resume: {path} is no checkpoint of this run ({type(error).__name__}: {error}); restore the file, "
                "or start again under another --name"
            ) from error
        if infinite := self._not_finite():
            raise UserError(
                f"--resume: {path}: {'; '.join(infinite)}; nothing can be learned from there. Start again under "
                "another --name"
            )
        if wrong:
            self.remarks.append(f"{wrong[0]}; going on from {path}, which is of step {self.done}")
        if self.process.rank == 0:
            cut_metrics(self.folder.metrics, self.done, self.scored)
        return True

    def _restore(self, state: dict[str, Any], path: Path) -> None:
        for name, value in self.identity.items():
            if state["identity"].get(name) != value:
                raise UserError(
                    f"--resume: {self.folder.path} was started with {name} {state['identity'].get(name)}, now it is "
                    f"{value}; go on as it was started, or give another --name"
                )
        if "terms" not in state:
            raise UserError(
                f"--resume: {path} was written by an older version, which kept no state of the terms; "
                "go on with that version, or start again under another --name"
            )
        step, adversary = self.step, self.step.distiller.adversary
        self.student.load_state_dict(state["student"])
        try:
            bare(step.distiller.student).load_terms_state(state["terms"])
        except ValueError as error:
            raise UserError(f"--resume: {path}: {error}") from error
        step.optimizer.load_state_dict(state["optimizer"])
        step.scaler.load_state_dict(state["scaler"])
        if step.ema is not None:
            step.ema.load_state_dict(state["ema"])
        if adversary is not None:
            adversary.discriminator.load_state_dict(state["discriminator"])
        if step.discriminator_optimizer is not None:
            step.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        self.done, self.best, self.scores = state["step"], state["best"], state["scores"]
        self.scored, self.seconds = state["scored"], state["seconds"]
        self.skipped.update(state["skipped"])
        self.sums, self.counted = state["sums"], state["counted"]
        self.saved = self.done


def fit(
    training: Training,
    batches: Iterable[Batch],
    log: Log,
    stop: StopRequest,
    *,
    steps: int,
    seed: int,
    lr_factor: Callable[[int], float],
    evaluate: Callable[[nn.Module], dict[str, Any]] | None,
    best: str = "miou",
    smaller_is_better: bool = False,
    accumulate: int = 1,
    channels_last: bool = False,
    log_every: int = 20,
    save_every: int = 200,
    evaluate_every: int = 0,
) -> bool:
    """Train from `training.done` to `steps`.

    Args:
        batches: an endless stream that starts at batch `training.done * accumulate`.
        evaluate: scores the given network; called every `evaluate_every` steps and at the end.
        best: the metric that decides which weights ``best.safetensors`` keeps.
        smaller_is_better: that metric is an error.

    Returns:
        True at the end, False where `stop` ended it before; `training` holds step, scores and best.
    """
    stream = iter(batches)
    process, device = training.process, training.process.device
    clock = time.perf_counter()

    def save() -> None:
        nonlocal clock
        now = time.perf_counter()
        training.seconds, clock = training.seconds + now - clock, now
        training.save()

    def score() -> None:
        """Evaluate where it is due and not done yet (a run may have been killed in the middle of it)."""
        done = training.done
        due = done == steps or (evaluate_every > 0 and done > 0 and done % evaluate_every == 0)
        if evaluate is None or not due or training.scored == done:
            return
        save()  # an evaluation may be long; nothing is lost when it is interrupted
        # Batch statistics differ by rank: score what rank 0 saves.
        collectives.broadcast_tensors(training.result.buffers())
        training.scores = evaluate(training.result)
        training.scored = done
        log.scores(done, training.scores)
        value = training.scores[best]
        # A metric may not exist (no object of any class in the split): such weights are never the best.
        if (
            value is not None
            and math.isfinite(value)
            and (
                training.best is None
                or (value < training.best if smaller_is_better else value > training.best)
            )
        ):
            training.best = value
            training.save_student(training.folder.best)
        save()

    score()
    while training.done < steps:
        # Ranks must stop at one step: a collective that one of them never joins would hang the others.
        if collectives.any_rank(bool(stop), device):
            save()
            return False
        seed_step(seed, training.done, process.rank)
        rate = set_lr(training.step.optimizer, lr_factor(training.done))
        group = [next(stream).to(device, channels_last) for _ in range(accumulate)]
        for name, value in training.step(group, training.done).items():
            training.sums[name] = training.sums.get(name, 0.0) + value
        training.counted += 1
        training.done += 1
        done, last = training.done, training.done == steps
        log.count(sum(len(b) for b in group) * process.world_size)
        if done % log_every == 0 or last:
            log.steps(done, {k: v / training.counted for k, v in training.sums.items()}, rate)
            training.sums, training.counted = {}, 0
        if done % save_every == 0 or last:
            save()
        score()
    training.save_student(training.folder.student)
    return True
