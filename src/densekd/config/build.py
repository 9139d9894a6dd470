"""The composition root: the only file that turns names (config.names) into objects.

Everything a setting can get wrong (a name, an option, a tap, a class count, a weights file) fails here, before the
first batch, with what was given, what is possible and the nearest match.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from densekd.config import provenance, schema
from densekd.config.names import DATASETS, LOSSES, MODELS, TASKS
from densekd.config.resolve import accepts, call, resolve
from densekd.data.base import task_of
from densekd.data.check import sample_check
from densekd.data.device import DeviceLoader
from densekd.data.loader import EvalLoader, TrainLoader
from densekd.data.transforms import Augment
from densekd.distill.discriminator import Discriminator, DiscriminatorLoss
from densekd.distill.distiller import Adversary, Distiller
from densekd.distill.student import Student
from densekd.distill.teacher import Teacher
from densekd.distill.teacher_cache import TeacherCache, make_plan
from densekd.distill.terms import PREDICTION, Term, select
from densekd.engine.launch import Process
from densekd.engine.optim import make_optimizer, parameter_groups
from densekd.engine.step import AMP, Step, adapters_of, bare
from densekd.errors import UserError
from densekd.layers import synchronise, to_inplace
from densekd.layers.fold import fold_norms
from densekd.models.taps import Taps, evaluating
from densekd.models.weights import load_weights
from densekd.ops.cache_folder import cache_folder
from densekd.ops.tiling import Views
from densekd.tasks import Task
from densekd.types import Batch, InputSpec

# What the engine and the checks use of a data set.
READER = ("classes", "palette", "ignore_index", "channels", "name", "read", "__len__")
WIDTHS_SIDE = 256  # of the square image that shows how wide tapped features are
SPARSE = 0.3  # share of compared pixels below which there is a remark


# --- data ---------------------------------------------------------------------------------------------------------


def build_reader(
    data: schema.Data, split: str, *, training: bool, verify_files: bool = True
) -> Any:
    """The data set of one split; missing folders and label files fail here (unless `verify_files` is off)."""
    builder = resolve(data.dataset, DATASETS, "data.dataset")
    if data.root is None and needs_root(builder):
        raise UserError(f"data.root: {data.dataset} needs a folder; give --data.root FOLDER")
    if not accepts(builder, "split"):
        raise UserError(
            f"data.dataset: {data.dataset!r} takes no split, so training and validation would be the same samples; "
            "give its constructor a parameter named split"
        )
    given: dict[str, Any] = {"split": split, "verify_files": verify_files}
    if data.root is not None:
        if not accepts(builder, "root"):
            raise UserError(f"data.root: {data.dataset} takes no folder; leave data.root out")
        given["root"] = data.root
    if training and data.allow_unlabelled:
        if not accepts(builder, "allow_unlabelled"):
            raise UserError(
                f"data.allow_unlabelled: {data.dataset!r} has labels for every image; leave it out"
            )
        given["allow_unlabelled"] = True
    options = {data.train_split: data.train_options, data.val_split: data.val_options}
    extra = data.train_options if training else options.get(split, {})
    reader = call(builder, {**data.options, **extra}, "data.options", **given)
    missing = [name for name in READER if not hasattr(reader, name)]
    if missing:
        raise UserError(
            f"data.dataset: {data.dataset!r} lacks {', '.join(missing)}; a data set has {', '.join(READER)} "
            "(see densekd.data.base.DenseSet)"
        )
    return reader


def needs_root(builder: Callable[..., Any]) -> bool:
    """Whether a data set cannot be built without a folder."""
    root = inspect.signature(builder).parameters.get("root")
    return root is not None and root.default is inspect.Parameter.empty


def check_reader(reader: Any, config: schema.Config) -> list[str]:
    """Before any work: a spread of files can be read, with what task and network take; returns remarks."""
    channels = config.model.in_channels
    if task_of(reader) != config.task:
        raise UserError(
            f"task is {config.task} and data.dataset {config.data.dataset!r} is for {task_of(reader)}; set one "
            "to fit the other (`densekd list datasets`)"
        )
    if reader.channels != channels:
        raise UserError(
            f"model.in_channels is {channels} and the data has {reader.channels} channels; make them equal "
            "(a folder is read with --data.options.channels 1, 3 or 4)"
        )
    return sample_check(reader)


def compare_readers(data: schema.Data, train: Any, val: Any) -> list[str]:
    """UserError where the splits' classes differ; a remark where validation images are training images too."""
    for name in ("classes", "ignore_index"):
        mine, theirs = getattr(train, name), getattr(val, name)
        if mine != theirs:
            raise UserError(
                f"data: {name} of {data.train_split} and {data.val_split} differ: {mine} and {theirs}; "
                "check data.train_options and data.val_options"
            )
    if not (hasattr(train, "paths") and hasattr(val, "paths")):
        return []
    seen = {train.paths(i)[0] for i in range(len(train))} - {None}
    twice = sum(val.paths(i)[0] in seen for i in range(len(val)))
    if not twice:
        return []
    return [
        f"{twice} of {len(val)} images of {data.val_split} are training images: scores on them prove nothing"
    ]


