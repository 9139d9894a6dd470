"""What networks return: queries of masks as class probabilities, depth without a channel, and where a path leads."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from densekd.errors import UserError
from densekd.models import Taps
from densekd.models.outputs import find_prediction, query_classes
from densekd.types import SetPrediction


def test_queries_are_classes_as_mask2former_infers_them():
    hugging = pytest.importorskip("transformers")
    g = torch.Generator().manual_seed(0)
    classes, masks = (
        torch.randn(1, 6, 5, generator=g) * 2,
        torch.randn(1, 6, 384, 384, generator=g) * 2,
    )
    outputs = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)
    wanted = hugging.Mask2FormerImageProcessor().post_process_semantic_segmentation(outputs)[0]
    found, _ = find_prediction(outputs)
    assert found.shape == (1, 4, 384, 384)
    assert torch.equal(found.argmax(1)[0], wanted)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(1, 384, 384))


def test_queries_by_hand():
    """Two queries, one class each: scores 0.5 · 0.8 and 0.25 · 0.2 are 8/9 and 1/9."""
    classes = torch.tensor([[[0.5, 1e-9, 0.5], [1e-9, 0.25, 0.75]]]).log()
    masks = torch.tensor([0.8, 0.2]).logit().view(1, 2, 1, 1)
    torch.testing.assert_close(
        query_classes(classes, masks).exp().flatten(), torch.tensor([8, 1]) / 9
    )
    assert query_classes(classes, masks - 1000).isfinite().all()


def test_depth_and_sets():
    depth, _ = find_prediction(SimpleNamespace(predicted_depth=torch.rand(2, 4, 5)))
    assert depth.shape == (2, 1, 4, 5)
    boxes = {"logits": torch.rand(2, 7, 3), "pred_boxes": torch.rand(2, 7, 4)}
    assert isinstance(find_prediction(boxes)[0], SetPrediction)


class Two(nn.Module):
    """Returns one of its two maps, and something else under the name of a module."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 4, 1)
        self.other = nn.Conv2d(3, 5, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"main": self.head(x), "other": self.other(x)[:, :2]}


def test_a_prediction_is_an_entry_or_a_module():
    network, images = Two(), torch.rand(2, 3, 4, 6)
    for prediction, wanted in (
        ("main", network.head(images)),
        ("other", network.other(images)[:, :2]),
        ("other:", network.other(images)),
        ("head", network.head(images)),
    ):
        torch.testing.assert_close(Taps(network, prediction=prediction)(images).prediction, wanted)
    with pytest.raises(UserError, match="no 'heads' in a dict with keys main, other"):
        Taps(network, prediction="heads")(images)
    with pytest.raises(UserError, match="has no module 'heads'; near it are head"):
        Taps(network, prediction="heads:")
    network.prediction_path = "main"
    assert Taps(network)(images).prediction.shape[1] == 4


def test_a_prediction_of_a_module_goes_with_taps_and_copies():
    network, images = Two(), torch.rand(2, 3, 4, 6)
    tapped = Taps(network, {"f": "other"}, prediction="head")
    copy = deepcopy(tapped)
    with torch.no_grad():
        copy.model.head.weight.zero_()
        copy.model.head.bias.zero_()
    assert copy(images).prediction.abs().max() == 0
    assert tapped(images).prediction.abs().max() > 0
    assert tapped.answer.value is None
    assert tapped(images, prediction=False).prediction is None
