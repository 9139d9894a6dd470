"""Data sets, augmentation and loaders of a recipe."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from densekd.build.resolve import DATASET, accepts, call, parameters, resolve
from densekd.build.settings import in_settings, naming_settings
from densekd.build.task import task_class, task_name
from densekd.config import schema
from densekd.config.names import DATASETS
from densekd.data.augment import Augment
from densekd.data.check import sample_check
from densekd.data.device import DeviceLoader, check_device
from densekd.data.items import Items
from densekd.data.loader import EvalLoader, TrainLoader, Unlabelled
from densekd.data.part import Part, few_labelled, held_out
from densekd.data.unlabelled import ImageFolder, WithoutLabels
from densekd.engine.launch import Process, available_cores
from densekd.errors import UserError
from densekd.ops.names import did_you_mean
from densekd.ops.tiling import Views
from densekd.targets import kind_of_set
from densekd.types import InputSpec

# What `data.cache: device` is made by, and what the other kinds of cache are.
_LOADERS = {"DeviceLoader": "data.cache: device", "TrainLoader": "disk or ram"}
# What the engine and the checks use of a data set.
READER = ("classes", "palette", "ignore_index", "channels", "name", "read", "__len__")


def build_reader(
    data: schema.Data, split: str, *, training: bool, verify_files: bool = True
) -> Any:
    """The data set of one split; missing folders and label files fail here (unless `verify_files` is off).

    With `data.val_fraction` training and validation split are two parts of the training split's files.
    """
    builder = resolve(data.dataset, DATASETS, "data.dataset", DATASET)
    section, own = _split_options(data, split, training)
    parted = data.val_fraction is not None and (
        training or split in (data.train_split, data.val_split)
    )
    options = {**data.options, **own}
    items = options.pop("items", None) if not accepts(builder, "items") else None
    if data.root is None and needs_root(builder):
        raise UserError(f"data.root: {data.dataset} needs a folder; give --data.root FOLDER")
    if not (accepts(builder, "split") or parted or data.train_options != data.val_options):
        raise UserError(
            f"data.dataset: {data.dataset!r} takes no split, so training and validation would be the same samples; "
            "give its constructor a parameter named split, set data.val_fraction, or tell the two apart in "
            "data.train_options and data.val_options"
        )
    given: dict[str, Any] = {
        "split": data.train_split if parted else split,
        "verify_files": verify_files,
    }
    if data.root is not None:
        if not accepts(builder, "root") and items is None:
            raise UserError(f"data.root: {data.dataset} takes no folder; leave data.root out")
        given["root"] = data.root
    allow_unlabelled = training and data.allow_unlabelled
    if allow_unlabelled:
        if not accepts(builder, "allow_unlabelled") and items is None:
            raise UserError(
                f"data.allow_unlabelled: {data.dataset!r} has labels for every image; leave it out"
            )
        given["allow_unlabelled"] = True
    labelled = options.pop("labelled", None) if parted and accepts(builder, "labelled") else None
    _check_names(builder, {k: v for k, v in own.items() if k in options}, section, given)
    with naming_settings(setting_names(data, builder, split, training)):
        reader = call(builder, options, "data.options", **given)
        if items is not None:
            reader = _of_items(data, reader, items, allow_unlabelled)
    missing = [name for name in READER if not hasattr(reader, name)]
    if missing:
        raise UserError(
            f"data.dataset: {data.dataset!r} lacks {', '.join(missing)}; a data set has {', '.join(READER)} "
            "(see densekd.data.base.DenseSet). Of a torch Dataset whose items are dicts, say in data.options what "
            "they hold: items: {image: KEY, mask: KEY, classes: [...]}"
        )
    if not parted:
        return reader
    names = {**setting_names(data, builder, split, training), **_PARTING}
    with naming_settings(names):
        train, val = held_out(reader, data.val_fraction or 0.0, data.val_groups, data.val_seed)
        of_training = training or (split == data.train_split != data.val_split)
        part = Part(reader, train if of_training else val)
        return part if labelled is None else few_labelled(part, labelled, allow_unlabelled)


# Argument of `held_out` -> setting.
_PARTING = {
    "fraction": "data.val_fraction",
    "groups": "data.val_groups",
    "seed": "data.val_seed",
}


def _of_items(data: schema.Data, dataset: Any, items: Any, allow_unlabelled: bool) -> Items:
    """The reader of a torch data set of dicts."""
    where = "data.options.items"
    if not isinstance(items, Mapping):
        raise UserError(f"{where}: expected a section (key: value); got {items!r}")
    given = {"items": dataset, "root": data.root, "allow_unlabelled": allow_unlabelled}
    names = {name: f"{where}.{name}" for name in parameters(Items)}
    with naming_settings(
        {**names, "root": "data.root", "allow_unlabelled": "data.allow_unlabelled"}
    ):
        return call(Items, items, where, **given)


def _split_options(data: schema.Data, split: str, training: bool) -> tuple[str, Mapping[str, Any]]:
    """The section of settings that one split has beside data.options, and what is in it."""
    sections = {
        data.train_split: ("data.train_options", data.train_options),
        data.val_split: ("data.val_options", data.val_options),
    }
    if training:
        return "data.train_options", data.train_options
    return sections.get(split, ("data.options", {}))


def _check_names(
    builder: Callable[..., Any], own: Mapping[str, Any], section: str, given: Mapping[str, Any]
) -> None:
    """UserError for an option of a split's own section that the reader does not take."""
    for key in own:
        if key in given or not accepts(builder, key):
            hint = did_you_mean(key, sorted(parameters(builder).keys() - given.keys()))
            raise UserError(f"{section}.{key}: unknown option; {hint}")