def build_augment(data: schema.Data, reader: Any, spec: InputSpec) -> Augment:
    try:
        return Augment(
            crop=data.crop,
            scale=data.scale,
            scales=data.scales,
            short_side=data.short_side,
            long_side=data.long_side,
            hflip=data.hflip,
            color_jitter=data.color_jitter,
            fill=spec.fill(),
            ignore_index=reader.ignore_index,
            cat_max_ratio=data.cat_max_ratio,
        )
    except UserError as error:
        raise UserError(f"data: {error}") from error


def build_train_loader(
    config: schema.Config, reader: Any, augment: Augment, process: Process, start_step: int
) -> TrainLoader:
    """Samples decoded and augmented on the host."""
    stream = _stream(config, augment, process, start_step)
    return TrainLoader(reader, workers=config.data.workers, **stream)


def build_device_loader(
    config: schema.Config, reader: Any, augment: Augment, process: Process, start_step: int
) -> DeviceLoader:
    """The same stream with the whole set and its augmentation on the process's device."""
    stream = _stream(config, augment, process, start_step)
    return DeviceLoader(reader, device=process.device, **stream)


def _stream(
    config: schema.Config, augment: Augment, process: Process, start_step: int
) -> dict[str, Any]:
    data = config.data
    return {
        "batch_size": data.batch_size,
        "seed": config.seed,
        "transform": augment,
        "rank": process.rank,
        "world_size": process.world_size,
        "start_step": start_step * config.train.accumulate,
        "augment_epochs": data.augment_epochs,
        "on_bad_file": data.on_bad_file,
    }


def build_eval_loader(
    config: schema.Config,
    reader: Any,
    spec: InputSpec,
    process: Process,
    *,
    limit: int | None = None,
) -> EvalLoader:
    return EvalLoader(
        reader,
        batch_size=config.evaluate.batch_size,
        fill=spec.fill(),
        limit=limit,
        rank=process.rank,
        world_size=process.world_size,
        workers=min(config.data.workers, 2),
        on_bad_file=config.data.on_bad_file,
    )


# --- task and networks --------------------------------------------------------------------------------------------


def build_task(config: schema.Config, reader: Any) -> Task:
    """The task with its settings; of the reader it takes names, colours and ids."""
    if config.task == "segmentation":
        given = {k: getattr(reader, k) for k in ("classes", "palette", "ignore_index")}
        where, options = "loss", {**vars(config.loss)}
        options["loss"] = options.pop("name")
    elif config.task == "detection":
        given = {k: getattr(reader, k, None) for k in ("classes", "palette", "category_ids")}
        where, options = "detection", vars(config.detection)
    else:
        given, where, options = {}, "depth", vars(config.depth)
    return call(resolve(config.task, TASKS, "task"), options, where, **given)


def best_metric(config: schema.Config, task: Task) -> str:
    """The metric that decides which weights are the best."""
    best = config.train.best or task.metric_names[0]
    if best not in task.metric_names:
        raise UserError(
            f"train.best: {best!r} is no metric of {task.name}; possible: {', '.join(task.metric_names)}"
        )
    return best


