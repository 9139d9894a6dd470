"""What would make a GPU wait within a step: values that the host asks for, and copies from the host."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.distill.helpers import make_batch, make_distiller

# Operators whose result, or its size, the host must know before it goes on; `lift_fresh` is a tensor made of numbers.
ASKING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique2", "aten::_unique2",
    "aten::equal", "aten::lift_fresh", "aten::is_nonzero",
}  # fmt: skip


class Asked(TorchDispatchMode):
    """Counts the operators of `ASKING`, and indexing by a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        by_mask = name == "aten::index" and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if name in ASKING or by_mask:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("phase", ["student", "discriminator"])
def test_a_step_of_segmentation_asks_for_nothing(phase):
    distiller, batch = make_distiller(), make_batch(2)
    losses, maps = distiller.student_phase(batch)
    with Asked() as asked:
        if phase == "student":
            losses, _ = distiller.student_phase(batch)
        else:
            losses = distiller.discriminator_phase(maps)
        torch.stack([value.float() for value in losses.values()]).sum().backward()
    assert not asked.found


def test_what_is_counted():
    x = torch.arange(4.0)
    with Asked() as asked:
        bool((x > 1).any())
        x[x > 1]
        torch.tensor([1.0])
    assert set(asked.found) == {"aten::_local_scalar_dense", "aten::index", "aten::lift_fresh"}