def build_unlabelled(data: schema.Data, of: Any, *, verify_files: bool = True) -> Any | None:
    """The images of `data.unlabelled`, in the form of the training set `of`; None where there are none."""
    settings, where = data.unlabelled, "data.unlabelled"
    if settings is None:
        return None
    builder = check_unlabelled_options(settings)
    given: dict[str, Any] = {"verify_files": verify_files}
    if settings.dataset is not None:
        given["split"] = settings.split or data.train_split
        if {"labelled", "allow_unlabelled"} <= parameters(builder).keys():
            given |= {"labelled": 0, "allow_unlabelled": True}  # label files are not even read
    else:
        given["channels"] = of.channels
    if settings.root is not None:
        given["root"] = settings.root
    elif needs_root(builder):
        raise UserError(f"{where}.root: missing; give --{where}.root FOLDER, a folder of images")
    names = {name: f"{where}.options.{name}" for name in parameters(builder)}
    with naming_settings({**names, "root": f"{where}.root"}):
        reader = call(builder, settings.options, f"{where}.options", **given)
    with naming_settings({}, where):
        return WithoutLabels(reader, of)


def check_unlabelled_options(settings: schema.Unlabelled) -> Callable[..., Any]:
    """The builder of the set of `data.unlabelled`, where its settings fit each other; no file is read."""
    where, given = (
        "data.unlabelled",
        {"root", "split", "verify_files", "allow_unlabelled", "labelled"},
    )
    if settings.dataset is None:
        if settings.split is not None:
            raise UserError(
                f"{where}.split: a folder of images has no splits; give the folder of the split as {where}.root, or "
                f"name its reader in {where}.dataset"
            )
        if settings.options:
            raise UserError(
                f"{where}.options: a folder of images has none; name a reader in {where}.dataset"
            )
        return ImageFolder
    builder = resolve(settings.dataset, DATASETS, f"{where}.dataset", DATASET)
    if settings.root is not None and not accepts(builder, "root"):
        raise UserError(f"{where}.root: {settings.dataset} takes no folder; leave it out")
    for key in settings.options:
        if key in given or not accepts(builder, key):
            hint = did_you_mean(key, sorted(set(parameters(builder)) - given))
            raise UserError(f"{where}.options.{key}: unknown option; {hint}")
    return builder