def input_size(config: schema.Config, reader: Any) -> tuple[int, int]:
    """(height, width) the student sees in training at scale 1: the crop, or the first image's size."""
    if config.data.crop is not None:
        return config.data.crop
    height, width = reader.read(0).image.shape[:2]
    views = Views(short_side=config.data.short_side, long_side=config.data.long_side)
    return views.sizes(height, width)[0]


def build_network(model: schema.Model, task: Task, where: str) -> tuple[nn.Module, InputSpec]:
    """The bare network with its weights, and what it wants to see.

    Weights that a run of ours wrote know their task, classes and input: another task, other classes or another range of
    depth are errors, and their input holds where the recipe does not set one.
    """
    builder = resolve(model.name, MODELS, f"{where}.name")
    options = dict(model.options)
    if model.weights is not None and "backbone_weights" in options:
        options["backbone_weights"] = None  # the whole network's weights replace them: do not fetch
    network = call(
        builder,
        options,
        f"{where}.options",
        in_channels=model.in_channels,
        **task.network_arguments,
    )
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{where}.name: {model.name!r} gave {type(network).__name__}, not an nn.Module"
        )
    own = getattr(network, "input_spec", None)
    if model.weights is not None:
        load_weights(network, model.weights)
        about = provenance.about_weights(model.weights)
        check_origin(about, task, f"{where}.weights: {model.weights}")
        own = InputSpec(**about["input"]) if "input" in about else own
    return network, build_input_spec(model, own, where)


def check_origin(about: dict[str, Any], task: Task, file: str) -> None:
    """Weights of ours were trained for this task, these classes and, for depth, this range."""
    if about.get("task", task.name) != task.name:
        raise UserError(f"{file} was trained for {about['task']}; the task here is {task.name}")
    theirs = about.get("classes", task.classes)
    if task.classes != theirs:
        raise UserError(
            f"{file} was trained for the classes {', '.join(theirs)}; the data has {', '.join(task.classes)}"
        )
    arguments = provenance.plain(task.network_arguments)
    old = about.get("arguments", arguments)
    if old != arguments:
        raise UserError(
            f"{file} was trained with {old}; this recipe has {arguments}: make them equal"
        )


def check_extras(config: schema.Config) -> None:
    if config.task == "detection" and importlib.util.find_spec("faster_coco_eval") is None:
        raise UserError("task detection is scored by faster-coco-eval: pip install 'densekd[det]'")
    if config.train.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("train.tensorboard needs the extra: pip install 'densekd[tensorboard]'")


def build_input_spec(model: schema.Model, own: InputSpec | None, where: str) -> InputSpec:
    base = own or InputSpec()
    wish = {k: v for k, v in vars(model.input).items() if v is not None}
    try:
        spec = InputSpec(**{**base.as_dict(), **wish})
    except ValueError as error:
        raise UserError(f"{where}.input: {error}") from error
    if spec.channels != model.in_channels:
        raise UserError(
            f"{where}.input: mean and std have {spec.channels} values and in_channels is {model.in_channels}; "
            f"give {where}.input.mean and {where}.input.std with one value a channel"
        )
    return spec


def feature_tap(network: nn.Module, where: str) -> str:
    tap = getattr(network, "pair_wise_tap", None)
    if tap is None:
        raise UserError(
            f"{where}: {type(network).__name__} does not say which feature to compare; name a module path"
        )
    return tap


def build_terms(
    distill: schema.Distill, task: Task, student: nn.Module, teacher: nn.Module
) -> tuple[list[Term], dict[str, str], dict[str, str]]:
    """The terms, and the taps (name -> module path) they need of student and teacher."""
    terms: list[Term] = []
    taps: tuple[dict[str, str], dict[str, str]] = ({}, {})
    table = {name: path for name, (path, _) in LOSSES.items()}
    for name, term in distill.terms.items():
        where = f"distill.{name}"
        loss_name = term.loss or name
        options = {**task.term_options.get(loss_name, {}), **term.options}
        loss = call(resolve(loss_name, table, where), options, where)
        if any(True for _ in getattr(loss, "parameters", tuple)()):
            raise UserError(
                f"{where}: {loss_name!r} has parameters of its own, which nothing would train or save; a term is a "
                "function of two tensors (with the class attribute `adapter = True` the student's is widened before it)"
            )
        default = LOSSES.get(loss_name, ("", PREDICTION))[1]
        sources = []
        for side, network, given, wanted in (
            ("student", student, term.student, taps[0]),
            ("teacher", teacher, term.teacher, taps[1]),
        ):
            source = given or (
                PREDICTION if default == PREDICTION else feature_tap(network, f"{where}.{side}")
            )
            if source != PREDICTION and source not in task.map_names:
                wanted[source] = source
            sources.append(source)
        confidence = bool(getattr(loss, "confidence", False))
        terms.append(Term(name, loss, term.weight, *sources, confidence=confidence))
    return terms, *taps


