"""Optimizers, parameter groups, and learning rates as a pure function of the step."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from densekd.errors import UserError


def lr_factor(
    step: int, total: int, *, schedule: str = "poly", power: float = 0.9, warmup: int = 0
) -> float:
    """What the base learning rate is multiplied with at `step` of `total` (0-based).

    poly: (1 - t)^power, the field's schedule for segmentation; cosine: half a cosine; constant. t counts from the end
    of the warm-up, which rises linearly and never starts at zero. A pure function: a resumed run needs no state.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    t = min(1.0, (step - warmup) / max(1, total - warmup))
    if schedule == "poly":
        return (1.0 - t) ** power
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * t))
    if schedule == "constant":
        return 1.0
    raise ValueError(f"schedule is {schedule!r}; expected 'poly', 'cosine' or 'constant'")


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    *,
    lr: float,
    weight_decay: float,
    groups: Sequence[tuple[str, float, float | None]] = (),
    decay_norms: bool = True,
) -> list[dict[str, Any]]:
    """Split parameters by name.

    Args:
        groups: (prefix or pattern with ``*``, lr_scale, weight_decay or None); the first match wins.
        decay_norms: False takes weight decay off every parameter with at most one dimension (norms, biases).

    Raises:
        UserError: a prefix that matches no parameter.
    """
    named = [(n, p) for n, p in named if p.requires_grad]
    split: dict[tuple[float, float], list[nn.Parameter]] = {}
    used: set[str] = set()
    for name, parameter in named:
        scale, decay = 1.0, weight_decay
        for prefix, group_scale, group_decay in groups:
            pattern = prefix if "*" in prefix else prefix + "*"
            if fnmatch.fnmatchcase(name, pattern):
                used.add(prefix)
                scale = group_scale
                decay = weight_decay if group_decay is None else group_decay
                break
        if parameter.ndim <= 1 and not decay_norms:
            decay = 0.0
        split.setdefault((scale, decay), []).append(parameter)
    idle = [prefix for prefix, *_ in groups if prefix not in used]
    if idle:
        raise UserError(
            f"optim.groups: {idle[0]!r} matches no parameter; names start with "
            f"{', '.join(sorted({n.split('.')[0] for n, _ in named})[:12])}"
        )
    return [
        {"params": ps, "lr": lr * scale, "base_lr": lr * scale, "weight_decay": decay}
        for (scale, decay), ps in split.items()
    ]


def make_optimizer(
    groups: list[dict[str, Any]],
    name: str,
    *,
    momentum: float = 0.9,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.Optimizer:
    """SGD (momentum as in the paper's recipes), Adam or AdamW over `parameter_groups`.

    All are fused: one pass over the weights takes a fifth to a half of the time on CPUs, and one launch on GPUs.
    """
    if name == "sgd":
        return torch.optim.SGD(groups, momentum=momentum, fused=True)
    if name == "adam":
        return torch.optim.Adam(groups, betas=betas, fused=True)
    if name == "adamw":
        return torch.optim.AdamW(groups, betas=betas, fused=True)
    raise UserError(f"optimizer {name!r} is unknown; expected 'sgd', 'adam' or 'adamw'")


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group's rate to `factor` times its base; returns the first group's."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """L2 norm over all gradients, one scalar tensor (0 when there are none)."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    return torch.nn.utils.get_total_norm(gradients)