def check_unlabelled(unlabelled: Any, val: Any) -> list[str]:
    """A spread of the images can be read; remarks on them, and where they are validation images too."""
    with naming_settings({}, "data.unlabelled"):
        remarks = [f"data.unlabelled: {remark}" for remark in sample_check(unlabelled)]
    return remarks + validation_images(unlabelled, val)


def validation_images(unlabelled: Any, val: Any) -> list[str]:
    """A remark where images of `data.unlabelled` are validation images too."""
    if not (hasattr(val, "paths") and hasattr(unlabelled.reader, "paths")):
        return []
    files = {os.path.abspath(path) for path in _image_files(unlabelled)}
    both = sum(os.path.abspath(path) in files for path in _image_files(val))
    if not both:
        return []
    return [
        f"data.unlabelled: {both} of {len(val)} validation images are among its images: the student meets them in "
        "training, without their labels"
    ]


def _image_files(reader: Any) -> Iterator[Path]:
    images = (reader.paths(index)[0] for index in range(len(reader)))
    return (path for path in images if path is not None)


def needs_root(builder: Callable[..., Any]) -> bool:
    """Whether a data set cannot be built without a folder."""
    root = inspect.signature(builder).parameters.get("root")
    return root is not None and root.default is inspect.Parameter.empty


def setting_names(
    data: schema.Data, builder: Callable[..., Any], split: str, training: bool = False
) -> Mapping[str, str]:
    """Argument of a data set's constructor -> setting: in the split's own section where it stands there."""
    section, own = _split_options(data, split, training)
    names = {
        name: f"{section if name in own else 'data.options'}.{name}" for name in parameters(builder)
    }
    return {**names, "root": "data.root", "allow_unlabelled": "data.allow_unlabelled"}


def kind_of_task(config: schema.Config) -> Any:
    """The kind of truth that the task takes; UserError where it does not say."""
    kind = getattr(task_class(config.task), "target", None)
    if not isinstance(kind, type):
        raise UserError(
            f"task: {config.task.name} does not say which kind of truth it takes; give it an attribute target, "
            "the class (see densekd.tasks.Task)"
        )
    return kind


def check_data_settings(config: schema.Config) -> None:
    """UserError for a setting of the data that the task's kind of truth cannot have."""
    kind = kind_of_task(config)
    if config.data.cache == "device":
        with naming_settings(_LOADERS):
            check_device(kind)
    if config.data.cat_max_ratio is not None and not hasattr(kind, "is_mixed"):
        raise UserError(f"data.cat_max_ratio: is of class maps; leave it out with {kind.name}")


def check_reader(
    reader: Any, config: schema.Config, split: str, *, training: bool = False
) -> list[str]:
    """Before any work: a spread of files can be read, with what task and network take; returns remarks."""
    names = check_form(reader, config, split, training=training)
    with naming_settings(names):
        return [in_settings(remark, names) for remark in sample_check(reader)]


def check_form(
    reader: Any, config: schema.Config, split: str, *, training: bool = False
) -> Mapping[str, str]:
    """UserError where a reader gives another kind of truth or other channels than the recipe needs; no file is read.

    Returns:
        `setting_names` of the reader.
    """
    channels = config.model.in_channels
    check_data_settings(config)
    wanted, given = kind_of_task(config), kind_of_set(reader)
    if not issubclass(given, wanted):
        raise UserError(
            f"task is {task_name(config.task)}, which takes {wanted.name}, and data.dataset "
            f"{config.data.dataset!r} gives {given.name}; set one to fit the other (`densekd list datasets`)"
        )
    if reader.channels != channels:
        raise UserError(
            f"model.in_channels is {channels} and the data has {reader.channels} channels; make them equal "
            "(a folder is read with --data.options.channels 1, 3 or 4)"
        )
    builder = resolve(config.data.dataset, DATASETS, "data.dataset", DATASET)
    return setting_names(config.data, builder, split, training)


