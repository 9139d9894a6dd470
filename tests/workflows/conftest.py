"""Finished runs that several files of tests read."""

import pytest

import densekd
from tests.workflows.test_functions import TASKS, tree_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of a finished run a task."""
    out = tmp_path_factory.mktemp("runs")
    for task in TASKS:
        densekd.train(tree_of(task), name=task, out=out, device="cpu")
    return out
