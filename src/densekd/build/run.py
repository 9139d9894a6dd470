"""From settings to everything that a run is made of: the one sequence that `train`, `distill` and `bench` share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from densekd.build import provenance
from densekd.build.data import (
    VIEWS,
    build_augment,
    build_device_loader,
    build_eval_loader,
    build_reader,
    build_train_loader,
    build_unlabelled,
    build_views,
    check_reader,
    check_unlabelled,
    compare_readers,
    in_small_batches,
    input_size,
)
from densekd.build.distiller import build_distiller
from densekd.build.dry_run import dry_run, example_batch
from densekd.build.runtimes import use_runtimes
from densekd.build.settings import naming_settings
from densekd.build.step import build_step
from densekd.build.task import best_metric, build_task, check_extras
from densekd.build.teachers import label_space_remarks, open_teacher_cache
from densekd.config.schema import Config
from densekd.data.augment import Augment
from densekd.distill.distiller import Distiller
from densekd.engine.evaluate import evaluate
from densekd.engine.folder import RunFolder
from densekd.engine.launch import Process
from densekd.engine.step import AMP, Step, bare
from densekd.engine.trainer import Training
from densekd.models.taps import Taps
from densekd.ops.names import teacher_section
from densekd.targets import kind_of_set
from densekd.tasks import Task
from densekd.types import Batch, InputSpec


@dataclass(frozen=True)
class Sets:
    """The data of a run.

    Attributes:
        train, val: readers of the two splits; `val` is None where nothing will be scored.
        unlabelled: the images of `data.unlabelled`; None where there are none.
        remarks: what is legal in them but unlikely to be meant.
        made_up: there is no data: `train` only answers for the classes, and batches are made up.
    """

    train: Any
    val: Any | None = None
    remarks: list[str] = field(default_factory=list)
    made_up: bool = False
    unlabelled: Any | None = None


@dataclass(frozen=True)
class Run:
    """What `assemble` built, ready for the first step.

    Attributes:
        train_set, val_set: readers of the two splits; `val_set` is None where nothing will be scored.
        unlabelled_set: the images of `data.unlabelled`; None where there are none.
        spec: what the student wants to see.
        size: (height, width) that the student sees in training at scale 1.
        alignment: what is made equal between student and teachers, a line each.
        remarks: what is legal but unlikely to be meant, for the log.
    """

    config: Config
    process: Process
    train_set: Any
    val_set: Any | None
    unlabelled_set: Any | None
    made_up: bool
    task: Task
    spec: InputSpec
    size: tuple[int, int]
    augment: Augment
    distiller: Distiller
    step: Step
    alignment: list[str]
    remarks: list[str]

    @property
    def network(self) -> nn.Module:
        """The bare network that is trained."""
        return bare(self.distiller.student).model

    def with_sets(self, train_set: Any, val_set: Any) -> Run:
        """The same run that reads its samples elsewhere (from a cache)."""
        return replace(self, train_set=train_set, val_set=val_set)

    def training(self, folder: RunFolder) -> Training:
        """The run's state over its steps, to be saved in `folder`; nothing is written yet."""
        return Training(
            self.step,
            folder,
            self.process,
            metadata=provenance.weights_metadata(self.config, self.task, self.spec),
            identity=provenance.identity(self.config),
        )

    def first_batch(self) -> Batch:
        """This process's first batch, on its device."""
        return first_batch(
            self.config,
            self.task,
            self.train_set,
            self.augment,
            self.process,
            made_up=self.made_up,
            unlabelled=self.unlabelled_set,
        )

    def train_loader(self, start_step: int, skipped: dict[str, str]) -> Any:
        """Endless batches from `start_step` on; unreadable files that are left out are noted in `skipped`."""
        given = (self.config, self.train_set, self.augment, self.process, start_step, skipped)
        if self.config.data.cache == "device":
            return build_device_loader(*given)
        return build_train_loader(*given, unlabelled=self.unlabelled_set)

    def score(
        self, network: nn.Module, skipped: dict[str, str], limit: int | None = None
    ) -> dict[str, Any]:
        """The scores of the bare `network` on the validation set, or on its first `limit` images."""
        loader = build_eval_loader(
            self.config, self.val_set, self.spec, self.process, limit=limit, skipped=skipped
        )
        with naming_settings(VIEWS):
            return evaluate(
                Taps(network, {}, self.spec),
                loader,
                self.task,
                device=self.process.device,
                views=build_views(self.config.evaluate),
                amp=AMP[self.config.train.amp],
            )


def open_sets(config: Config) -> Sets:
    """Both splits, each with a spread of its files looked at."""
    data = config.data
    train = build_reader(data, data.train_split, training=True)
    val = build_reader(data, data.val_split, training=False)
    sides = ((data.train_split, train, True), (data.val_split, val, False))
    remarks = [
        f"{split}: {remark}"
        for split, reader, training in sides
        for remark in check_reader(reader, config, split, training=training)
    ]
    if data.val_fraction is not None:
        remarks.append(
            f"data.val_fraction: {len(val)} of {len(train) + len(val)} images of {data.train_split} are held out"
        )
    unlabelled = build_unlabelled(data, train)
    if unlabelled is not None:
        remarks += check_unlabelled(unlabelled, val)
    return Sets(train, val, remarks, unlabelled=unlabelled)


