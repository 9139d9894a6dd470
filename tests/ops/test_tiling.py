"""Windows cover, flips undo, scales average."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densekd.ops.tiling import predict_dense, predict_windows, window_starts


@given(
    length=st.integers(1, 300),
    window=st.integers(1, 300),
    overlap=st.floats(0, 0.9),
)
def test_windows_cover_every_pixel_and_stay_inside(length, window, overlap):
    starts = window_starts(length, window, overlap)
    size = min(window, length)
    covered = set()
    for start in starts:
        assert 0 <= start <= length - size
        covered.update(range(start, start + size))
    assert covered == set(range(length))
    assert len(set(starts)) == len(starts)


@pytest.mark.parametrize("window", [(8, 8), (5, 9), (64, 64)])
def test_windows_of_a_pointwise_network_change_nothing(window):
    images = torch.rand(2, 3, 17, 23)
    weight = torch.randn(4, 3, 1, 1)
    network = lambda x: torch.nn.functional.conv2d(x, weight)  # noqa: E731
    assert torch.allclose(
        predict_windows(network, images, window=window, overlap=0.3), network(images), atol=1e-6
    )


def test_flip_of_a_mirror_symmetric_network_keeps_the_argmax():
    images = torch.rand(1, 3, 12, 14)
    weight = torch.randn(5, 3, 1, 1)
    network = lambda x: torch.nn.functional.conv2d(x, weight)  # noqa: E731
    plain = predict_dense(network, images, (12, 14))
    flipped = predict_dense(network, images, (12, 14), flip=True)
    assert torch.equal(plain.argmax(1), flipped.argmax(1))
    assert torch.allclose(flipped.sum(1), torch.ones(1, 12, 14))


def test_scales_see_images_of_those_sizes():
    seen = []

    def network(x):
        seen.append(tuple(x.shape[-2:]))
        return x.new_zeros(x.shape[0], 2, *x.shape[-2:])

    out = predict_dense(network, torch.rand(1, 3, 20, 30), (40, 60), scales=(0.5, 1.0, 1.5))
    assert seen == [(10, 15), (20, 30), (30, 45)]
    assert out.shape == (1, 2, 40, 60)