def build_adapters(
    terms: list[Term], task: Task, student: Taps, teacher: Taps, channels: int
) -> dict[str, tuple[str, nn.Module]]:
    """A 1x1 convolution for every term that needs equal widths and has not; such terms then compare its result."""
    wanting = [term for term in terms if getattr(term.loss, "adapter", False)]
    if not wanting:
        return {}
    device = next(student.parameters()).device
    images = torch.rand(1, channels, WIDTHS_SIDE, WIDTHS_SIDE, device=device)
    try:
        with evaluating(student), evaluating(teacher), torch.no_grad():
            mine, theirs = student(images), teacher(images)
    except (ValueError, TypeError, RuntimeError) as error:
        names = ", ".join(f"distill.{term.name}" for term in wanting)
        raise UserError(
            f"{names}: student and teacher cannot see a {WIDTHS_SIDE}x{WIDTHS_SIDE} image, which shows how wide their "
            f"features are: {error}"
        ) from error
    adapters: dict[str, tuple[str, nn.Module]] = {}
    for term in wanting:
        if term.student not in mine.features:
            raise UserError(
                f"distill.{term.name}: its adapter widens a feature, and {term.student} is none; name a module path as "
                "its student"
            )
        narrow = {x.shape[1] for x in select(mine, term.student, task)}
        wide = {x.shape[1] for x in select(theirs, term.teacher, task)}
        if narrow == wide and len(narrow) == 1:
            continue
        if len(narrow) > 1 or len(wide) > 1:
            raise UserError(
                f"distill.{term.name}: one adapter serves all levels of a tapped feature; {term.student} has "
                f"{sorted(narrow)} channels and {term.teacher} {sorted(wide)}: compare levels of one width"
            )
        name = f"{term.name}_adapted"  # no module's path, and none of the task's maps
        adapters[name] = (term.student, nn.Conv2d(narrow.pop(), wide.pop(), 1))
        term.student = name
    return adapters


def build_teacher(
    config: schema.Teacher, task: Task, device: torch.device
) -> tuple[nn.Module, InputSpec]:
    """The bare network on its device; `freeze` makes a `Teacher` of it, once it is tapped."""
    if config.weights is None and not config.allow_untrained:
        trained_by_builder = any(config.options.get(key) for key in ("weights", "pretrained"))
        if not trained_by_builder:
            raise UserError(
                "teacher.weights: a teacher needs trained weights; give --teacher.weights FILE "
                "(train one with `densekd train`), or set teacher.allow_untrained for a test"
            )
    network, spec = build_network(config, task, "teacher")
    return network.to(device), spec


def freeze(config: schema.Config, network: Taps) -> Teacher:
    """The tapped teacher in the form it works in: folded, laid out, compiled. No tap can be added afterwards."""
    settings = config.teacher
    assert settings is not None
    if settings.fold_norms:
        crop = config.data.crop or (WIDTHS_SIDE, WIDTHS_SIDE)
        size = (min(crop[0], WIDTHS_SIDE), min(crop[1], WIDTHS_SIDE))
        images = torch.rand(
            1, settings.in_channels, *size, device=next(network.parameters()).device
        )
        # One that takes no such image stays as it is; what else is wrong the dry run says.
        with suppress(ValueError, TypeError, RuntimeError, AssertionError):
            fold_norms(network, images)
    channels_last = settings.channels_last
    if channels_last is None:
        channels_last = config.train.channels_last
    if channels_last:
        network.to(memory_format=torch.channels_last)
    if settings.compile:
        network.compile()
    precision = settings.precision
    return Teacher(
        network,
        dtype=None if precision == "same" else AMP.get(precision) or torch.float32,
        channels_last=channels_last,
        batch_size=settings.batch_size,
    )


