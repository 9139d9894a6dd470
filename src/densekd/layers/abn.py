"""Activated batch norm, with the semantics of In-Place ABN as the paper's authors trained with it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekd.layers.inplace import ACTIVATIONS, inplace_abn, synchronised_batch_norm
from densekd.ops import collectives


class ABN(nn.BatchNorm2d):
    """Batch norm with scale ``|weight| + eps``, then an activation.

    Source: Rota Bulò et al., *In-Place Activated BatchNorm for Memory-Optimized Training of DNNs* (the first
    release, which the authors used). A plain batch norm that loads such a checkpoint gives other numbers wherever a
    weight is negative. Keys are ``weight, bias, running_mean, running_var``: the authors' files hold no
    ``num_batches_tracked``, and one that a file carries is dropped.

    In training, norm and activation are one step that keeps only its output for backward (`inplace_abn`). With the
    identity it keeps its input, as torch's norm does, because the operations after it in the networks here (a ReLU, a
    sum) do not keep its output. With ELU in half precision, which cannot be inverted, it keeps its input too.

    Differs from the original: the input is not overwritten, only not kept, and where a channel has a single value
    (global pooling of a batch of one in training) the running statistics are used, since one value has no variance.

    Args:
        num_features: the number of channels C.
        activation: ``"leaky_relu"``, ``"elu"`` or ``"identity"``.
        slope: the leaky ReLU's slope below 0.

    Attributes:
        synchronised: whether training takes statistics over all ranks; then every rank must run this norm.

    Note:
        `torch.nn.SyncBatchNorm.convert_sync_batchnorm` would replace it by a plain norm;
        `densekd.rewrite.synchronise` keeps it.

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
        self.synchronised = False

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        synchronised = self.training and self.synchronised and collectives.world_size() > 1
        single_value = input.shape[0] * input.shape[2] * input.shape[3] == 1
        training = self.training and (synchronised or not single_value)
        scale = self.weight.abs() + self.eps
        momentum = self.momentum or 0.0
        # A compiler decides by itself what to keep, and knows torch's own norm best.
        if training and self._invertible(input) and not torch.compiler.is_compiling():
            return inplace_abn(
                input,
                scale,
                self.bias,
                self.running_mean,
                self.running_var,
                activation=self.activation,
                slope=self.slope,
                momentum=momentum,
                eps=self.eps,
                synchronised=synchronised,
            )
        norm = synchronised_batch_norm if synchronised else F.batch_norm
        x = norm(
            input,
            self.running_mean,
            self.running_var,
            scale,
            self.bias,
            training=training,
            momentum=momentum,
            eps=self.eps,
        )
        if self.activation == "leaky_relu":
            return F.leaky_relu(x, self.slope)
        if self.activation == "elu":
            return F.elu(x)
        return x

    def _invertible(self, input: Tensor) -> bool:
        if self.activation == "elu":
            return input.dtype in (torch.float32, torch.float64)
        return self.activation == "leaky_relu" and self.slope > 0

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}"

    def _load_from_state_dict(  # pyrefly: ignore[bad-override]
        self, state_dict: Any, prefix: str, *args: Any
    ) -> None:
        # _NormBase would put a num_batches_tracked into old files, which strict loading then calls unexpected.
        state_dict.pop(prefix + "num_batches_tracked", None)
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args)
