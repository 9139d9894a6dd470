from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd.data import Augment, Sample
from densekd.targets import BoxTarget, to_boxes


def boxes_of(*boxes, ignored=None, areas=None) -> BoxTarget:
    n = len(boxes)
    plain = [(b[2] - b[0]) * (b[3] - b[1]) for b in boxes]
    return BoxTarget(boxes, range(n), ignored or [False] * n, areas or plain, image_id=7)


def test_crop_clips_shifts_and_shares_the_area():
    target = boxes_of((10, 10, 30, 20), (0, 0, 8, 8), areas=[100, 64])
    cut = target.crop(top=5, left=20, height=30, width=50)
    np.testing.assert_array_equal(cut.boxes, [[0, 5, 10, 15]])
    np.testing.assert_array_equal(cut.areas, [50])  # half of the box, so half of its mask
    np.testing.assert_array_equal(cut.labels, [0])
    assert cut.image_id == 7
    assert len(target) == 2  # the first stays as it was


@pytest.mark.parametrize(
    ("left", "kept"), [(4, True), (15, True), (15.5, False), (19.5, False), (40, False)]
)
def test_an_object_needs_a_quarter_of_itself_and_a_pixel(left, kept):
    """A box of 20 x 10 at the origin: a window from column 15 on shows exactly a quarter of it."""
    for ignored in (False, True):
        target = boxes_of((0, 0, 20, 10), ignored=[ignored])
        assert len(target.crop(0, left, 50, 50)) == kept
    slim = boxes_of((0, 0, 2, 10))
    assert len(slim.crop(0, 1, 50, 50)) == 1
    assert len(slim.crop(0, 1.25, 50, 50)) == 0  # more than a quarter, but not a pixel wide


def test_no_box_without_width_or_height_is_left_by_a_resize():
    """The second one's width of 0.002 pixels is halved; the third one's is lost in float32 beforehand."""
    target = boxes_of((0, 0, 8, 8), (2000, 1, 2000.002, 9), (5000, 1, 5000.0001, 9), (3, 3, 4, 4))
    target.ignored[3] = True
    small = target.resize((6000, 6000), (3000, 3000))
    np.testing.assert_array_equal(small.boxes, [[0, 0, 4, 4], [1.5, 1.5, 2, 2]])
    assert small.labels.tolist() == [0, 3]
    assert small.ignored.tolist() == [False, True]
    assert (small.areas.tolist(), small.image_id) == ([16, 0.25], 7)
    assert len(BoxTarget.empty().resize((6, 6), (3, 3))) == 0


def test_resize_and_flip_of_boxes():
    target = boxes_of((10, 10, 30, 20))
    scaled = target.resize((100, 100), (50, 200), zoom=3.0)
    np.testing.assert_array_equal(scaled.boxes, [[20, 5, 60, 10]])
    np.testing.assert_array_equal(scaled.areas, [200])
    np.testing.assert_array_equal(target.flip(40).boxes, [[10, 10, 30, 20]])
    np.testing.assert_array_equal(target.flip(100).boxes, [[70, 10, 90, 20]])


boxes_strategy = st.lists(
    st.tuples(st.floats(0, 60), st.floats(0, 40), st.floats(0.5, 30), st.floats(0.5, 30)),
    max_size=6,
).map(lambda rows: boxes_of(*[(x, y, min(x + w, 64), min(y + h, 48)) for x, y, w, h in rows]))


@given(
    target=boxes_strategy,
    crop=st.none() | st.tuples(st.integers(1, 80), st.integers(1, 80)),
    scale=st.floats(0.3, 3),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_boxes_stay_inside(target, crop, scale, seed):
    sample = Sample(np.zeros((48, 64, 3), np.uint8), target, "x")
    image, out, inside = Augment(crop=crop, scale=scale)(sample, np.random.default_rng(seed))
    height, width = int(inside.any(1).sum()), int(inside.any(0).sum())
    assert image.shape[:2] == inside.shape
    assert len(out) <= len(target)
    assert len({len(out.boxes), len(out.labels), len(out.ignored), len(out.areas)}) == 1
    assert (out.boxes >= 0).all()
    assert (out.boxes[:, 0::2] <= width).all()
    assert (out.boxes[:, 1::2] <= height).all()
    assert (out.boxes[:, 2:] > out.boxes[:, :2]).all()
    assert (out.areas > 0).all()


@given(target=boxes_strategy)
@settings(max_examples=50, deadline=None)
def test_flipping_twice_changes_nothing(target):
    again = target.flip(64).flip(64)
    np.testing.assert_allclose(again.boxes, target.boxes, atol=1e-5)


@given(
    corner=st.tuples(st.integers(0, 90), st.integers(0, 60)),
    size=st.tuples(st.integers(12, 36), st.integers(12, 36)),
    scale=st.floats(0.5, 2.5),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_a_painted_rectangle_and_its_box_stay_together(corner, size, scale, seed):
    x, y = corner
    width, height = size
    image = np.zeros((96, 128, 3), np.uint8)
    image[y : y + height, x : x + width] = 255
    sample = Sample(image, boxes_of((x, y, x + width, y + height)), "x")
    out, target, _ = Augment(crop=(64, 80), scale=scale)(sample, np.random.default_rng(seed))
    seen = out[..., 0] > 127
    if not len(target):
        # All but gone: less than a quarter of it, or than a pixel and a half a side after the resize's rounding.
        assert seen.sum() <= 0.3 * width * height * scale**2 or seen.sum() < 2 * 36 * scale
        return
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    painted = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(target.boxes[0], painted, atol=0.75)


def test_an_image_without_objects():
    assert len(BoxTarget.empty((3, 4), 255)) == 0
    empty = BoxTarget.empty(image_id=5)
    for moved in (empty.crop(0, 0, 4, 4), empty.resize((4, 4), (8, 8)), empty.flip(4)):
        assert (moved.boxes.shape, moved.image_id) == ((0, 4), 5)


def test_as_tensors():
    boxes = to_boxes(boxes_of((1, 2, 3, 4), (0, 0, 2, 2), ignored=[False, True]), (10, 12))
    assert boxes.boxes.tolist() == [[1, 2, 3, 4], [0, 0, 2, 2]]
    assert (boxes.labels.tolist(), boxes.ignored.tolist()) == ([0, 1], [False, True])
    assert (boxes.areas.tolist(), boxes.image_id, boxes.size) == ([4, 4], 7, (10, 12))


def test_lengths_must_agree():
    with pytest.raises(ValueError, match=r"\[1, 2, 1, 1\] entries"):
        BoxTarget([[0, 0, 1, 1]], [0, 1], [False], [1], 0)
