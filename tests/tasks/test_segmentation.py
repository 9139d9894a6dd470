"""What segmentation owns: terms, masks, decoding, metric, colours."""

import numpy as np
import pytest
import torch

from densekd.losses import cross_entropy, ohem_cross_entropy
from densekd.tasks import Segmentation
from densekd.types import Batch, DenseOutput

CLASSES = ["road", "car", "sky"]
PALETTE = [(1, 2, 3), (4, 5, 6), (7, 8, 9)]


def make_task(**options):
    return Segmentation(CLASSES, PALETTE, **options)


def make_batch(targets, labelled=None, inside=None):
    targets = torch.as_tensor(targets)
    n, h, w = targets.shape
    return Batch(
        images=torch.zeros(n, 3, h, w),
        targets=targets,
        labelled=torch.ones(n, dtype=torch.bool) if labelled is None else torch.tensor(labelled),
        inside=torch.ones(n, h, w, dtype=torch.bool) if inside is None else torch.tensor(inside),
        names=[str(i) for i in range(n)],
    )


@pytest.fixture
def logits():
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def batch():
    targets = torch.randint(0, 3, (2, 4, 4), generator=torch.Generator().manual_seed(1))
    targets[0, 0] = 255
    return make_batch(targets)


def test_terms_have_names_and_weights(logits, batch):
    task = make_task(aux_weight=0.25)
    expected = cross_entropy(logits, batch.targets)
    alone = task.loss(DenseOutput(logits), batch)
    assert list(alone) == ["task/ce"]
    assert torch.equal(alone["task/ce"], expected)
    both = task.loss(DenseOutput(logits, aux=logits * 2), batch)
    assert list(both) == ["task/ce", "task/aux"]
    assert torch.allclose(both["task/aux"], 0.25 * cross_entropy(logits * 2, batch.targets))


def test_options_reach_the_loss(logits, batch):
    output = DenseOutput(logits)
    ohem = make_task(loss="ohem", threshold=0.3, min_kept=0.1).loss(output, batch)["task/ce"]
    assert torch.equal(ohem, ohem_cross_entropy(logits, batch.targets, threshold=0.3, min_kept=0.1))
    weights = [1.0, 2.0, 0.5]
    weighted = make_task(class_weights=weights, label_smoothing=0.1).loss(output, batch)["task/ce"]
    assert torch.equal(
        weighted,
        cross_entropy(
            logits, batch.targets, class_weights=torch.tensor(weights), label_smoothing=0.1
        ),
    )
    with pytest.raises(ValueError, match="2 values for 3 classes"):
        make_task(class_weights=[1.0, 2.0])


@pytest.mark.parametrize("loss", ["cross_entropy", "ohem"])
def test_only_ignored_pixels_are_a_finite_zero(logits, loss):
    logits.requires_grad_()
    ignored = make_batch(torch.full((2, 4, 4), 255))
    (value,) = make_task(loss=loss).loss(DenseOutput(logits), ignored).values()
    assert value == 0
    value.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize(
    "prediction", [torch.zeros(1, 4, 2, 2), torch.zeros(1, 3, 2), torch.zeros(3), [1], None]
)
def test_a_prediction_of_another_form_is_an_error(prediction):
    with pytest.raises(ValueError, match=r"the teacher's prediction has shape .* 3 classes"):
        make_task().check_output(DenseOutput(prediction), "teacher")
    make_task().check_output(DenseOutput(torch.zeros(2, 3, 5, 6)), "teacher")


def test_masks():
    """Two rows of two pixels an image: ignored, labelled / labelled, padding."""
    targets = [[[255, 0], [1, 255]], [[255, 255], [255, 255]]]
    inside = [[[True, True], [True, False]]] * 2
    batch = make_batch(targets, labelled=[True, False], inside=inside)
    task = make_task()
    assert task.mask(batch, "none") is None
    assert task.mask(batch, "padding").tolist() == inside
    # an image without any label is compared everywhere inside
    assert task.mask(batch, "label").tolist() == [[[False, True], [True, False]], inside[0]]


def test_decode(logits):
    classes = make_task().decode(logits)
    assert classes.dtype == torch.uint8
    assert torch.equal(classes.long(), logits.argmax(1))
    # probabilities decode as logits do
    assert torch.equal(make_task().decode(logits.softmax(1)), classes)
    many = Segmentation([str(i) for i in range(300)], [(0, 0, 0)] * 300, ignore_index=-1)
    scores = torch.zeros(1, 300, 1, 1)
    scores[0, 299] = 1
    assert many.decode(scores).item() == 299


def test_metric_by_hand():
    metric = make_task().metric()
    batch = make_batch([[[0, 0, 0, 255], [1, 1, 0, 0]]])
    metric.update(torch.tensor([[[0, 0, 1, 2], [1, 0, 0, 0]]]), batch)
    scores = metric.compute()
    assert scores["pixels"] == 7
    assert scores["pixel_accuracy"] == 5 / 7
    # sky occurs in neither (its one prediction is on an ignored pixel)
    assert scores["iou"] == {"road": 4 / 6, "car": 1 / 3, "sky": None}
    assert scores["miou"] == pytest.approx((4 / 6 + 1 / 3) / 2)
    assert set(make_task().metric_names) <= set(scores)


def test_colours():
    colours = make_task().colour(np.array([[0, 1], [2, 255]]))
    assert colours.dtype == np.uint8
    assert colours.tolist() == [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [0, 0, 0]]]


def test_colours_of_many_classes():
    count = 300
    palette = [(i % 256, i // 256, 7) for i in range(count)]
    task = Segmentation([str(i) for i in range(count)], palette, ignore_index=-1)
    labels = np.array([[0, 255, 256, 299, -1]], np.int16)
    assert task.colour(labels).tolist() == [
        [[0, 0, 7], [255, 0, 7], [0, 1, 7], [43, 1, 7], [0, 0, 0]]
    ]


def test_metric_counts_on_the_device_asked_for():
    assert make_task().metric(device="meta").confusion.counts.device.type == "meta"
