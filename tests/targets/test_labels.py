from __future__ import annotations

import numpy as np
import pytest
import torch

from densekd.targets import ClassMap, Window

LABELS = np.arange(6, dtype=np.uint8).reshape(2, 3)


def test_geometry_by_hand():
    np.testing.assert_array_equal(ClassMap.crop(LABELS, 0, 1, 2, 2), [[1, 2], [4, 5]])
    np.testing.assert_array_equal(ClassMap.flip(LABELS, 3), [[2, 1, 0], [5, 4, 3]])
    larger = ClassMap.resize(LABELS, (2, 3), (4, 6), zoom=7.0)
    np.testing.assert_array_equal(larger, np.kron(LABELS, np.ones((2, 2))))
    assert ClassMap.resize(LABELS, (2, 3), (2, 3)) is LABELS
    padded = ClassMap.pad(LABELS, (3, 4), 255)
    np.testing.assert_array_equal(padded[:2, :3], LABELS)
    assert (padded[2] == 255).all()
    assert (padded[:, 3] == 255).all()
    assert padded.dtype == np.uint8


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
def test_every_integer_is_flipped(dtype):
    flipped = ClassMap.flip(LABELS.astype(dtype), 3)
    np.testing.assert_array_equal(flipped, LABELS[:, ::-1])
    assert flipped.dtype == dtype


@pytest.mark.parametrize(("ignore_index", "dtype"), [(255, np.uint8), (-1, np.int16)])
def test_nothing_known(ignore_index, dtype):
    empty = ClassMap.empty((3, 4), ignore_index)
    assert (empty.shape, empty.dtype) == ((3, 4), dtype)
    assert (empty == ignore_index).all()


def test_a_batch_keeps_the_sets_own_integers():
    stacked = ClassMap.stack([LABELS, LABELS + 1])
    assert (stacked.shape, stacked.dtype) == ((2, 2, 3), torch.uint8)
    assert ClassMap.to_batch(stacked, torch.ones(2, 2, 3, dtype=torch.bool)) is stacked


def test_the_device_ignores_the_padding():
    inside = torch.tensor([[[True, False, True]]])
    window = Window(slice(0, 1), slice(0, 3), (1, 3), 1.0, True)
    made = ClassMap.from_pixels(torch.tensor([[[7, 8, 9]]]), inside, [None], [window], 255)
    assert made.tolist() == [[[7, 255, 9]]]


def test_facts():
    facts = ClassMap.facts(np.uint8([[0, 0, 2], [255, 2, 0]]), 4, 255)
    assert (facts["counts"].tolist(), facts["ignored"]) == ([3, 0, 2, 0], 1)


@pytest.mark.parametrize(
    ("labels", "share", "mixed"),
    [
        ([[0, 0, 0, 1]], 0.8, True),
        ([[0, 0, 0, 1]], 0.75, False),
        ([[0, 0, 0, 255]], 1.0, False),
        ([[255, 255, 0, 1]], 0.6, True),
    ],
)
def test_mixed_windows(labels, share, mixed):
    """Ignored pixels do not count; a class with exactly the share is too much."""
    assert ClassMap.is_mixed(np.uint8(labels), share, 255) == mixed
