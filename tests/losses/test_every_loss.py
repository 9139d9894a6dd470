"""What holds for every loss that a recipe can name: the list is the one of `densekd list losses`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from densekd.config.names import LOSSES
from densekd.losses.wants import wants_of

# What a loss must be told, from the number of channels and of classes, which are equal here.
NEEDS: dict[str, Callable[[int], Any]] = {
    "channels": lambda c: c,
    "num_classes": lambda c: c,
    "bins": lambda c: c,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "pair_wise": {"granularity": 1},
    "localization": {"edges": 1},
    "cross_image_memory": {"pixel_memory": 8, "region_memory": 4},
}
# Losses that say, in a ValueError, that a batch of one image, or a single channel, has nothing to compare.
NO_SINGLE_IMAGE = {"similarity_preserving"}
NO_SINGLE_CHANNEL: set[str] = {"class_affinity", "decoupled", "dist", "localization", "pixel_wise"}
# Maps of one channel, as a depth network gives them.
ONE_CHANNEL = {"ssi"}


def make(name: str, channels: int) -> nn.Module:
    module, _, kind = LOSSES[name][0].rpartition(".")
    builder = getattr(importlib.import_module(module), kind)
    needed = {
        key: NEEDS[key](channels)
        for key, parameter in inspect.signature(builder).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    torch.manual_seed(0)
    return builder(**{**needed, **OPTIONS.get(name, {})})


def ask(name: str, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """As a term calls it."""
    n, c, h, w = student.shape
    loss = make(name, c)
    half = student.dtype in (torch.float16, torch.bfloat16)
    if not half:
        loss = loss.to(student.dtype)
    wants = wants_of(loss)
    more: dict[str, Any] = {}
    if wants.targets:
        more["targets"] = torch.randint(0, c, (n, h, w), generator=torch.Generator().manual_seed(0))
    if wants.step:
        more["step"] = 3
    if wants.confidence:
        more["weight"] = torch.full((n, 1, h, w), 0.5)
    if wants.size is not None and mask is not None:
        mask = mask[:, :1, :1].expand(n, *wants.size)
    with torch.autocast("cpu", student.dtype if half else None, enabled=half):  # as in a step
        return loss(student, teacher, mask=mask, **more)


MASKS = ("none", "some", "one", "nothing", "one image")


def mask_of(kind: str, n: int, h: int, w: int) -> Tensor | None:
    if kind == "none":
        return None
    mask = torch.zeros(n, h, w, dtype=torch.bool)
    if kind == "some":
        mask |= torch.rand(n, h, w, generator=torch.Generator().manual_seed(1)) > 0.5
    elif kind == "one":
        mask[0, 0, 0] = True
    elif kind == "one image":
        mask[0] = True
    return mask


FILLS: dict[str, Callable[[Tensor], Tensor]] = {
    "random": lambda x: x,
    "zero": torch.zeros_like,
    "constant": torch.ones_like,
    "large": lambda x: 1e4 * x,
    "tiny": lambda x: 1e-4 * x,  # smaller ones have true gradients beyond the range of float16
}


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 3),
    c=st.sampled_from([1, 2, 5]),
    h=st.integers(1, 6),
    w=st.integers(1, 6),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    kind=st.sampled_from(MASKS),
    student_fill=st.sampled_from(list(FILLS)),
    teacher_fill=st.sampled_from(list(FILLS)),
)
def test_values_and_gradients_are_finite(name, n, c, h, w, dtype, kind, student_fill, teacher_fill):
    c = 1 if name in ONE_CHANNEL else c
    draw = torch.Generator().manual_seed(n + 10 * h + 100 * w)
    student, teacher = (
        FILLS[fill](torch.randn(n, c, h, w, generator=draw)).to(dtype)
        for fill in (student_fill, teacher_fill)
    )
    student.requires_grad_()
    refuses = (n == 1 and name in NO_SINGLE_IMAGE) or (c == 1 and name in NO_SINGLE_CHANNEL)
    try:
        value = ask(name, student, teacher, mask_of(kind, n, h, w))
    except ValueError:
        assert refuses
        return
    value.backward()
    assert value.shape == ()
    assert value.dtype in (torch.float32, torch.float64)
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    if kind == "nothing":
        assert value == 0
        assert (student.grad == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_each_says_something(name):
    """So that the property above is not held by a loss that is 0 or refuses everything."""
    c = 1 if name in ONE_CHANNEL else 4
    draw = torch.Generator().manual_seed(0)
    student = torch.randn(2, c, 6, 7, generator=draw).requires_grad_()
    value = ask(name, student, torch.randn(2, c, 6, 7, generator=draw), None)
    value.backward()
    assert value > 0
    assert student.grad.abs().sum() > 0