def compare_readers(data: schema.Data, train: Any, val: Any) -> list[str]:
    """UserError where the splits' classes differ; a remark where validation images are training images too."""
    for name in ("classes", "ignore_index"):
        in_train, in_val = getattr(train, name), getattr(val, name)
        if in_train != in_val:
            raise UserError(
                f"data: {name} of {data.train_split} and {data.val_split} differ: {in_train} and {in_val}; "
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
    with naming_settings({}, section="data"):
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


def build_second(data: schema.Data, reader: Any, augment: Augment) -> Unlabelled | None:
    """How a loader adds the images of `data.unlabelled`; `reader` has them, or is None where there are none."""
    settings = data.unlabelled
    if settings is None or reader is None:
        return None
    own = ("scale", "short_side", "hflip", "color_jitter")
    changed = {key: getattr(settings, key) for key in own if getattr(settings, key) is not None}
    if "scale" in changed:
        changed["scales"] = None
    # Without labels there is no class that could cover too much.
    transform = replace(augment, **changed, cat_max_ratio=None)
    return Unlabelled(reader, settings.batch_size, transform)


def in_small_batches(data: schema.Data, batch_size: int) -> schema.Data:
    """The same data in smaller batches, for trials."""
    second = data.unlabelled
    if second is not None:
        second = replace(second, batch_size=min(batch_size, second.batch_size))
    return replace(data, batch_size=min(batch_size, data.batch_size), unlabelled=second)


def input_size(config: schema.Config, reader: Any) -> tuple[int, int]:
    """(height, width) the student sees in training at scale 1: the crop, or the first image's size."""
    if config.data.crop is not None:
        return config.data.crop
    height, width = reader.read(0).image.shape[:2]
    views = Views(short_side=config.data.short_side, long_side=config.data.long_side)
    return views.sizes(height, width)[0]


def loader_processes(data: schema.Data) -> int:
    """`data.workers`, but no more than there are cores: more of them only take turns."""
    return min(data.workers, available_cores())


def build_train_loader(
    config: schema.Config,
    reader: Any,
    augment: Augment,
    process: Process,
    start_step: int,
    skipped: dict[str, str] | None = None,
    unlabelled: Any | None = None,
) -> TrainLoader:
    """Samples decoded and augmented on the host; `skipped` is a record of unreadable files to go on with."""
    stream = _stream(config, augment, process, start_step)
    second = build_second(config.data, unlabelled, augment)
    workers = loader_processes(config.data)
    return TrainLoader(reader, workers=workers, skipped=skipped, unlabelled=second, **stream)


def build_device_loader(
    config: schema.Config,
    reader: Any,
    augment: Augment,
    process: Process,
    start_step: int,
    skipped: dict[str, str] | None = None,
) -> DeviceLoader:
    """The same stream with the whole set and its augmentation on the process's device."""
    stream = _stream(config, augment, process, start_step)
    with naming_settings(_LOADERS):
        return DeviceLoader(reader, device=process.device, skipped=skipped, **stream)


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
    skipped: dict[str, str] | None = None,
) -> EvalLoader:
    return EvalLoader(
        reader,
        batch_size=config.evaluate.batch_size,
        fill=spec.fill(),
        limit=limit,
        rank=process.rank,
        world_size=process.world_size,
        workers=min(loader_processes(config.data), 2),
        on_bad_file=config.data.on_bad_file,
        skipped=skipped,
    )


# Argument of `Views` -> setting.
VIEWS = {name: f"evaluate.{name}" for name in ("scales", "flip", "window")}


def build_views(evaluate: schema.Evaluate) -> Views:
    return Views(
        scales=tuple(evaluate.scales),
        short_side=evaluate.short_side,
        long_side=evaluate.long_side,
        flip=evaluate.flip,
        window=evaluate.window,
        overlap=evaluate.overlap,
    )