def assemble(
    config: Config,
    process: Process,
    *,
    distil: bool,
    sets: Sets | None = None,
    networks: Mapping[str, nn.Module] | None = None,
) -> Run:
    """Build all of a run: data, task, networks, terms, teacher and step, each tried on a few images.

    What a user can get wrong fails here, before anything is written. Nothing draws random numbers between the seed and
    the networks, so that equal settings give equal first weights.

    Args:
        distil: with the teacher and its terms; else the student alone.
        sets: the data; None opens that of `config`.
        networks: ``"model"`` and ``"teacher"``, where they are objects that the recipe cannot build.
    """
    if sets is None:
        sets = open_sets(config)
    task = build_task(config, sets.train)
    remarks = [*sets.remarks, *schedule_remarks(config)]
    if sets.val is not None:
        remarks += compare_readers(config.data, sets.train, sets.val)
        best_metric(config, task)
    torch.manual_seed(config.seed)  # for the first weights; every step seeds itself
    distiller, spec = build_distiller(
        config, task, distil=distil, device=process.device, networks=networks
    )
    size = input_size(config, sets.train)
    augment = build_augment(config.data, sets.train, spec)
    # Every rank tries the same few images, so that all of them stop or none does.
    few = replace(config, data=in_small_batches(config.data, 2))
    alone = Process(rank=0, world_size=1, device=process.device)
    batch = first_batch(
        few, task, sets.train, augment, alone, made_up=sets.made_up, unlabelled=sets.unlabelled
    )
    # Synchronised norms see the images of all ranks, which one rank cannot try.
    together = config.train.sync_batchnorm and process.world_size > 1
    remarks += dry_run(distiller, batch, train_batch=None if together else len(batch))
    alignment = distiller.alignment(batch.images)
    remarks += use_runtimes(
        config,
        distiller,
        batch,
        partial(first_images, few, task, sets, augment, alone),
    )
    for name, teacher in distiller.teachers.items():
        remarks += label_space_remarks(teacher, batch.images, teacher_section(name))
    if config.distill.teacher_cache is not None:
        stored = open_teacher_cache(
            config, distiller, sets.train, augment, batch, unlabelled=sets.unlabelled
        )
        distiller = distiller.with_source(stored)
        remarks.append(str(stored))
    if sets.val is not None:
        check_extras(config)
    return Run(
        config=config,
        process=process,
        train_set=sets.train,
        val_set=sets.val,
        unlabelled_set=sets.unlabelled,
        made_up=sets.made_up,
        task=task,
        spec=spec,
        size=size,
        augment=augment,
        distiller=distiller,
        step=build_step(config, distiller, process),
        alignment=alignment,
        remarks=remarks,
    )


def schedule_remarks(config: Config) -> list[str]:
    """A remark where the learning rate never reaches what the recipe asks for."""
    if config.optim.warmup_steps < config.train.steps:
        return []
    return [
        f"optim.warmup_steps {config.optim.warmup_steps} is no less than train.steps {config.train.steps}: "
        "the learning rate never reaches optim.lr"
    ]


def first_batch(
    config: Config,
    task: Task,
    reader: Any,
    augment: Augment,
    process: Process,
    *,
    made_up: bool = False,
    unlabelled: Any | None = None,
) -> Batch:
    """A first batch on the process's device, made up where there is no data."""
    if made_up:
        size = input_size(config, reader)
        labelled, second = config.data.batch_size, config.data.unlabelled
        count = labelled + (0 if second is None else second.batch_size)
        batch = example_batch(task, config.model.in_channels, size, process.device, count)
        batch.labelled[labelled:] = False
        return batch
    data = replace(config.data, workers=0)
    config = replace(config, data=data)
    loader = build_train_loader(config, reader, augment, process, 0, unlabelled=unlabelled)
    batch = next(iter(loader)).to(process.device)
    kind = kind_of_set(reader)
    if hasattr(kind, "numbered"):
        # A small set's image may come twice, cut differently: to a detector's score it is another image.
        batch.targets = kind.numbered(batch.targets, process.rank * len(batch))
    return batch


def first_images(
    config: Config, task: Task, sets: Sets, augment: Augment, process: Process, batches: int
) -> Iterator[Tensor]:
    """(N, C, H, W) images of the first batches as training has them; one made-up batch where there is no data."""
    if sets.made_up:
        yield first_batch(config, task, sets.train, augment, process, made_up=True).images
        return
    config = replace(config, data=replace(config.data, workers=0))
    loader = build_train_loader(config, sets.train, augment, process, 0, unlabelled=sets.unlabelled)
    for batch in islice(loader, batches):
        yield batch.to(process.device).images
