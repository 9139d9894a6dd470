"""Activated batch norm, with the semantics of In-Place ABN as the paper's authors trained with it."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = ("leaky_relu", "elu", "identity")


class ABN(nn.BatchNorm2d):
    """Batch norm with scale ``|weight| + eps``, then an activation.

    Source: Rota Bulò et al., *In-Place Activated BatchNorm for Memory-Optimized Training of DNNs* (the first release,
    which the authors used). A plain batch norm that loads such a checkpoint gives other numbers wherever a weight is
    negative. Keys are ``weight, bias, running_mean, running_var``: the authors' files hold no ``num_batches_tracked``,
    and one that a file carries is dropped.

    Differs from the original: nothing is computed in place, and where a channel has a single value (global pooling of
    a batch of one in training) the running statistics are used, since one value has no variance.

    Args:
        num_features: channels C.
        activation: ``"leaky_relu"``, ``"elu"`` or ``"identity"``.
        slope: of the leaky ReLU.

    Note:
        `torch.nn.SyncBatchNorm.convert_sync_batchnorm` would turn it into a plain norm: leave `ABN` out of it.

    Example:
        >>> ABN(8)(torch.randn(2, 8, 4, 4)).shape
        torch.Size([2, 8, 4, 4])
    """

    def __init__(
        self,
        num_features: int,
        *,
        activation: str = "leaky_relu",
        slope: float = 0.01,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; expected one of {ACTIVATIONS}")
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.register_buffer("num_batches_tracked", None)
        self.activation = activation
        self.slope = slope

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        single_value = input.shape[0] * input.shape[2] * input.shape[3] == 1
        x = F.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight.abs() + self.eps,
            self.bias,
            training=self.training and not single_value,
            momentum=self.momentum or 0.0,
            eps=self.eps,
        )
        if self.activation == "leaky_relu":
            return F.leaky_relu(x, self.slope)
        if self.activation == "elu":
            return F.elu(x)
        return x

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}"

    def _load_from_state_dict(  # pyrefly: ignore[bad-override]
        self, state_dict: Any, prefix: str, *args: Any
    ) -> None:
        # _NormBase would put a num_batches_tracked into old files, which strict loading then calls unexpected.
        state_dict.pop(prefix + "num_batches_tracked", None)
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args)
