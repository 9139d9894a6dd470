from __future__ import annotations

import numpy as np
import pytest
import torch

from densekd.data import Item, collate


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_become_planes(channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    inside, labels = np.ones((5, 7), bool), np.zeros((5, 7), np.int64)
    item = Item(image, labels, inside, True, "x")
    batch = collate([item, item])
    np.testing.assert_array_equal(batch.images[1], image.transpose(2, 0, 1))
    assert batch.targets.dtype == torch.int64
    with pytest.raises(ValueError, match="channels"):
        collate([item, Item(image[..., :1].repeat(2, 2), *item[1:])])


def test_targets_that_are_no_arrays_stay_a_list():
    image, inside = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4), bool)
    batch = collate([Item(image, {"boxes": i}, inside, True, str(i)) for i in range(2)])
    assert batch.targets == [{"boxes": 0}, {"boxes": 1}]
