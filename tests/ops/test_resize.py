"""Maps and labels are resized on one grid, images of boxes by pixel areas."""

import cv2
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densekd.ops.resize import nearest_indices, resize_image, resize_labels, resize_map


@given(source=st.integers(1, 200), target=st.integers(1, 200))
def test_nearest_picks_the_closest_sample_of_the_align_corners_grid(source, target):
    picked = nearest_indices(source, target)
    assert picked.min() >= 0
    assert picked.max() < source
    if target > 1 and source > 1:
        ideal = torch.arange(target) * (source - 1) / (target - 1)
        assert (picked - ideal).abs().max() <= 0.5 + 1e-6


def test_corners_keep_their_values():
    x = torch.arange(12.0).view(1, 1, 3, 4)
    y = resize_map(x, (7, 9))
    for row in (0, -1):
        for column in (0, -1):
            assert y[0, 0, row, column] == x[0, 0, row, column]
    assert resize_labels(x[0], (7, 9))[0, -1, -1] == x[0, 0, -1, -1]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
def test_labels_keep_their_type_and_values(dtype):
    labels = (torch.rand(2, 9, 11) > 0.5).to(dtype)
    out = resize_labels(labels, (4, 5))
    assert out.dtype == dtype
    assert out.shape == (2, 4, 5)
    assert resize_labels(labels, (9, 11)) is labels


def test_one_pixel_takes_the_middle():
    assert nearest_indices(5, 1).tolist() == [2]
    assert nearest_indices(1, 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("size", [(40, 90), (11, 25), (20, 30)])
def test_images_are_resized_as_in_training(size):
    """By cv2's INTER_LINEAR, larger and smaller."""
    image = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    theirs = cv2.resize(
        image[0].permute(1, 2, 0).numpy(), size[::-1], interpolation=cv2.INTER_LINEAR
    )
    assert torch.allclose(
        resize_image(image, size)[0].permute(1, 2, 0), torch.from_numpy(theirs), atol=1e-5
    )
    assert (resize_image(image, size) is image) == (size == (20, 30))


def test_an_edge_lies_where_a_box_of_it_would():
    """A step between columns 1 and 2 of 8, at x = 2, is at x = 8 of 32: columns 7 and 8 are equally far from it."""
    image = torch.zeros(1, 1, 4, 8)
    image[..., 2:] = 1
    row = resize_image(image, (16, 32))[0, 0, 0]
    assert (row[7] + row[8]).item() == pytest.approx(1)
    mapped = resize_map(image, (16, 32))[0, 0, 0]
    assert (mapped[7] + mapped[8]).item() > 1.3