def build_adversary(
    holistic: schema.Holistic, task: Task, channels: int, device: torch.device
) -> Adversary:
    try:
        discriminator = Discriminator(
            task.holistic_channels,
            image_channels=channels,
            channels=holistic.channels,
            convention=holistic.convention,
            activation=task.holistic_activation,
        )
    except ValueError as error:
        raise UserError(f"distill.holistic: {error}") from error
    return Adversary(
        DiscriminatorLoss(discriminator).to(device),
        weight=holistic.weight,
        mode=holistic.mode,
        penalty=holistic.penalty,
        start_step=holistic.start_step,
    )


def build_distiller(
    config: schema.Config, task: Task, *, distil: bool, device: torch.device
) -> tuple[Distiller, InputSpec]:
    """Networks, taps, terms and discriminator; `distil=False` leaves everything but the student out."""
    network, spec = build_network(config.model, task, "model")
    if not distil:
        return Distiller(_placed(config, Student(Taps(network, {}, spec)), device), task), spec
    if config.teacher is None:
        raise UserError("teacher: missing; to distil, the config needs a teacher section")
    if not config.distill.terms and config.distill.holistic is None:
        raise UserError(
            f"distill: no term given; add one of {', '.join([*LOSSES, 'holistic'])} with a weight"
        )
    if config.teacher.in_channels != config.model.in_channels:
        raise UserError(
            f"teacher.in_channels is {config.teacher.in_channels} and model.in_channels "
            f"{config.model.in_channels}; both see the same images"
        )
    other, other_spec = build_teacher(config.teacher, task, device)
    terms, mine, theirs = build_terms(config.distill, task, network, other)
    adversary = None
    if config.distill.holistic is not None:
        adversary = build_adversary(config.distill.holistic, task, config.model.in_channels, device)
    # Tap, then move, then compile: hooks must be there before the first compiled call.
    student, teacher = Taps(network, mine, spec).to(device), Taps(other, theirs, other_spec)
    adapters = build_adapters(terms, task, student, teacher, config.model.in_channels)
    distiller = Distiller(
        _placed(config, Student(student, adapters), device),
        task,
        teacher=freeze(config, teacher),
        terms=terms,
        adversary=adversary,
        mask=config.distill.mask,
    )
    return distiller, spec


def _placed(config: schema.Config, student: Student, device: torch.device) -> Student:
    student.to(device)
    if config.train.channels_last:
        student.to(memory_format=torch.channels_last)
    return student


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
    try:
        task.check_output(student(batch.images), "student")
        if distiller.teacher is not None:
            task.check_output(distiller.teacher(batch.images), "teacher")
        losses, _ = distiller.student_phase(batch, step=2**31)
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


def open_teacher_cache(
    config: schema.Config, distiller: Distiller, reader: Any, augment: Augment, batch: Batch
) -> TeacherCache:
    """The store that stands in for the teacher. A few records that are there already are compared with the live one.

    Args:
        batch: any of the run's.
    """
    settings, epochs = config.distill.teacher_cache, config.data.augment_epochs
    assert settings is not None
    assert epochs is not None  # checked with the settings
    assert distiller.teacher is not None
    adversary = distiller.adversary
    plan = make_plan(
        distiller.student,
        distiller.teacher,
        distiller.terms,
        distiller.task,
        batch.images,
        holistic=None if adversary is None else adversary.discriminator,
        mask=distiller.mask,
        storage=settings.storage,
        top_k=settings.top_k,
    )
    cache = TeacherCache(
        distiller.teacher,
        distiller.terms,
        distiller.task,
        plan,
        folder=Path(settings.folder).expanduser() if settings.folder else cache_folder("teacher"),
        identity=provenance.teacher_cache_identity(config, distiller.teacher, reader, augment),
        images=len(reader),
        epochs=epochs,
        disk_gb=settings.disk_gb,
    )
    dtype = AMP[config.train.amp]
    with torch.autocast(batch.images.device.type, dtype=dtype, enabled=dtype is not None):
        for sample in _samples(config, reader, augment, batch.images.device, epochs):
            mask = distiller.task.mask(sample, distiller.mask)
            cache.check(sample, mask, same_images=config.data.cache != "device")
    return cache


