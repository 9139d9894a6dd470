"""`tune`: the fastest form of a recipe's step on this machine, found by timing real steps, and remembered.

One lever after another is tried on top of those that were kept. The recipe as it is and the recipe with the lever take
steps in turns, on the same batch and from the same weights, so the ratio of their times says what the lever gives here.
A lever is kept where the step is surely shorter, and its losses and gradients agree with the recipe's within a
tolerance: float rounding passes, another number format does not, unless the tolerance is raised.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from densekd.build.run import Run, Sets, assemble
from densekd.build.runtimes import INT8, installed
from densekd.config.load import make_config, to_tree
from densekd.config.schema import Config
from densekd.config.tree import apply_overrides, flatten
from densekd.engine.folder import RunFolder, describe_environment
from densekd.engine.launch import Process, started
from densekd.engine.optim import set_lr
from densekd.errors import UserError
from densekd.ops.collectives import gather_objects
from densekd.profiling.machine import processor, reduced_precision_ratio
from densekd.profiling.measure import interleave, ratio, spread, timed
from densekd.workflows.forms import settled, training_set, with_random_teacher
from densekd.workflows.resume import settings_of
from densekd.workflows.tune_memory import remember, remembered
from densekd.workflows.tune_text import ratio_text, settings_text

# What the losses and the student's gradients of a kept lever may differ by, relative; rounding of float32 stays below.
TOLERANCE = 1e-3
# A lever must save so much of the step, since a setting more is a setting more.
WORTH = 0.97
# Seconds that one lever may take, and the rounds in it, when a run tunes itself.
SECONDS, FEWEST, MOST = 6.0, 3, 10
# The same for `tune`, which was asked to measure.
PATIENCE = 90.0


# Values of `STEP_FORMS` with which a recipe leaves the choice open.
AS_IT_IS = (None, False, "none", "same", "eager")


@dataclass(frozen=True)
class Lever:
    """Settings that make the same step in another way.

    Attributes:
        changes: dotted settings.
        applies: whether this recipe, on this device, can take it and does not have it.
        compiles: takes a minute before the first step.
        prepares: takes many seconds before the first step, so that a run that measures itself leaves it to `tune`.
        int8: computes in int8, which is tried on request.
        exact: equal up to rounding in its format, so that a run may take it by itself.
    """

    changes: dict[str, Any]
    applies: Callable[[Config, torch.device], bool]
    compiles: bool = False
    prepares: bool = False
    int8: bool = False
    exact: bool = True


def _live(config: Config, device: torch.device) -> bool:
    return config.teacher is not None and config.distill.teacher_cache is None


def _teacher_layout(config: Config, device: torch.device) -> bool:
    return (
        _live(config, device)
        and config.teacher is not None
        and config.teacher.channels_last is None
        and not config.train.channels_last
    )


def _teacher_split(config: Config, device: torch.device) -> bool:
    # On a processor one image at a time may stay in its cache; a GPU wants the whole batch.
    return (
        device.type == "cpu"
        and _live(config, device)
        and config.teacher is not None
        and config.teacher.batch_size is None
        and _images(config) > 1
    )


def _in_runtime(config: Config, device: torch.device, runtime: str) -> bool:
    """Whether a teacher of this recipe can be computed by a runtime that is installed, and is not yet."""
    teacher = config.teacher
    return (
        teacher is not None
        and device.type == "cpu"
        and _live(config, device)
        and config.data.crop is not None
        and config.train.amp == "none"
        and teacher.precision in ("same", "fp32")
        and not (teacher.compile or teacher.int8)
        and teacher.runtime != runtime
        and installed(runtime)
    )


def _runtime_lever(runtime: str) -> Lever:
    int8 = runtime.endswith(INT8)
    applies = partial(_in_runtime, runtime=runtime)
    return Lever({"teacher.runtime": runtime}, applies, prepares=True, int8=int8, exact=not int8)


def _half(config: Config, device: torch.device) -> bool:
    return config.train.amp == "none" and _fast_bf16(device)


def _fast_bf16(device: torch.device) -> bool:
    """Not where it is emulated: a single step might take minutes."""
    return reduced_precision_ratio(torch.bfloat16, device) < 1


LEVERS = (
    Lever({"teacher.channels_last": True}, _teacher_layout),
    Lever({"train.channels_last": True}, lambda config, _: not config.train.channels_last),
    Lever({"teacher.batch_size": 1}, _teacher_split),
    Lever(
        {"teacher.precision": "bf16"},
        lambda config, device: (
            _live(config, device)
            and config.teacher is not None
            and config.teacher.precision == "same"
            and config.teacher.runtime == "eager"
            and _half(config, device)
        ),
        exact=False,
    ),
    Lever({"train.amp": "bf16"}, _half, exact=False),
    *(
        _runtime_lever(name)
        for name in ("onnxruntime", "openvino", "onnxruntime_int8", "openvino_int8")
    ),
    Lever(
        {"teacher.compile": True, "teacher.runtime": "eager"},
        lambda config, device: (
            _live(config, device)
            and config.teacher is not None
            and not (config.teacher.compile or config.teacher.int8)
        ),
        compiles=True,
    ),
    Lever(
        {"train.compile": True},
        lambda config, _: not (config.train.compile or config.model.int8),
        compiles=True,
    ),
)


def tune(
    config: Config,
    *,
    rounds: int = MOST,
    device: str = "auto",
    made_up: bool = False,
    compiles: bool = False,
    int8: bool = False,
    tolerance: float = TOLERANCE,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Try every lever on the step of `config`, and remember what was kept for runs with ``train.auto``.

    Nothing is trained: the learning rates are 0. A teacher without weights is a random one here, which costs the same.

    Args:
        rounds: steps of each of the two forms that are timed in turns; fewer where a step takes many seconds.
        made_up: random images of the crop's size in place of the data.
        compiles: try torch.compile too, which takes a minute a network.
        int8: try the teacher in int8 too; it is kept where the tolerance allows for it.
        tolerance: what a kept lever's losses and gradients may differ by, relative.
        progress: gets a line before each lever.

    Returns:
        ``"settings"`` (dotted settings that were kept), ``"ratio"`` (the step with them over the step as it was),
        ``"levers"`` (what was measured of each), and the machine, versions and date.
    """
    if config.teachers:
        raise UserError(
            "teachers: tune works with one teacher; name one as teacher, and set teachers to null"
        )
    distil = bool(config.teacher or config.distill.terms or config.distill.holistic)
    config = settled(config, distil)
    config, remarks = with_random_teacher(config)
    with started(device, deterministic=config.train.deterministic) as process:
        if process.world_size > 1:
            raise UserError("tune measures one process; start it without torchrun or srun")
        sets = training_set(config, made_up=made_up)
        levers = [lever for lever in LEVERS if lever.compiles <= compiles and lever.int8 <= int8]
        result = _try_levers(
            config, process, sets, levers, rounds=rounds, seconds=PATIENCE, tolerance=tolerance, progress=progress
        )  # fmt: skip
    # A run never takes by itself what changes its numbers.
    result = {
        **result,
        "remarks": remarks,
        "made_up": made_up,
        "remembered": tolerance == TOLERANCE,
    }
    if result["remembered"]:
        remember(config, process.device, result)
    return result


