"""The doctor's sequence for a recipe: everything is built as for a run, and looked at; no folder is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from densekd.build.data import in_small_batches
from densekd.build.networks import build_network
from densekd.build.run import Run, Sets, assemble, first_batch, open_sets
from densekd.config.schema import Config
from densekd.data.check import sample_report
from densekd.engine.folder import RunFolder
from densekd.engine.launch import Process, started
from densekd.engine.step import AMP
from densekd.errors import DataError, UserError
from densekd.models.taps import Taps
from densekd.ops.names import teacher_section
from densekd.types import Batch
from densekd.workflows.baseline import guess_scores
from densekd.workflows.doctor import cost, data, machine, networks, scores, terms
from densekd.workflows.doctor.finding import Finding, failed
from densekd.workflows.forms import settled
from densekd.workflows.run import has_score

# What a run would end with, whatever it is: the doctor says it and goes on with what can still be looked at.
FAULTS = (UserError, ValueError, TypeError, RuntimeError, OSError)
GUESSED_FROM = 32  # training targets that the constant guess is made from


def examine(
    config: Config,
    *,
    device: str = "auto",
    images: int = 8,
    alone: Path | None = None,
    out: Path = Path("runs"),
    say: Callable[[str], None] = lambda part: None,
) -> list[Finding]:
    """All findings of a recipe, in the order of the areas data, networks, terms, cost.

    Args:
        images: validation images that teacher and student are scored on.
        alone: the folder of a run that trained the student alone; the teacher is compared with it.
        out: where run folders would be made.
        say: called with what is looked at next, which may take minutes on a CPU.
    """
    distil = bool(config.every_teacher or config.distill.terms or config.distill.holistic)
    config = settled(config, distil)
    if alone is not None and not RunFolder(alone).student.exists():
        raise UserError(
            f"--alone {alone}: has no checkpoints/student.safetensors; give the folder of a run that has finished"
        )
    with started(device, deterministic=config.train.deterministic) as process:
        if process.world_size > 1:
            raise UserError("doctor looks at one process; start it without torchrun or srun")
        examination = Examination(config, process, images, alone, out, say)
        examination.go(distil)
        return examination.findings


class Examination:
    """The findings so far, and what they are made from."""

    def __init__(
        self,
        config: Config,
        process: Process,
        images: int,
        alone: Path | None,
        out: Path,
        say: Callable[[str], None],
    ) -> None:
        self.config = config
        self.process = process
        self.images = images
        self.alone = alone
        self.out = out
        self.say = say
        self.findings: list[Finding] = []

    def go(self, distil: bool) -> None:
        self.findings += machine.setting_findings(self.config, self.process.device)
        with self.part(data.AREA):
            sets = open_sets(self.config)
            sizes = self.look_at_data(sets)
            with self.part(networks.AREA):
                run = self.built(distil, sets)
                batch = self.few(run)
                self.look_at_networks(run, batch, sizes)
                if run.distiller.terms:
                    with self.part(terms.AREA):
                        self.look_at_taps(run, batch)
                self.look_at_steps(run, batch)

    @contextmanager
    def part(self, area: str) -> Iterator[None]:
        """A fault within becomes a finding of that area; what comes after the part is still looked at."""
        self.say(area)
        try:
            yield
        except FAULTS as error:
            self.findings.append(failed(area, error))

    def built(self, distil: bool, sets: Sets) -> Run:
        """As `train` and `distill` build it, but with the live teacher, and its norms as they were loaded."""
        config, teacher, teachers = self.config, self.config.teacher, self.config.teachers
        config = replace(
            config,
            distill=replace(config.distill, teacher_cache=None),
            teacher=teacher and replace(teacher, fold_norms=False),
            teachers=teachers and {k: replace(t, fold_norms=False) for k, t in teachers.items()},
        )
        put_together, runtimes = (
            tuple(f"{section}.{setting}:" for section in config.every_teacher)
            for setting in ("classes", "runtime")
        )
        run = assemble(config, self.process, distil=distil, sets=sets)
        for remark in run.remarks[len(sets.remarks) :]:
            # What is said of classes put together is looked at on its own.
            if not remark.startswith(put_together):
                level = "note" if remark.startswith(runtimes) else "warning"
                self.findings.append(Finding(level, networks.AREA, remark))
        return run

    def few(self, run: Run) -> Batch:
        """Two images of the first batch, as the dry run takes them."""
        config = replace(run.config, data=in_small_batches(run.config.data, 2))
        return first_batch(
            config,
            run.task,
            run.train_set,
            run.augment,
            self.process,
            unlabelled=run.unlabelled_set,
        )

    def look_at_data(self, sets: Sets) -> list[tuple[int, int]]:
        """Returns sizes of validation images."""
        settings = self.config.data
        assert sets.val is not None
        train, val = sample_report(sets.train), sample_report(sets.val)
        self.findings += data.split_findings(settings.train_split, train)
        self.findings += data.split_findings(f"{settings.val_split} (validation)", val)
        for remark in sets.remarks:
            # That images are held out is as it was asked for.
            level = "note" if remark.startswith("data.val_fraction") else "warning"
            self.findings.append(Finding(level, data.AREA, remark))
        self.findings += data.size_findings(self.config, train, val)
        return data.spread_sizes(val)

    def look_at_networks(self, run: Run, batch: Batch, sizes: list[tuple[int, int]]) -> None:
        task, config = run.task, run.config
        self.findings += cost.norm_findings(config, run.network)
        self.findings.append(
            networks.weights_finding(
                "model",
                config.model,
                run.network,
                lambda: build_network(config.model, task, "model")[0],
            )
        )
        self.findings.append(networks.input_finding("model", run.spec, batch.images))
        if config.note:
            what = f"this will stand beside every score: {config.note}"
            self.findings.append(Finding("note", networks.AREA, what, setting="note"))
        for name, teacher in run.distiller.teachers.items():
            self.look_at_teacher(run, name, teacher.network, batch)
        with self.part(networks.AREA):
            self.look_at_scores(run)
        self.findings += networks.evaluation_findings(run, sizes)

    def look_at_teacher(self, run: Run, name: str, tapped: Taps, batch: Batch) -> None:
        """The weights, the input and the classes of the teacher, or of the one of this name."""
        who = teacher_section(name)
        settings = run.config.every_teacher[who]
        space = tapped.label_space
        count = None if space is None else space.inputs
        self.findings.append(
            networks.weights_finding(
                who,
                settings,
                tapped.model,
                lambda: build_network(settings, run.task, who, num_classes=count)[0],
            )
        )
        if tapped.input_spec is not None:
            self.findings.append(networks.input_finding(who, tapped.input_spec, batch.images))
        if space is not None:
            left = left_over(tapped, batch)
            self.findings += networks.left_over_findings(run.task.classes, space.groups, left, who)

    def look_at_scores(self, run: Run) -> None:
        """The teachers, and a student with weights, beside a constant guess and each other."""
        task = run.task
        batches = scores.validation_batches(run, self.images)
        count = sum(len(batch) for batch in batches)
        try:
            constant = guess_scores(
                task, run.train_set, batches, samples=GUESSED_FROM, skip_bad=True
            )
        except DataError:  # no label to guess from: nothing is scored either
            return
        main = task.metric_names[0]
        tops = []
        for name, teacher in run.distiller.teachers.items():
            if not has_score(teacher, task):
                continue
            teacher = scores.in_pytorch(teacher)
            scored = scores.score(teacher, run, batches)
            tops.append(scores.value_of(scored.scores, main))
            who = teacher_section(name)
            self.findings.append(scores.score_finding(who, task, scored.scores, constant, count))
            self.findings += scores.class_order_findings(task.classes, scored.confusion, who)
            guess = scores.value_of(constant, task.quick_metric)
            self.findings += scores.try_inputs(teacher, run, batches, scored.seconds, guess, who)
        best = min if main in task.smaller_is_better else max
        top = best(tops) if tops else None
        if run.config.model.weights is not None:
            scored = scores.score(Taps(run.network, {}, run.spec), run, batches)
            self.findings.append(
                scores.score_finding("model", task, scored.scores, constant, count)
            )
            own = scores.value_of(scored.scores, main)
            if top is not None:
                self.findings.append(scores.lead_finding(task, top, [own]))
        if top is not None and self.alone is not None:
            model = replace(run.config.model, weights=str(RunFolder(self.alone).student))
            network, spec = build_network(model, task, "model")
            lone = scores.score(Taps(network, {}, spec).to(self.process.device), run, batches)
            value = scores.value_of(lone.scores, main)
            who = f"the student alone ({self.alone})"
            self.findings.append(scores.lead_finding(task, top, [value], who))

    def look_at_taps(self, run: Run, batch: Batch) -> None:
        distiller = run.distiller
        found = terms.compared(distiller, batch)
        assert found is not None
        output, maps = found
        size = (batch.images.shape[-2], batch.images.shape[-1])
        self.findings += terms.tap_findings(distiller, output, maps, size)
        student = {t.name: t.student_maps(output, run.task) for t in distiller.terms}
        self.findings += terms.node_findings(distiller.terms, student, maps)
        self.findings += terms.unweighted_findings(distiller.terms, run.task)

    def look_at_steps(self, run: Run, batch: Batch) -> None:
        """Real steps, then the gradients (terms with a memory have something in it by then), then what all takes."""
        steps = None
        with self.part(cost.AREA):
            steps = cost.take_steps(run)
        if steps is None:
            return
        with self.part(terms.AREA):
            train = run.config.train
            fresh = train.compile or train.recompute_norms
            found = terms.gradients(run.step, batch, fresh=fresh)
            self.findings += terms.gradient_findings(found, terms.weights_of(run))
        with self.part(cost.AREA):
            amp = AMP[run.config.train.amp]
            student = Taps(run.network, {}, run.spec)
            # In an emulated format an image may take a minute.
            few = scores.validation_batches(run, 2 if amp is None else 1)
            one = scores.score(student, run, few, amp)
            images = len(run.val_set or ())
            self.findings.append(cost.time_finding(self.config, steps, one.seconds, images))
            self.findings.append(cost.memory_finding(steps.peak, self.process.device))
            self.findings += cost.disk_findings(run, self.config, self.out)


@torch.no_grad()
def left_over(tapped: Taps, batch: Batch) -> float | None:
    """The share of the teacher's probability that `teacher.classes` leaves out; None of a detector."""
    space = tapped.label_space
    assert space is not None
    tapped.label_space = None
    try:
        prediction = tapped.forward(batch.images).prediction
        return space.left_over(prediction) if isinstance(prediction, Tensor) else None
    finally:
        tapped.label_space = space
