"""The composition root: the only file that turns names (config.names) into objects.

Everything a setting can get wrong (a name, an option, a tap, a class count, a weights file) fails here, before the
first batch, with what was given, what is possible and the nearest match.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from densekd.config import provenance, schema
from densekd.config.names import DATASETS, LOSSES, MODELS
from densekd.config.resolve import accepts, call, resolve
from densekd.data.check import sample_check
from densekd.data.loader import EvalLoader, TrainLoader
from densekd.data.transforms import Augment
from densekd.distill.discriminator import Discriminator, DiscriminatorLoss
from densekd.distill.distiller import Adversary, Distiller
from densekd.distill.teacher import Teacher
from densekd.distill.terms import PREDICTION, Term
from densekd.engine.evaluate import Views
from densekd.engine.launch import Process
from densekd.engine.optim import make_optimizer, parameter_groups
from densekd.engine.step import AMP
from densekd.errors import UserError
from densekd.layers import ABN
from densekd.models.taps import Taps
from densekd.models.weights import load_weights
from densekd.tasks import Segmentation
from densekd.types import Batch, InputSpec

# What the engine and the checks use of a data set.
READER = (
    "classes",
    "num_classes",
    "palette",
    "ignore_index",
    "channels",
    "name",
    "read",
    "__len__",
)


# --- data ---------------------------------------------------------------------------------------------------------


def build_reader(
    data: schema.Data, split: str, *, training: bool, verify_files: bool = True
) -> Any:
    """The data set of one split; missing folders and label files fail here (unless `verify_files` is off)."""
    builder = resolve(data.dataset, DATASETS, "data.dataset")
    if accepts(builder, "root") and data.root is None and _required(builder, "root"):
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
            "(see densekd.data.SegmentationSet)"
        )
    return reader


def _required(builder: Callable[..., Any], name: str) -> bool:
    return inspect.signature(builder).parameters[name].default is inspect.Parameter.empty


def check_reader(reader: Any, channels: int) -> list[str]:
    """Before any work: a spread of files can be read, with the channels the network takes; returns remarks."""
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
    data = config.data
    return TrainLoader(
        reader,
        batch_size=data.batch_size,
        seed=config.seed,
        transform=augment,
        rank=process.rank,
        world_size=process.world_size,
        workers=data.workers,
        start_step=start_step * config.train.accumulate,
        on_bad_file=data.on_bad_file,
    )


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


def build_task(config: schema.Config, reader: Any) -> Segmentation:
    loss = config.loss
    try:
        return Segmentation(
            reader.classes,
            reader.palette,
            ignore_index=reader.ignore_index,
            loss=loss.name,
            aux_weight=loss.aux_weight,
            class_weights=loss.class_weights,
            label_smoothing=loss.label_smoothing,
            threshold=loss.threshold,
            min_kept=loss.min_kept,
        )
    except ValueError as error:
        raise UserError(f"loss: {error}") from error


def build_network(
    model: schema.Model, classes: Sequence[str], where: str
) -> tuple[nn.Module, InputSpec]:
    """The bare network with its weights, and what it wants to see.

    Weights that a run of ours wrote know their classes and input: other classes are an error, and their input holds
    where the recipe does not set one.
    """
    builder = resolve(model.name, MODELS, f"{where}.name")
    options = dict(model.options)
    if model.weights is not None and "backbone_weights" in options:
        options["backbone_weights"] = None  # the whole network's weights replace them: do not fetch
    network = call(
        builder,
        options,
        f"{where}.options",
        num_classes=len(classes),
        in_channels=model.in_channels,
    )
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{where}.name: {model.name!r} gave {type(network).__name__}, not an nn.Module"
        )
    own = getattr(network, "input_spec", None)
    if model.weights is not None:
        load_weights(network, model.weights)
        about = provenance.about_weights(model.weights)
        theirs = about.get("classes", list(classes))
        if list(classes) != theirs:
            raise UserError(
                f"{where}.weights: {model.weights} was trained for the classes {', '.join(theirs)}; the data has "
                f"{', '.join(classes)}"
            )
        own = InputSpec(**about["input"]) if "input" in about else own
    return network, build_input_spec(model, own, where)


def check_extras(config: schema.Config) -> None:
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
    distill: schema.Distill, student: nn.Module, teacher: nn.Module
) -> tuple[list[Term], dict[str, str], dict[str, str]]:
    """The terms, and the taps (name -> module path) they need of student and teacher."""
    terms: list[Term] = []
    taps: tuple[dict[str, str], dict[str, str]] = ({}, {})
    table = {name: path for name, (path, _) in LOSSES.items()}
    for name, term in distill.terms.items():
        where = f"distill.{name}"
        loss_name = term.loss or name
        loss = call(resolve(loss_name, table, where), term.options, where)
        if any(True for _ in getattr(loss, "parameters", tuple)()):
            raise UserError(
                f"{where}: {loss_name!r} has parameters of its own, which nothing would train or save; "
                "distillation terms are functions of the two tensors"
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
            if source != PREDICTION:
                wanted[source] = source
            sources.append(source)
        terms.append(Term(name, loss, term.weight, *sources))
    return terms, *taps


def build_student(
    config: schema.Config, network: nn.Module, spec: InputSpec, taps: dict[str, str], device: Any
) -> Taps:
    """Tap, then move, then compile: hooks must be there before the first compiled call."""
    tapped = Taps(network, taps, spec)
    tapped.to(device)
    if config.train.channels_last:
        tapped.to(memory_format=torch.channels_last)
    return tapped


def build_teacher(
    config: schema.Teacher,
    classes: Sequence[str],
    device: torch.device,
    *,
    channels_last: bool = False,
) -> tuple[nn.Module, InputSpec]:
    if config.weights is None and not config.allow_untrained:
        trained_by_builder = any(config.options.get(key) for key in ("weights", "pretrained"))
        if not trained_by_builder:
            raise UserError(
                "teacher.weights: a teacher needs trained weights; give --teacher.weights FILE "
                "(train one with `densekd train`), or set teacher.allow_untrained for a test"
            )
    network, spec = build_network(config, classes, "teacher")
    network.to(device)
    if channels_last:
        network.to(memory_format=torch.channels_last)
    return network, spec


def build_adversary(
    holistic: schema.Holistic, num_classes: int, channels: int, device: torch.device
) -> Adversary:
    try:
        discriminator = Discriminator(
            num_classes,
            image_channels=channels,
            channels=holistic.channels,
            convention=holistic.convention,
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
    config: schema.Config, task: Segmentation, *, distil: bool, device: torch.device
) -> tuple[Distiller, InputSpec]:
    """Networks, taps, terms and discriminator; `distil=False` leaves everything but the student out."""
    network, spec = build_network(config.model, task.classes, "model")
    if not distil:
        return Distiller(build_student(config, network, spec, {}, device), task), spec
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
    other, other_spec = build_teacher(
        config.teacher, task.classes, device, channels_last=config.train.channels_last
    )
    terms, mine, theirs = build_terms(config.distill, network, other)
    adversary = None
    if config.distill.holistic is not None:
        adversary = build_adversary(
            config.distill.holistic, task.num_classes, config.model.in_channels, device
        )
    precision = config.teacher.precision
    teacher = Teacher(
        Taps(other, theirs, other_spec),
        dtype=None if precision == "same" else AMP.get(precision) or torch.float32,
    )
    student = build_student(config, network, spec, mine, device)
    distiller = Distiller(
        student, task, teacher=teacher, terms=terms, adversary=adversary, mask=config.distill.mask
    )
    return distiller, spec


def dry_run(
    distiller: Distiller, channels: int, size: tuple[int, int], device: torch.device
) -> None:
    """Every forward pass and term once, on a random image: shapes, taps and class counts fail here."""
    n, (height, width) = 1, size
    batch = Batch(
        images=torch.rand(n, channels, height, width, device=device),
        targets=torch.zeros(n, height, width, dtype=torch.int64, device=device),
        labelled=torch.ones(n, dtype=torch.bool, device=device),
        inside=torch.ones(n, height, width, dtype=torch.bool, device=device),
        names=[""] * n,
    )
    student = distiller.student.eval()
    try:
        with torch.no_grad():
            distiller.task.check_output(student(batch.images), "student")
            if distiller.teacher is not None:
                distiller.task.check_output(distiller.teacher(batch.images), "teacher")
            distiller.student_phase(batch, step=2**31)
    except UserError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"the networks and terms do not fit at {height}x{width}: {error}"
        ) from error
    finally:
        student.train()


def synchronise_norms(student: Taps, process: Process) -> Taps:
    """Batch statistics over all ranks (PyTorch's own SyncBatchNorm, which needs GPUs)."""
    if process.device.type != "cuda":
        raise UserError("train.sync_batchnorm needs CUDA devices; leave it out on the CPU")
    if any(isinstance(m, ABN) for m in student.modules()):
        raise UserError(
            "train.sync_batchnorm: this network has activated norms (ABN), which PyTorch's SyncBatchNorm would "
            "replace by plain ones; leave it out"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(student)


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


def build_optimizer(optim: schema.Optim, network: nn.Module) -> torch.optim.Optimizer:
    groups = parameter_groups(
        network.named_parameters(),
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


def build_views(evaluate: schema.Evaluate) -> Views:
    return Views(
        scales=tuple(evaluate.scales),
        flip=evaluate.flip,
        window=evaluate.window,
        overlap=evaluate.overlap,
    )