def tuned(
    config: Config,
    folder: RunFolder | None,
    process: Process,
    *,
    distil: bool,
    networks: Mapping[str, nn.Module] | None = None,
) -> tuple[Config, list[str]]:
    """The recipe of a run with ``train.auto``, with the fastest settings for this machine, and what to say of them.

    Args:
        folder: of a run that goes on: it keeps the settings that it began with.
        networks: given objects cannot be built twice, so a recipe with some stays as it is.
    """
    if folder is not None and folder.config.exists():
        before = flatten(to_tree(make_config(settings_of(folder), str(folder.config))))
        given = flatten(to_tree(config))
        # What the user asks for now stays, and differs from the run's: `--resume` then says so.
        chosen = {
            key: value
            for lever in LEVERS
            for key, value in lever.changes.items()
            if before.get(key) == value and given.get(key) in AS_IT_IS
        }
        return _with(config, chosen), []
    if networks:
        return config, ["train.auto: networks that are given as objects are left as they are"]
    if config.teachers:
        return config, ["train.auto: a recipe of several teachers is left as it is"]
    if process.world_size > 1:
        found = gather_objects(remembered(config, process.device))[0]
        if found is None:
            remark = "train.auto: several processes do not tune themselves; run densekd tune first"
            return config, [remark]
        return _with(config, found["settings"]), [_line(found, "remembered")]
    found = remembered(config, process.device)
    how = "remembered"
    if found is None:
        how = "measured now"
        levers = [
            lever for lever in LEVERS if lever.exact and not (lever.compiles or lever.prepares)
        ]
        if not any(lever.applies(config, process.device) for lever in levers):
            return config, ["train.auto: the recipe has every form of the step already"]
        sets = training_set(config, made_up=False)
        found = _try_levers(
            config, process, sets, levers, rounds=MOST, seconds=SECONDS, tolerance=TOLERANCE, distil=distil
        )  # fmt: skip
        remember(config, process.device, found)
    return _with(config, found["settings"]), [_line(found, how)]


def _line(found: Mapping[str, Any], how: str) -> str:
    if not found["settings"]:
        return f"train.auto ({how}): no other form of the step is faster on this machine"
    kept = settings_text(found["settings"])
    return f"train.auto ({how}): {kept}; a step takes {ratio_text(found['ratio'])} of its time"


