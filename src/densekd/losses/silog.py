"""Scale-invariant error of log depth."""

from __future__ import annotations

from torch import Tensor, nn

from densekd.losses._depth_checks import mean_or_zero, valid_values
from densekd.ops.collectives import is_joined

# Inside the root, where the derivative is infinite at 0; small against any error that matters.
_EPS = 1e-6


def silog(
    prediction: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    variance_focus: float = 0.85,
    scale: float = 10.0,
) -> Tensor:
    r"""Root of the mean squared log error, less a part of its squared mean.

    .. math:: s \sqrt{\tfrac{1}{|V|}\sum d_i^2 - \lambda \bigl(\tfrac{1}{|V|}\sum d_i\bigr)^2},
        \quad d_i = \log p_i - \log t_i

    Source: Eigen et al., *Depth Map Prediction from a Single Image* (NeurIPS 2014), eq. 4 with λ = 0.5 and without the
    root, in the form of Lee et al., *From Big to Small* (BTS, 2019): root, λ = 0.85, times 10. The sums run over the
    valid pixels of the whole batch, as in BTS (Eigen: of each image).

    Args:
        prediction: (N, 1, H, W) metres, above 0.
        target: (N, 1, H, W) metres; 0 and NaN do not count.
        mask: (N, H, W) bool, True where a pixel counts. No valid pixel gives 0 with a graph.
        variance_focus: λ in [0, 1]. 0: root mean squared log error; 1: a common factor on the depth costs nothing.
        scale: s.

    Returns:
        A scalar, at least 0 (float32 for half-precision input).

    Raises:
        ValueError: shapes that differ, a prediction at or below 0, λ outside [0, 1].

    Example:
        >>> import torch
        >>> target = torch.tensor([1.0, 2.0, 4.0, 0.0]).view(1, 1, 2, 2)  # the last pixel is unknown
        >>> round(silog(2 * target, target, variance_focus=0.0, scale=1.0).item(), 3)  # log 2
        0.693
        >>> round(silog(2 * target, target, variance_focus=1.0).item(), 3)
        0.0
    """
    _check_arguments(variance_focus, scale)
    p, t, valid = valid_values(prediction, target, mask, positive=True)
    d = p.log() - t.log()
    mean = mean_or_zero(d, valid)
    # As variance plus the rest of the squared mean, a sum of two squares: a difference of near numbers loses digits.
    # Over several ranks the centre has no gradient: over all of them its part in the variance is 0.
    centre = mean.detach() if is_joined() else mean
    value = mean_or_zero((d - centre).square(), valid) + (1 - variance_focus) * mean.square()
    return scale * ((value + _EPS**2).sqrt() - _EPS)


def _check_arguments(variance_focus: float, scale: float) -> None:
    if not 0 <= variance_focus <= 1:
        raise ValueError(f"variance_focus is {variance_focus}; expected a number in [0, 1]")
    if not scale > 0:
        raise ValueError(f"scale is {scale}; expected a number above 0")


class SiLog(nn.Module):
    """`silog` with its arguments stored."""

    def __init__(self, *, variance_focus: float = 0.85, scale: float = 10.0) -> None:
        super().__init__()
        _check_arguments(variance_focus, scale)
        self.variance_focus = variance_focus
        self.scale = scale

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return silog(
            prediction,
            target,
            mask=mask,
            variance_focus=self.variance_focus,
            scale=self.scale,
        )

    def extra_repr(self) -> str:
        return f"variance_focus={self.variance_focus}, scale={self.scale}"
