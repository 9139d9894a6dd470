"""Batch norm and activation as one step that keeps only its output, and batch statistics over all ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from densekd.ops import collectives
from densekd.ops.recording import made_from

ACTIVATIONS = ("leaky_relu", "elu", "identity")


def inplace_abn(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    activation: str = "leaky_relu",
    slope: float = 0.01,
    momentum: float = 0.1,
    eps: float = 1e-5,
    synchronised: bool = False,
) -> Tensor:
    """Batch norm with the batch's own statistics, then an activation; backward needs the output alone.

    Backward inverts the activation and the affine map to get the normalised input again. So for a convolution, this
    step and the next convolution one map is kept instead of two or three. The result is a new tensor and the
    convolution's own output stays unchanged: a tap or a sum may read it, and it is freed where nothing reads it.

    Source: Rota Bulò et al., *In-Place Activated BatchNorm for Memory-Optimized Training of DNNs* (CVPR 2018).

    Args:
        x: (N, C, ...).
        scale: (C,), positive. The normalised input comes back with an error of about ε · |output| / scale, ε being
            that of the output's dtype: a scale of 1e-5 in float32 leaves 1 %, where little gradient flows.
        bias: (C,).
        running_mean, running_var: (C,), updated in place; with None they are not tracked.
        activation: ``"leaky_relu"``, ``"elu"`` or ``"identity"``. ELU should be left to float32: in half precision
            it is -1 from -6 down, whatever went in.
        slope: the leaky ReLU's slope below 0; it must be above 0.
        momentum, eps: have the meaning that they have in `torch.nn.functional.batch_norm`.
        synchronised: take statistics over all ranks, which must then all call this function; it makes one reduction
            in forward and one in backward.

    Returns:
        (N, C, ...). Changing it in place makes backward an error. There is no second derivative.

    Raises:
        ValueError: an unknown activation, or a slope that cannot be inverted.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; expected one of {ACTIVATIONS}")
    if activation == "leaky_relu" and slope <= 0:
        raise ValueError(f"slope is {slope}; expected above 0, so that it can be inverted")
    result: Any = _Norm.apply(
        x, scale, bias, running_mean, running_var, momentum, eps, activation, slope, synchronised
    )
    return result[0]


