"""The trackers of a recipe: known names, packages that are there, before the run begins."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

import pytest

from densekd.build.trackers import check_trackers, tracker_builders
from densekd.config.code import code_named
from densekd.config.load import make_config
from densekd.engine.trackers.tensorboard import TensorBoard
from densekd.errors import UserError


def config(**train):
    return make_config(
        {"model": {"name": "espnet_c"}, "data": {"dataset": "scenes"}, "train": train}, "here"
    )


class Own:
    def log(self, step, values): ...

    def finish(self, final): ...


class Half:
    def log(self, step, values): ...


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    module = ModuleType("my_trackers")
    vars(module).update(Own=Own, Half=Half)
    monkeypatch.setitem(sys.modules, "my_trackers", module)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(
        UserError, match=r"train\.trackers: 'wandbb' is unknown; did you mean 'wandb'"
    ):
        check_trackers(config(trackers=["wandbb"]).train)


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"mlflow needs the extra: pip install 'densekd\[mlflow\]'"):
        check_trackers(config(trackers=["mlflow"]).train)


def test_a_package_that_cannot_be_imported_says_why(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())

    def broken(name):
        raise ImportError("libxyz.so is missing")

    settings = config(trackers=["trackio"]).train
    tracker_builders(config().train)
    real = importlib.import_module
    monkeypatch.setattr(
        importlib, "import_module", lambda n: broken(n) if n == "trackio" else real(n)
    )
    with pytest.raises(UserError, match=r"trackio needs the extra \(ImportError: libxyz\.so"):
        tracker_builders(settings)


def test_the_old_setting_stands_for_tensorboard():
    pytest.importorskip("tensorboard")
    both = config(tensorboard=True, trackers=["tensorboard"]).train
    assert tracker_builders(both) == {"tensorboard": TensorBoard}
    assert tracker_builders(config(tensorboard=True).train) == {"tensorboard": TensorBoard}


def test_a_tracker_of_ones_own_by_its_path():
    settings = config(trackers=["my_trackers.Own"])
    assert tracker_builders(settings.train) == {"my_trackers.Own": Own}
    assert code_named(settings) == ["train.trackers my_trackers.Own"]
    with pytest.raises(UserError, match="lacks finish"):
        check_trackers(config(trackers=["my_trackers.Half"]).train)
