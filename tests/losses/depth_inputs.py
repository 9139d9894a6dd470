"""What the tests of depth losses share: what every one of them must do with invalid pixels."""

import torch


def maps(n=2, height=6, width=7, seed=0):
    """Prediction and target (n, 1, height, width), 1 to 5 m."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (1 + 4 * torch.rand(n, 1, height, width, generator=generator) for _ in range(2))
    return a, b


def check_invalid_pixels(loss, prediction, target):
    """`loss(prediction, target, mask)` sees no pixel that is 0, NaN or masked, whatever is predicted there."""
    target = target.clone()
    target[0, 0, 0, 0] = 0.0
    target[0, 0, 0, 1] = torch.nan
    mask = torch.ones_like(target[:, 0], dtype=torch.bool)
    mask[1, 2] = False
    clean = loss(prediction, target, mask)
    dirty = prediction.clone()
    dirty[0, :, 0, 0] = torch.nan
    dirty[0, :, 0, 1] = torch.inf
    dirty[1, :, 2] = torch.nan
    dirty.requires_grad_()
    value = loss(dirty, target, mask)
    assert torch.equal(value, clean)
    value.backward()
    assert dirty.grad.isfinite().all()
    assert (dirty.grad[1, :, 2] == 0).all()
    assert (dirty.grad[0, :, 0, :2] == 0).all()
    assert (dirty.grad != 0).any()


def check_nothing_valid(loss, prediction, target):
    """Without a valid pixel the loss is 0 with a graph."""
    prediction = torch.full_like(prediction, torch.nan).requires_grad_()
    value = loss(prediction, torch.zeros_like(target), None)
    assert value == 0
    value.backward()
    assert torch.equal(prediction.grad, torch.zeros_like(prediction))


def check_half_precision(loss, prediction, target):
    whole = loss(prediction.bfloat16().float(), target, None)
    half = loss(prediction.bfloat16(), target, None)
    assert half.dtype == torch.float32
    assert torch.allclose(half, whole)
