"""Terms whose weight is the size of their gradient, in units of the task's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from densekd.losses._checks import full_precision
from densekd.ops import collectives


class Balance(nn.Module):
    """Running means of two gradient norms, the task's and a term's; their ratio multiplies the term.

    With it, a term of weight w has a gradient w times as large as that of the task's own loss. The norms are of the
    gradients with respect to all parameters of the student, since terms on features do not pass through its last layer.

    Source: the ratio of gradient norms is the adaptive weight of Esser et al., *Taming Transformers for High-Resolution
    Image Synthesis* (CVPR 2021), equation 7, which takes it at the last layer and without a mean over steps. Chen et
    al., *GradNorm* (ICML 2018), bring norms together too, by learned weights, which these are not.

    Args:
        every: steps between two measurements. In between, the ratio stays.
        decay: of the running means; 0 takes the last measurement.

    Attributes:
        norms: (2,) the running means of the task's and the term's norm, 0 before the first measurement. They are saved
            for a resumed run, and equal on all ranks.
    """

    norms: Tensor

    def __init__(self, every: int = 10, decay: float = 0.9) -> None:
        super().__init__()
        if every < 1 or not 0 <= decay < 1:
            raise ValueError(
                f"every is {every} and decay {decay}; expected 1 or more, and a number in [0, 1)"
            )
        self.every = every
        self.decay = decay
        self.register_buffer("norms", torch.zeros(2))

    def is_due(self, step: int) -> bool:
        return step % self.every == 0

    def update(self, norms: Tensor) -> None:
        """Take (2,) measured norms, the task's and the term's, in; where one is 0 or not finite, nothing changes."""
        norms = norms.to(self.norms.dtype)
        if bool((norms.isfinite() & (norms > 0)).all()):
            first = bool((self.norms == 0).all())
            self.norms.copy_(norms if first else torch.lerp(norms, self.norms, self.decay))

    def factor(self) -> Tensor:
        """A scalar: the task's norm over the term's; 1 before the first measurement."""
        task, term = self.norms
        return torch.where(term > 0, task / term.clamp(min=torch.finfo(term.dtype).tiny), 1.0)


def gradient_norms(losses: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> Tensor:
    """The norm of each loss's gradient with respect to all `parameters` together, of the mean of all ranks' gradients.

    The graph stays, for the step's own backward pass, and no ``.grad`` changes.

    Args:
        losses: n scalars; one without a gradient (nothing in the batch counts) has norm 0.

    Returns:
        (n,), float32 for half precision.
    """
    return torch.stack([_norm(loss, parameters) for loss in losses])


def _norm(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    if collectives.world_size() > 1:
        return _norm_over_ranks(loss, parameters)
    if not loss.requires_grad:
        return torch.zeros((), device=loss.device)
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    squares = [full_precision(g).square().sum() for g in grads if g is not None]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros((), device=loss.device)


def _norm_over_ranks(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Every rank makes one call, of one size, whether its loss has a gradient or not."""
    grads: Sequence[Tensor | None] = [None] * len(parameters)
    if loss.requires_grad:
        grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    flat = [
        torch.zeros_like(p).flatten() if g is None else g.flatten()
        for p, g in zip(parameters, grads, strict=True)
    ]
    mean = collectives.all_reduce_sum(full_precision(torch.cat(flat))) / collectives.world_size()
    return mean.square().sum().sqrt()