def _samples(
    config: schema.Config, reader: Any, augment: Augment, device: torch.device, epochs: int
) -> Iterator[Batch]:
    """Two images at a time from the beginning, the middle and the end of all that is augmented differently."""
    data = replace(config.data, batch_size=2, workers=0)
    few = replace(config, data=data, train=replace(config.train, accumulate=1))
    last = max(0, epochs * len(reader) // 2 - 1)
    for step in sorted({0, last // 2, last}):
        loader = build_train_loader(few, reader, augment, Process(0, 1, device), step)
        yield next(iter(loader)).to(device)


def wrap_ddp(distiller: Distiller, process: Process) -> None:
    """Wrap what trains, and only that; the teacher never."""
    if process.world_size == 1:
        return
    ids = [process.device.index] if process.device.type == "cuda" else None
    ddp = nn.parallel.DistributedDataParallel
    distiller.student = ddp(distiller.student, device_ids=ids)
    if distiller.adversary is not None:
        distiller.adversary.network = ddp(distiller.adversary.network, device_ids=ids)


# --- optimizers and the rest --------------------------------------------------------------------------------------


def build_optimizer(
    optim: schema.Optim, network: nn.Module, adapters: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Over the network's parameters under their own names, and the adapters' under ``adapters.``."""
    named = list(network.named_parameters())
    if adapters is not None:
        named += [(f"adapters.{name}", p) for name, p in adapters.named_parameters()]
    groups = parameter_groups(
        named,
        lr=optim.lr,
        weight_decay=optim.weight_decay,
        groups=[(g.prefix, g.lr_scale, g.weight_decay) for g in optim.groups],
        decay_norms=optim.decay_norms,
    )
    return make_optimizer(groups, optim.name, momentum=optim.momentum, betas=optim.betas)


def build_discriminator_optimizer(
    holistic: schema.Holistic | None, distiller: Distiller
) -> torch.optim.Optimizer | None:
    if distiller.adversary is None or holistic is None:
        return None
    groups = parameter_groups(
        distiller.adversary.discriminator.named_parameters(),
        lr=holistic.lr,
        weight_decay=holistic.weight_decay,
    )
    return make_optimizer(
        groups, holistic.optimizer, momentum=holistic.momentum, betas=holistic.betas
    )


def build_step(config: schema.Config, distiller: Distiller, process: Process) -> Step:
    """The optimizer step of a run, with all that is done to the student before its first batch.

    Norms over ranks, compilation and DDP change `distiller` in place.
    """
    # Optimizers hold the bare parameters, so build them before DDP renames anything.
    tapped = bare(distiller.student)
    network = tapped.model
    optimizer = build_optimizer(config.optim, network, adapters_of(tapped))
    discriminator_optimizer = build_discriminator_optimizer(config.distill.holistic, distiller)
    ema = (
        None
        if config.train.ema is None
        else AveragedModel(
            network, multi_avg_fn=get_ema_multi_avg_fn(config.train.ema), use_buffers=True
        )
    )
    if config.train.sync_batchnorm:
        synchronise(tapped)
    if config.train.recompute_norms:
        to_inplace(network)
    if config.train.compile:
        distiller.student.compile()
    wrap_ddp(distiller, process)
    return Step(
        distiller,
        optimizer,
        discriminator_optimizer=discriminator_optimizer,
        amp=config.train.amp,
        clip=config.optim.clip,
        ema=ema,
        device=process.device,
    )


def build_views(evaluate: schema.Evaluate) -> Views:
    return Views(
        scales=tuple(evaluate.scales),
        short_side=evaluate.short_side,
        long_side=evaluate.long_side,
        flip=evaluate.flip,
        window=evaluate.window,
        overlap=evaluate.overlap,
    )