def synchronised_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm` in training, with the statistics of all ranks, which must all call it.

    Ranks may have batches of different size, or none. Gradients are those of one process with the whole batch;
    those of weight and bias are a rank's own share, as `DistributedDataParallel` expects. Any device and backend.
    """
    assert training
    result: Any = _Norm.apply(
        x, weight, bias, running_mean, running_var, momentum, eps, None, 0.0, True
    )
    y, mean, var = result
    made_from((x, mean, var, weight, bias), _Again(eps), y)
    return y


class _Again:
    """Computes the norm again, with the statistics of its forward."""

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def __call__(self, x: Tensor, mean: Tensor, var: Tensor, weight: Any, bias: Any) -> Tensor:
        return _apply_statistics(x, mean, var, weight, bias, self.eps)


class _Norm(torch.autograd.Function):
    """Gives the result, and the mean and variance it was normalised with.

    Backward takes the normalised input from one of two sources, as ``(source - centre) * rate``: from the output,
    activation undone (centre: bias, rate: 1 / scale), or, where `activation` is None, from the input (mean, 1 /
    deviation).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
        activation: str | None,
        slope: float,
        synchronised: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        mean = var = count = None
        if synchronised:
            mean, var, count = _statistics_of_all_ranks(x)
            if running_mean is not None and running_var is not None:
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                unbiased = var * (count / (count - 1).clamp(min=1)).to(var.dtype)
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
            y = _apply_statistics(x, mean, var, scale, bias, eps)
            centre, rate = mean, (var + eps).rsqrt()
        else:
            y, centre, rate = torch.native_batch_norm(
                x, scale, bias, running_mean, running_var, True, momentum, eps
            )
        if activation == "leaky_relu":
            F.leaky_relu_(y, slope)
        elif activation == "elu":
            F.elu_(y)
        ctx.activation, ctx.slope, ctx.eps, ctx.synchronised = activation, slope, eps, synchronised
        source = x if activation is None else y
        ctx.save_for_backward(source, scale, bias, centre, rate, count)
        ctx.set_materialize_grads(False)
        if mean is not None and var is not None:
            ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    @once_differentiable
    def backward(  # pyrefly: ignore[bad-override]
        ctx: Any, grad: Tensor | None, *_: Any
    ) -> tuple[Tensor | None, ...]:
        if grad is None:
            if not ctx.synchronised:
                return (None,) * 10
            grad = torch.zeros_like(ctx.saved_tensors[0])  # the other ranks wait for this one
        source, scale, bias, centre, rate, count = ctx.saved_tensors
        factor = torch.ones_like(rate) if scale is None else scale.to(rate.dtype)
        if ctx.activation is not None:
            grad, source = _undo(ctx.activation, ctx.slope, grad, source)
            centre, rate, factor = bias.to(rate.dtype), 1 / factor, rate * factor.square()
        if source.numel():
            of_input, of_scale, of_bias = torch.ops.aten.native_batch_norm_backward(
                grad, source, factor, None, None, centre, rate, True, ctx.eps,
                [ctx.needs_input_grad[0] and not ctx.synchronised, True, True],
            )  # fmt: skip
        else:  # the kernel divides by the number of values
            of_input, of_scale, of_bias = grad, torch.zeros_like(rate), torch.zeros_like(rate)
        if ctx.synchronised:
            sums = collectives.all_reduce_sum(torch.stack([of_scale, of_bias]))
            with_x, alone = (_along_channels(v / count, source) for v in sums)
            normalised = (source - _along_channels(centre, source)) * _along_channels(rate, source)
            of_input = (grad - alone - normalised * with_x) * _along_channels(rate * factor, source)
            of_input = of_input.to(source.dtype)
        return (
            of_input,
            None if scale is None else of_scale.to(scale.dtype),
            None if bias is None else of_bias.to(bias.dtype),
            *(None,) * 7,
        )


def _undo(activation: str, slope: float, grad: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and value before the activation, from those after it."""
    if activation == "leaky_relu":
        grad = torch.ops.aten.leaky_relu_backward(grad, output, slope, True)
        return grad, F.leaky_relu(output, 1 / slope)
    if activation == "elu":
        grad = torch.ops.aten.elu_backward(grad, 1.0, 1.0, 1.0, True, output)
        lowest = -1 + torch.finfo(output.dtype).eps
        return grad, torch.where(output > 0, output, output.clamp(min=lowest).log1p())
    return grad, output


def _along_channels(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *(1,) * (like.ndim - 2))


def _statistics_of_all_ranks(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance (C,) over the batches of all ranks, and the number of values a channel."""
    count = x.numel() // x.shape[1]
    # Sums of squares lose what float32 has where the mean is large; in float64, of C values, they do not.
    sums = x.new_zeros(2 * x.shape[1] + 1, dtype=torch.float64)
    wide = torch.promote_types(x.dtype, torch.float32)
    if count:
        dims = [d for d in range(x.ndim) if d != 1]
        var, mean = torch.var_mean(x.to(wide), dims, correction=0)
        var, mean = var.double(), mean.double()
        sums = torch.cat([count * mean, count * (var + mean.square()), sums.new_full((1,), count)])
    collectives.all_reduce_sum(sums)
    total = sums[-1]
    mean, square = (sums[:-1] / total).chunk(2)
    return mean.to(wide), (square - mean.square()).clamp(min=0).to(wide), total


def _apply_statistics(
    x: Tensor, mean: Tensor, var: Tensor, scale: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    scale, bias = (v if v is None else v.to(mean.dtype) for v in (scale, bias))
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, eps)
