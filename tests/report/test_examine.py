"""Which images are worth a look, and what is confused with what."""

import numpy as np
import pytest
import torch

from densekd.report.examine import choose, pairs_confused, shares
from densekd.report.layers import Layer, boxes_svg, encode, errors, fit, layers_of
from densekd.tasks import Depth, Detection, Segmentation
from densekd.types import Detections


def test_images_are_chosen_once_for_their_first_reason():
    scores = {0: 0.9, 1: 0.1, 2: 0.5, 3: 0.6, 4: None, 5: 0.4}
    before = {0: 0.9, 1: 0.1, 2: 0.1, 3: 0.9, 4: 0.3, 5: 0.4}
    found = choose(scores, before, smaller=False, each=1)
    assert found == [(2, "largest gain"), (3, "largest loss"), (1, "worst"), (0, "best")]
    # Of an error the smallest is the best.
    assert choose({0: 0.1, 1: 0.5}, None, smaller=True, each=1) == [(1, "worst"), (0, "best")]
    assert choose({}, {}, smaller=False) == []


def test_confusion_by_hand():
    counts = [[6, 2, 2], [0, 0, 0], [1, 0, 3]]
    assert shares(counts) == [[0.6, 0.2, 0.2], [None, None, None], [0.25, 0.0, 0.75]]
    assert pairs_confused(counts, 2) == [(2, 0, 0.25), (0, 1, 0.2)]


@pytest.fixture
def segmentation():
    return Segmentation(["road", "sky"], [(128, 64, 128), (70, 130, 180)])


def test_layers_of_segmentation_are_exact_and_show_what_is_wrong(segmentation):
    image = np.full((4, 6, 3), 120, np.uint8)
    truth = np.zeros((4, 6), np.uint8)
    truth[0], truth[1] = 255, 1
    answer = torch.zeros(4, 6, dtype=torch.uint8)
    found = layers_of(segmentation, image, truth, [("student", answer)])
    assert [layer.name for layer in found] == ["image", "truth", "student", "errors of student"]
    wrong = found[-1].pixels
    assert (wrong[0] == 0).all()  # unknown
    assert (wrong[1] == (214, 40, 40)).all()
    assert (wrong[2:] == 160).all()


def test_depth_errors_end_at_half_of_the_truth():
    class Target:
        depth = np.array([[2.0, 4.0, 0.0]], np.float32)

    task = Depth(min_depth=1, max_depth=10)
    answer = torch.tensor([[[2.0, 6.0, 3.0]]])
    right, worst, unknown = errors(task, np.zeros((1, 3, 3), np.uint8), Target, answer)[0]
    assert tuple(unknown) == (0, 0, 0)
    assert worst.sum() > right.sum()  # inferno ends in pale yellow
    assert errors(Detection(["a"], [(1, 2, 3)]), right, Target, answer) is None


def test_boxes_are_drawn_from_a_score_on_and_names_are_escaped():
    task = Detection(["<car>", "bus"], [(255, 0, 0), (0, 0, 90)], shown_above=0.5)
    boxes = torch.tensor([[0.0, 0, 10, 10], [5.0, 5, 20, 20]])
    svg = boxes_svg(
        task, (40, 60), Detections(boxes, torch.tensor([0.9, 0.2]), torch.tensor([0, 1]))
    )
    assert svg.count("<text") == 1
    assert "&lt;car&gt; 0.90" in svg
    assert "#ff0000" in svg


def test_pictures_are_made_smaller_until_they_fit():
    draw = np.random.default_rng(0)
    photo = Layer("image", draw.integers(0, 256, (400, 700, 3), dtype=np.uint8), photo=True)
    large = len(encode(photo, 640))
    found = fit([[photo, Layer("boxes")]], room=large // 2)
    assert found[0][1] is None
    assert found[0][0].startswith("data:image/webp;base64,")
    assert len(found[0][0]) * 3 / 4 < large // 2 + 40
