"""The warnings that machines give before they end a job."""

import os
import signal

import pytest

from densekd.engine.folder import RunFolder
from densekd.engine.launch import STOPPING, stop_on_signals
from densekd.engine.log import Log
from tests.reliability.runs import go, small_tree


@pytest.fixture
def heard():
    """SIGHUP, which is ignored where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("name", STOPPING)
def test_each_saves_and_ends(tmp_path, monkeypatch, name):
    number, original = getattr(signal, name), Log.steps

    def steps(self, step, values, lr):
        original(self, step, values, lr)
        if step == 2:
            os.kill(os.getpid(), number)

    tree = small_tree(steps=4, save_every=100)
    with monkeypatch.context() as patch:
        patch.setattr(Log, "steps", steps)
        assert go(tree, tmp_path / "r") == 128 + number
    folder = RunFolder(tmp_path / "r")
    assert folder.last.exists()
    assert not folder.student.exists()
    assert go(tree, tmp_path / "whole") == 0
    assert go(tree, tmp_path / "r", resume=True) == 0
    assert folder.student.read_bytes() == RunFolder(tmp_path / "whole").student.read_bytes()


def test_the_end_after_a_warning_still_lets_it_save():
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.signal == signal.SIGUSR1
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGUSR1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_that_was_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)
