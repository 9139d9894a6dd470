"""How many operators a training step launches, and which of them would make a GPU wait.

    python -m benchmarks.operators [--case NAME ...] [--dry] [--output FILE]

The step runs on the CPU, in the form that it has on a GPU; what is counted are calls, so that no time is measured. An
operator waits where the host has to know its result, or the size of its result, before it goes on.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import measure
from benchmarks.cases import CASES, STANDARD, Case, make_case, make_step

COUNTED = [*STANDARD, "depth_lite0_from_r18", "bins_lite0_from_r18"]
# Operators whose result, or its size, the host must know before it goes on; `lift_fresh` is a tensor made of numbers.
ASKING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique2", "aten::_unique2",
    "aten::equal", "aten::lift_fresh", "aten::is_nonzero", "aten::repeat_interleave",
}  # fmt: skip


class Asked(TorchDispatchMode):
    """Counts operators.

    Attributes:
        found: those that ask: of `ASKING`, and indexing by a mask (a single number written through one does not ask).
        total: all of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        self.total += 1
        by_mask = name in ("aten::index", "aten::index_put_", "aten::index_put") and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if by_mask and name != "aten::index":
            by_mask = args[2].numel() != 1  # one number goes through `masked_fill`
        # The overload without a size has to look at the repeats.
        sized = name == "aten::repeat_interleave" and (kwargs or {}).get("output_size") is not None
        if (name in ASKING and not sized) or by_mask:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Losses that save work on the CPU, where a count is at hand, take the form that they have elsewhere."""
    module = importlib.import_module("densekd.losses.depth_cross_entropy")
    with patch.object(module, "count_is_at_hand", lambda _: False):
        yield


def count(case: Case, *, dry: bool = False) -> dict[str, Any]:
    """The operators of the second step of a case, with all three terms of distillation and without the holistic one."""
    device = torch.device("cpu")
    found: dict[str, Any] = {}
    for name in ("pi_pa", "pi_pa_ho"):
        size = None if dry else (2, 128, 128)  # the number of calls does not depend on it
        config, distiller, batch = make_case(case, device, size=size, dry=dry)
        if name == "pi_pa":
            distiller.adversary = None
        step = make_step(config, distiller, device)
        with as_on_a_gpu():
            step([batch], 0)
            with Asked() as asked:
                step([batch], 1)
        found[name] = {"operators": asked.total, "asking": dict(asked.found)}
    return found


def as_table(cases: dict[str, dict[str, Any]]) -> str:
    rows = [
        [name, str(part["operators"]), str(sum(part["asking"].values())), arm.replace("_", "+")]
        for name, case in cases.items()
        for arm, part in case.items()
    ]
    return measure.table(["pair", "operators", "asking", "terms"], rows)


def main(arguments: list[str] | None = None) -> int:
    parser = measure.make_parser("operators", __doc__)
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=COUNTED)
    args = parser.parse_args(arguments)
    device = torch.device("cpu")
    path, rounds = measure.begin(args, "operators")
    cases = {name: count(CASES[name], dry=args.dry) for name in args.case}
    return measure.finish("operators", path, device, rounds, as_table(cases), cases=cases)


if __name__ == "__main__":
    raise SystemExit(main())
