"""Conditions that are read later, and at once where nobody collects them."""

import threading

import pytest
import torch

from densekd.ops.conditions import deferred, require


def test_at_once():
    require(torch.tensor(True), lambda: "never")
    with pytest.raises(ValueError, match="too small"):
        require(torch.tensor(False), lambda: "too small")


def test_deferred_they_are_collected_and_said_by_whoever_reads():
    with deferred() as conditions:
        require(torch.tensor(False), lambda: "first")
        with deferred() as inner:
            require(torch.tensor(False), lambda: "inner")
        require(torch.tensor(True), lambda: "second")
    assert [c.message() for c in conditions if not c.holds] == ["first"]
    assert [c.message() for c in inner] == ["inner"]
    with pytest.raises(ValueError, match="at once again"):
        require(torch.tensor(False), lambda: "at once again")


def test_another_thread_collects_for_itself():
    raised = []

    def other():
        try:
            require(torch.tensor(False), lambda: "other")
        except ValueError as error:
            raised.append(str(error))

    with deferred() as conditions:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert (raised, conditions) == (["other"], [])
