"""What a number format costs here, and how much memory is left."""

import torch

from densekd.profiling.machine import free_memory, reduced_precision_ratio


def test_the_ratio_is_that_of_the_two_times(monkeypatch):
    """The first call of each form does not count, and of the others the least; slow ones are not repeated."""
    seconds = iter([9.0, 9.0, 2.0, 8.0, 1.0, 6.0])

    def timed(call, device):
        call()
        return next(seconds)

    monkeypatch.setattr("densekd.profiling.machine.timed", timed)
    assert reduced_precision_ratio(torch.bfloat16, torch.device("cpu"), side=4) == 6.0


def test_no_random_number_is_drawn():
    before = torch.random.get_rng_state()
    assert reduced_precision_ratio(torch.bfloat16, torch.device("cpu"), repeats=1, side=4) > 0
    assert torch.equal(before, torch.random.get_rng_state())


def test_some_memory_is_free():
    free = free_memory()
    assert free is None or free > 2**20
