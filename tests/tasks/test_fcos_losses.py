"""FCOS's losses in fixed shapes: torchvision's values and gradients."""

import pytest
import torch
from torchvision.models.detection.fcos import FCOSHead

from densekd.tasks._fcos_losses import fcos_losses

PLACES, CLASSES = 40, 3
NAMES = ("classification", "bbox_regression", "bbox_ctrness")


def given(seed, objects):
    """Outputs that ask for gradients, anchors, and targets with matches."""
    g = torch.Generator().manual_seed(seed)
    shapes = {"cls_logits": CLASSES, "bbox_regression": 4, "bbox_ctrness": 1}
    outputs = {
        name: torch.randn(len(objects), PLACES, size, generator=g) for name, size in shapes.items()
    }
    outputs["bbox_regression"] = outputs["bbox_regression"].abs()
    corner = torch.rand(PLACES, 2, generator=g) * 64
    anchors = torch.cat([corner, corner + 8], dim=1)
    targets, matched = [], []
    for count in objects:
        low = torch.rand(count, 2, generator=g) * 30
        boxes = torch.cat([low, low + 10 + 30 * torch.rand(count, 2, generator=g)], dim=1)
        labels = torch.randint(0, CLASSES, (count,), generator=g)
        targets.append({"boxes": boxes, "labels": labels, "labelled": torch.tensor(True)})
        if not count:
            matched.append(torch.full((PLACES,), -1))
            continue
        # As the rule has it: the centre of the place lies in the box.
        centre = corner + 4
        inside = ((centre[:, None] > boxes[:, :2]) & (centre[:, None] < boxes[:, 2:])).all(-1)
        matched.append(torch.where(inside.any(1), inside.long().argmax(1), -1))
    return {k: v.requires_grad_() for k, v in outputs.items()}, anchors, targets, matched


@pytest.mark.parametrize("objects", [(2, 3), (0, 4), (0, 0)])
def test_values_and_gradients_are_torchvisions(objects):
    outputs, anchors, targets, matched = given(0, objects)
    head = FCOSHead(32, 1, CLASSES, 1)
    found = fcos_losses(head.box_coder, targets, outputs, anchors, matched)
    assert found["matched"] == sum((places >= 0).sum() for places in matched)
    expected = head.compute_loss(targets, outputs, [anchors] * len(objects), matched)
    for name in NAMES:
        assert torch.allclose(found[name], expected[name], rtol=1e-6), name
    gradients = [
        torch.autograd.grad(
            sum(losses[n] for n in NAMES), list(outputs.values()), retain_graph=True
        )
        for losses in (found, expected)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-7, rtol=1e-5)


def test_an_image_without_labels_counts_nothing_whatever_is_said_there():
    outputs, anchors, targets, matched = given(1, (2, 3))
    alone = {k: v[:1] for k, v in outputs.items()}
    coder = FCOSHead(32, 1, CLASSES, 1).box_coder
    expected = fcos_losses(coder, targets[:1], alone, anchors, matched[:1])
    spoiled = {k: v.detach().clone() for k, v in outputs.items()}
    for x in spoiled.values():
        x[1] = torch.nan
        x.requires_grad_()
    targets[1]["labelled"] = torch.tensor(False)
    found = fcos_losses(coder, targets, spoiled, anchors, matched)
    for name in NAMES:
        assert torch.allclose(found[name], expected[name], rtol=1e-6), name
    sum(found[name] for name in NAMES).backward()
    for x in spoiled.values():
        assert (x.grad[1] == 0).all()
        assert (x.grad[0] != 0).any()
