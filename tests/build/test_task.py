"""A task's settings are its constructor's: names, types, ranges; the reader gives the rest."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Annotated

import pytest
from annotated_types import Ge, Gt, Interval
from typing_extensions import Doc

from densekd.build.task import build_task, check_task, task_name, task_setting_names
from densekd.config.load import make_config
from densekd.errors import UserError
from densekd.tasks import Depth, Segmentation

if TYPE_CHECKING:
    from collections.abc import Mapping

READER = SimpleNamespace(classes=["a", "b"], palette=[(0, 0, 0), (1, 1, 1)], ignore_index=9)


class Steps:
    """What a task is asked to do; nothing of it is called here."""

    def loss(self, output, batch): ...

    def predict(self, network, batch, views): ...

    def metric(self): ...


class Normals(Steps):
    """A task of a user's own, as far as settings go."""

    name = "normals"

    def __init__(
        self,
        classes: Sequence[str],
        *,
        width: Annotated[int, Ge(2), Doc("needed")],
        share: Annotated[float | None, Interval(gt=0, le=1)] = None,
        weights: dict[str, Annotated[float, Gt(0)]] | None = None,
        anything=None,
    ) -> None:
        self.classes, self.width, self.share, self.weights = classes, width, share, weights
        self.anything = anything


class Unchecked(Steps):
    """Its annotations cannot be read: one is imported for type checks alone."""

    def __init__(self, *, weights: Mapping[str, float] | None = None) -> None:
        self.weights = weights


def config(task):
    tree = {"model": {"name": "espnet_c"}, "data": {"dataset": "scenes"}, "task": task}
    return make_config(tree, "here")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """The classes above, found as a user's file is."""
    module = ModuleType("my_tasks")
    vars(module).update(Normals=Normals, Unchecked=Unchecked)
    monkeypatch.setitem(sys.modules, "my_tasks", module)


def test_of_the_reader_a_task_is_given_what_it_takes():
    task = build_task(config({"loss": "ohem", "min_kept": 0.5}), READER)
    assert isinstance(task, Segmentation)
    assert (task.classes, task.ignore_index, task.term.min_kept) == (["a", "b"], 9, 0.5)
    assert isinstance(build_task(config("depth"), READER), Depth)


def test_the_defaults_are_what_they_were():
    task = build_task(config("depth"), READER)
    assert (task.range, task.bins, task.losses) == ((0.1, 10.0), 0, {"silog": 1.0})
    assert build_task(config("segmentation"), READER).aux_weight == 0.4


def test_a_task_of_ones_own_is_named_by_a_dotted_path():
    settings = {"name": "my_tasks.Normals", "width": 3, "share": 1, "anything": {"x": [1]}}
    task = build_task(config(settings), READER)
    assert (task.classes, task.width, task.share, task.anything) == (["a", "b"], 3, 1.0, {"x": [1]})
    assert isinstance(task.share, float)
    assert task_name(config(settings).task) == "normals"


def test_annotations_that_cannot_be_read_are_not_checked():
    settings = {"name": "my_tasks.Unchecked", "weights": {"a": -1}}
    assert build_task(config(settings), READER).weights == {"a": -1}
    with pytest.raises(UserError, match=r"task\.wieghts: unknown option.*'weights'"):
        check_task(config({"name": "my_tasks.Unchecked", "wieghts": 1}).task)


@pytest.mark.parametrize(
    ("task", "line"),
    [
        ({"threshold": 1}, "task.threshold: must be between 0 and 1; got 1"),
        ({"min_kept": 1.1}, "task.min_kept: must be in [0, 1]; got 1.1"),
        ({"label_smoothing": 1}, "task.label_smoothing: must be in [0, 1); got 1"),
        ({"aux_weight": -1}, "task.aux_weight: must be 0 or more; got -1"),
        ({"aux_weight": True}, "task.aux_weight: expected a number; got True"),
        ({"aux_weight": float("inf")}, "task.aux_weight: expected a finite number; got inf"),
        ({"class_weights": 3}, "task.class_weights: expected a list; got 3"),
        (
            {"aux_wieght": 1},
            "task.aux_wieght: unknown option of the task segmentation; did you mean 'aux_weight'?",
        ),
        ({"name": "depth", "min_depth": -1}, "task.min_depth: must be above 0; got -1"),
        ({"name": "depth", "bins": 2.5}, "task.bins: expected a whole number; got 2.5"),
        ({"name": "depth", "losses": 3}, "task.losses: expected a section (key: value); got 3"),
        (
            {"name": "detection", "topk_candidates": 0},
            "task.topk_candidates: must be at least 1; got 0",
        ),
        ({"name": "my_tasks.Normals"}, "task.width: missing; this setting has no default"),
        (
            {"name": "my_tasks.Normals", "width": 3, "share": 0},
            "task.share: must be in (0, 1]; got 0",
        ),
        (
            {"name": "my_tasks.Normals", "width": 3, "weights": {"a": 0}},
            "task.weights.a: must be above 0; got 0",
        ),
    ],
)
def test_a_wrong_option_is_named_with_what_was_expected(task, line):
    with pytest.raises(UserError) as caught:
        check_task(config(task).task)
    assert str(caught.value) == line


def test_what_the_reader_gives_is_no_option():
    with pytest.raises(UserError, match=r"task\.classes: unknown option"):
        check_task(config({"classes": ["a"]}).task)


def test_an_unknown_task_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"^task: 'dept' is unknown; did you mean 'depth' or"):
        check_task(config("dept").task)


@pytest.mark.parametrize(
    ("key", "value"), [("class_weights", [1.0, 2.0]), ("label_smoothing", 0.1)]
)
def test_ohem_refuses_what_it_would_ignore(key, value):
    assert build_task(config({key: value}), READER)
    with pytest.raises(UserError, match=rf"task: {key} is .*ohem"):
        build_task(config({"loss": "ohem", key: value}), READER)


def test_every_setting_of_the_named_tasks_is_known():
    assert {"task.loss", "task.score_threshold", "task.bins"} <= set(task_setting_names())
    assert "task.classes" not in task_setting_names()
