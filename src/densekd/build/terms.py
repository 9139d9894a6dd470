"""The distillation terms of a recipe, their taps and their adapters."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress

import torch
from torch import nn

from densekd.build.resolve import LOSS, call, resolve
from densekd.config import schema
from densekd.config.names import LOSSES
from densekd.distill.balance import Balance
from densekd.distill.discriminator import Discriminator, DiscriminatorLoss
from densekd.distill.distiller import Adversary
from densekd.distill.maps import PREDICTION, is_prediction, select
from densekd.distill.term import Points, Term
from densekd.errors import UserError
from densekd.losses.ssi import SSI
from densekd.models.tap_list import candidates
from densekd.models.taps import Taps, evaluating
from densekd.tasks import Task

WIDTHS_SIDE = 256  # of the square image that shows how wide tapped features are


def build_terms(
    distill: schema.Distill, task: Task, student: nn.Module, teachers: Mapping[str, nn.Module]
) -> tuple[list[Term], dict[str, str], dict[str, dict[str, str]]]:
    """The terms, and the taps (name -> module path) they need of the student and of each teacher.

    Args:
        teachers: by their sections, ``teacher`` or ``teachers.NAME``.
    """
    terms: list[Term] = []
    taps: dict[str, str] = {}
    teacher_taps: dict[str, dict[str, str]] = {section: {} for section in teachers}
    table = {name: path for name, (path, _) in LOSSES.items()}
    for name, term in distill.terms.items():
        where = f"distill.{name}"
        loss_name = term.loss or name
        options = {**task.term_options.get(loss_name, {}), **term.options}
        loss = call(resolve(loss_name, table, where, LOSS), options, where)
        if not callable(loss):
            raise UserError(
                f"{where}: {loss_name!r} gave a {type(loss).__name__}; expected a loss, called as "
                "loss(student, teacher, mask=mask)"
            )
        default = LOSSES.get(loss_name, ("", PREDICTION))[1]
        whose = section_of(term.teacher_name, teachers)
        sources = []
        for side, network, given, wanted in (
            ("student", student, term.student, taps),
            ("teacher", teachers.get(whose), term.teacher, teacher_taps.get(whose, {})),
        ):
            if default not in (PREDICTION, "features", *task.map_names):
                raise UserError(
                    f"{where}: {loss_name} compares {default}, which {task.name} has not"
                )
            source = given or ("" if default == "features" else default)
            if network is None and (not source or not is_prediction(source, task)):
                names = ", ".join(section.removeprefix("teachers.") for section in teachers)
                raise UserError(
                    f"{where}: compares a feature, and the features of several teachers have no mean; say whose: "
                    f"{where}.teacher_name, one of {names}"
                )
            if network is not None and not source:
                source = feature_tap(network, f"{where}.{side}")
            if not is_prediction(source, task):
                wanted[source] = source
            sources.append(source)
        if is_prediction(sources[1], task):
            for section in [whose] if whose else teachers:
                check_depth(teachers[section], loss, where, section)
        balance = None
        if distill.balance is not None:
            balance = Balance(distill.balance.every, distill.balance.decay)
        weight = Points(term.weight) if isinstance(term.weight, list) else term.weight
        try:
            terms.append(
                Term(
                    name,
                    loss,
                    weight,
                    *sources,
                    teacher_name=term.teacher_name or None,
                    balance=balance,
                )
            )
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error
    return terms, taps, teacher_taps


def section_of(teacher_name: str | None, teachers: Collection[str]) -> str:
    """The section of the teacher that a term compares with; empty for the mean of several."""
    if teacher_name:
        return f"teachers.{teacher_name}"
    return "teacher" if "teacher" in teachers else ""


def check_depth(teacher: nn.Module, loss: object, where: str, section: str = "teacher") -> None:
    """Raise UserError where a teacher's depth has another form than a term expects.

    A network of another library says in ``gives_depth`` what it gives: ``"metric"``, ``"inverse"``, or None where
    that has to be said in a recipe.
    """
    expected = loss.form if isinstance(loss, SSI) else "metric"
    given = getattr(teacher, "gives_depth", expected)
    if given == expected or (given, expected) == ("metric", "depth"):
        return
    name = type(teacher).__name__
    if given is None:
        raise UserError(
            f"{section}.options.depth: missing; {name} may give metres or relative inverse depth, and its config.json "
            "does not say which: set it to metric or inverse"
        )
    if given == "inverse":
        raise UserError(
            f"{where}: {name} gives relative inverse depth, without scale and shift, and this term compares metres; "
            "take distill.ssi, or a term that compares features"
        )
    raise UserError(
        f"{where}.form: is {expected}, and {name} gives metres: set it to depth, or take distill.pixel_wise"
    )


def feature_tap(network: nn.Module, where: str) -> str:
    tap = getattr(network, "pair_wise_tap", None)
    if tap is None:
        near: list[str] = []
        with suppress(ValueError, TypeError, RuntimeError):  # it takes no image of that size
            near = candidates(network, _image(network))
        hint = f" ({', '.join(near)} are sensible)" if near else ""
        raise UserError(
            f"{where}: {type(network).__name__} does not say which feature to compare; name a module path{hint}. "
            "`densekd taps RECIPE` lists all"
        )
    return tap


def _image(network: nn.Module) -> torch.Tensor:
    """A grey image for a network of which nothing more is known than its own `input_spec`."""
    spec = getattr(network, "input_spec", None)
    height, width = (spec and spec.size) or (WIDTHS_SIDE, WIDTHS_SIDE)
    device = next(network.parameters()).device
    return torch.full((1, spec.channels if spec else 3, height, width), 0.5, device=device)


def add_adapters(
    terms: list[Term], task: Task, student: Taps, teachers: Mapping[str, Taps], channels: int
) -> None:
    """Give a 1x1 convolution to every term that wants equal widths and has not got them."""
    wanting = [term for term in terms if term.wants.adapter]
    if not wanting:
        return
    device = next(student.parameters()).device
    images = torch.rand(1, channels, WIDTHS_SIDE, WIDTHS_SIDE, device=device)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for tapped in (student, *teachers.values()):
                stack.enter_context(evaluating(tapped))
            student_output = student(images)
            outputs = {section: teacher(images) for section, teacher in teachers.items()}
    except (ValueError, TypeError, RuntimeError) as error:
        names = ", ".join(f"distill.{term.name}" for term in wanting)
        raise UserError(
            f"{names}: student and teacher cannot see a {WIDTHS_SIDE}x{WIDTHS_SIDE} image, which shows how wide their "
            f"features are: {error}"
        ) from error
    for term in wanting:
        if term.student not in student_output.features:
            raise UserError(
                f"distill.{term.name}: its adapter widens a feature, and {term.student} is none; name a module path as "
                "its student"
            )
        narrow = {x.shape[1] for x in select(student_output, term.student, task)}
        # Of several teachers, all predict the student's classes.
        section = section_of(term.teacher_name, teachers) or next(iter(outputs))
        wide = {x.shape[1] for x in select(outputs[section], term.teacher, task)}
        if narrow == wide and len(narrow) == 1:
            continue
        if len(narrow) > 1 or len(wide) > 1:
            raise UserError(
                f"distill.{term.name}: one adapter serves all levels of a tapped feature; {term.student} has "
                f"{sorted(narrow)} channels and {term.teacher} {sorted(wide)}: compare levels of one width"
            )
        term.adapter = nn.Conv2d(narrow.pop(), wide.pop(), 1)


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