def _try_levers(
    config: Config,
    process: Process,
    sets: Sets,
    levers: Sequence[Lever],
    *,
    rounds: int,
    seconds: float,
    tolerance: float,
    distil: bool | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Each lever on top of those that were kept; `seconds` bounds the time of one, down to `FEWEST` rounds."""
    if config.distill.teacher_cache is not None:  # a stored teacher is no part of the step
        distil, config = False, settled(config, False)
    if distil is None:
        distil = config.teacher is not None
    make = partial(_Arm, process=process, sets=sets, distil=distil)
    first = best = make(config)
    kept: dict[str, Any] = {}
    tried: list[dict[str, Any]] = []
    for lever in levers:
        if not lever.applies(best.config, process.device):
            continue
        progress(settings_text(lever.changes))
        try:
            arm = make(_with(best.config, lever.changes))
            found = _compare(best, arm, first, process, rounds=rounds, seconds=seconds)
        except (UserError, RuntimeError, ValueError, NotImplementedError) as error:
            reason = str(error).splitlines() or [type(error).__name__]
            tried.append({"changes": lever.changes, "kept": False, "why": f"does not run: {reason[0]}"})  # fmt: skip
            continue
        why = _reason_against(found, tolerance)
        tried.append({"changes": lever.changes, "kept": why is None, "why": why or "", **found})
        if why is None:
            kept, best = {**kept, **lever.changes}, arm
    overall = None
    if best is not first:
        overall = _compare(first, best, first, process, rounds=rounds, seconds=seconds)
        if (why := _reason_against(overall, tolerance)) is not None:
            # On a busy machine a lever may seem to save; all of them against the recipe as it was have the last word.
            for one in tried:
                if one["kept"]:
                    one.update(kept=False, why=f"together: {why}")
            kept, overall = {}, None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": str(process.device),
        "processor": processor(),
        "environment": describe_environment(),
        "batch": list(first.batch.images.shape),
        "tolerance": tolerance,
        "levers": tried,
        "settings": kept,
        "ratio": spread([1.0]) if overall is None else overall["ratio"],
        "seconds": first.seconds if overall is None else overall["seconds"],
    }


class _Arm:
    """One form of the step, on the recipe's first batch; its weights stay as they begin."""

    def __init__(self, config: Config, *, process: Process, sets: Sets, distil: bool) -> None:
        self.config = config
        self.run: Run = assemble(config, process, distil=distil, sets=sets)
        self.step = self.run.step
        for optimizer in (self.step.optimizer, self.step.discriminator_optimizer):
            if optimizer is not None:
                set_lr(optimizer, 0.0)
        torch.manual_seed(config.seed)  # of the augmentation, where it draws from torch
        self.batch = self.run.first_batch().to(process.device, config.train.channels_last)
        begin = time.perf_counter()
        torch.manual_seed(config.seed)  # for dropout
        self.losses = self.step([self.batch] * config.train.accumulate, 1)
        self.seconds: dict[str, Any] = spread([time.perf_counter() - begin])
        self.gradient = _gradient(self.step.parameters)

    def __call__(self) -> None:
        self.step([self.batch] * self.config.train.accumulate, 1)


def _gradient(parameters: Sequence[Tensor]) -> Tensor:
    """All gradients of the step in one row, in float64, contiguous as a parameter of the other layout has them."""
    flat = [p.grad.double().contiguous().flatten() for p in parameters if p.grad is not None]
    return torch.cat(flat) if flat else torch.zeros(0)


def _compare(
    base: _Arm, arm: _Arm, first: _Arm, process: Process, *, rounds: int, seconds: float
) -> dict[str, Any]:
    """The time of `arm` over that of `base`, and how far its numbers are from those of the recipe as it was."""
    device = process.device
    # Of one thread, the process's own time leaves out what else the machine does.
    clock = "cpu" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"
    begin = time.perf_counter()
    base(), arm()  # each has stepped once before; now the allocator has what it needs
    pairs = max(FEWEST, min(rounds, int(seconds / (time.perf_counter() - begin))))
    arms = {"base": base, "lever": arm}
    found = interleave(
        {name: partial(timed, call, device, clock) for name, call in arms.items()}, pairs=pairs, warmup=0
    )  # fmt: skip
    scale = max(1e-12, abs(first.losses["loss"]))
    loss_error = max(
        (abs(arm.losses[k] - v) / scale for k, v in first.losses.items() if k != "grad_norm"),
        default=0.0,
    )
    size = float(first.gradient.norm())
    same = arm.gradient.shape == first.gradient.shape
    gradient_error = float((arm.gradient - first.gradient).norm()) / max(size, 1e-12) if same else 1.0  # fmt: skip
    return {
        "ratio": ratio(found["lever"], found["base"]),
        "seconds": spread(found["lever"]),
        "loss_error": loss_error,
        "gradient_error": gradient_error,
    }


def _reason_against(found: Mapping[str, Any], tolerance: float) -> str | None:
    error = max(found["loss_error"], found["gradient_error"])
    if not error <= tolerance:
        return f"changes losses or gradients by {error:.0e}"
    if found["ratio"]["interval"][1] >= 1 or found["ratio"]["median"] > WORTH:
        return "saves nothing here"
    return None


def _with(config: Config, changes: Mapping[str, Any]) -> Config:
    """The recipe with dotted settings changed; those of a section that it lacks are left out."""
    tree = to_tree(config)
    there = {k: v for k, v in changes.items() if tree.get(k.split(".")[0]) is not None}
    apply_overrides(tree, there)
    return make_config(tree, "the tuned recipe")


def _images(config: Config) -> int:
    second = config.data.unlabelled
    return config.data.batch_size + (0 if second is None else second.batch_size)
