"""Depth bins against hand values: a range of 1 to 16 m in four bins has edges 1, 2, 4, 8, 16."""

import math

import pytest
import torch

from densekd.ops.depth_bins import bin_centres, bin_edges, bins_to_depth, depth_to_bins

RANGE = (1.0, 16.0)


def test_edges_and_centres():
    assert bin_edges(4, RANGE).tolist() == pytest.approx([1, 2, 4, 8, 16])
    assert bin_centres(4, RANGE).tolist() == pytest.approx([2**0.5, 2**1.5, 2**2.5, 2**3.5])


def test_depth_lies_in_its_bin():
    depth = torch.tensor([1.0, 1.99, 2.01, 5.0, 15.9, 16.0])
    assert depth_to_bins(depth, 4, RANGE).tolist() == [0, 0, 1, 2, 3, 3]
    # beyond the range, 0 included: the nearest bin
    assert depth_to_bins(torch.tensor([0.0, 0.5, 99.0]), 4, RANGE).tolist() == [0, 0, 3]


@pytest.mark.parametrize("bins", [2, 7, 150])
def test_centres_come_back(bins):
    centres = bin_centres(bins, (0.1, 10.0))
    assert depth_to_bins(centres, bins, (0.1, 10.0)).tolist() == list(range(bins))
    sure = torch.full((bins, bins), -1e4).fill_diagonal_(1e4).t()[None, ..., None]  # (1, B, B, 1)
    assert torch.allclose(bins_to_depth(sure, (0.1, 10.0)).flatten(), centres)


def test_the_sum_is_weighted_in_log_space():
    # half and half between the centres of bins 0 and 2: their geometric mean
    logits = torch.tensor([0.0, -1e4, 0.0, -1e4]).view(1, 4, 1, 1)
    assert bins_to_depth(logits, RANGE).item() == pytest.approx(math.sqrt(2**0.5 * 2**2.5))
    assert bins_to_depth(torch.zeros(2, 4, 3, 5), RANGE).shape == (2, 1, 3, 5)


@pytest.mark.parametrize(
    ("bins", "depth_range"), [(1, RANGE), (4, (0.0, 1.0)), (4, (2.0, 2.0)), (4, (1.0, math.inf))]
)
def test_what_is_no_range(bins, depth_range):
    with pytest.raises(ValueError, match=r"depth bins leave|expected 0 < nearest < farthest"):
        bin_edges(bins, depth_range)
