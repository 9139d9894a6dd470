"""A network's batch norms with statistics over all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from densekd.layers.abn import ABN
from densekd.layers.inplace import synchronised_batch_norm
from densekd.ops import collectives
from densekd.rewrite.recompute import enter, leave


class _Redirect(TorchFunctionMode):
    """Batch norms that are called within it take the statistics of all ranks."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is F.batch_norm:
            return synchronised_batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def synchronise(model: nn.Module) -> nn.Module:
    """Make every batch norm of a network take its statistics over all ranks while it trains.

    Modules, keys, values and hooks stay as they are. It works for `ABN`, torch's batch norms and their subclasses (also
    timm's `BatchNormAct2d`, whose activation `torch.nn.SyncBatchNorm.convert_sync_batchnorm` would drop), on any
    device.

    Returns:
        The network itself.
    """
    for module in model.modules():
        if isinstance(module, ABN):
            module.synchronised = True
        elif isinstance(module, nn.SyncBatchNorm) or _before in module._forward_pre_hooks.values():
            continue
        elif isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(_before)
            module.register_forward_hook(leave, always_call=True)
    return model


def _before(module: nn.Module, args: Any) -> None:
    many = module.training and collectives.world_size() > 1
    enter(module, _Redirect() if many else None)
