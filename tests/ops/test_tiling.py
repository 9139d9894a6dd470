"""Windows cover, flips undo, scales average."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import pad

from densekd.ops import tiling
from densekd.ops.resize import resize_map
from densekd.ops.tiling import (
    Views,
    predict_classes,
    predict_dense,
    predict_windows,
    window_starts,
)


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
    flipped = predict_dense(network, images, (12, 14), Views(flip=True))
    assert torch.equal(plain.argmax(1), flipped.argmax(1))
    assert torch.allclose(flipped.sum(1), torch.ones(1, 12, 14))


def test_scales_see_images_of_those_sizes():
    seen = []

    def network(x):
        seen.append(tuple(x.shape[-2:]))
        return x.new_zeros(x.shape[0], 2, *x.shape[-2:])

    out = predict_dense(network, torch.rand(1, 3, 20, 30), (40, 60), Views(scales=(0.5, 1.0, 1.5)))
    assert seen == [(10, 15), (20, 30), (30, 45)]
    assert out.shape == (1, 2, 40, 60)


def test_content_comes_back_to_where_it_was():
    """Image and maps go by one grid: a ramp seen at any scale is the ramp, up to the border."""
    ramp = torch.linspace(0, 1, 21).expand(1, 1, 15, 21)
    for scale in (0.5, 2.0, 3.0):
        back = predict_dense(lambda x: x, ramp, (15, 21), Views(scales=(scale,)))
        assert torch.allclose(back, ramp, atol=1e-6)


@pytest.mark.parametrize(("images", "most"), [(1, 8), (3, 6), (9, 9)])
def test_a_forward_pass_takes_few_windows_and_the_result_is_that_of_all_at_once(
    images, most, monkeypatch
):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(images, 3, 20, 22, generator=generator)
    weight = torch.randn(4, 3, 3, 3, generator=generator)
    seen = []

    def network(x):
        seen.append(x.shape[0])
        return torch.nn.functional.conv2d(x, weight, stride=2, padding=1)

    few = predict_windows(network, pixels, window=(8, 8), overlap=0.5)
    windows = sum(seen)
    assert max(seen) == most
    monkeypatch.setattr(tiling, "AT_ONCE", 10**6)
    seen.clear()
    whole = predict_windows(network, pixels, window=(8, 8), overlap=0.5)
    assert seen == [windows]
    assert torch.allclose(few, whole, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"window": (6, 6)}, {"flip": True}])
def test_sums_of_half_precision_logits_are_float32(options):
    half = lambda x: torch.stack([x[:, 0], x[:, 1]], 1).to(torch.bfloat16)  # noqa: E731
    images = torch.rand(1, 3, 9, 13, generator=torch.Generator().manual_seed(0))
    scores = predict_dense(half, images, (18, 26), Views(**options))
    assert scores.dtype == torch.float32
    single = predict_dense(lambda x: half(x).float(), images, (18, 26), Views(**options))
    assert torch.equal(scores, single)


def whole_maps(predict, images, size, views, average=None):
    """The plain way: every view on its own, every map at full size."""
    average = average or (lambda logits: logits.softmax(1))
    passes = []
    for scaled_size in views.sizes(*images.shape[-2:]):
        scaled = resize_map(images, scaled_size)
        for flipped in (False, True) if views.flip else (False,):
            view = scaled.flip(-1) if flipped else scaled
            maps = whole_windows(predict, view, views)
            passes.append(resize_map(maps.flip(-1) if flipped else maps, size))
    return sum(average(maps) for maps in passes) / len(passes) if len(passes) > 1 else passes[0]


def whole_windows(predict, images, views):
    if views.window is None:
        return predict(images).float()
    height, width = images.shape[-2:]
    tall, wide = min(views.window[0], height), min(views.window[1], width)
    total = count = 0
    for top in window_starts(height, tall, views.overlap):
        for left in window_starts(width, wide, views.overlap):
            edges = (left, width - left - wide, top, height - top - tall)
            part = predict(images[..., top : top + tall, left : left + wide]).float()
            total = total + pad(resize_map(part, (tall, wide)), edges)
            count = count + pad(torch.ones(1, 1, tall, wide), edges)
    return total / count


def strided(x):
    """Six classes at a quarter of the size; images do not meet each other."""
    small = torch.nn.functional.avg_pool2d(x, 4, ceil_mode=True)
    return torch.cat([small, small.flip(1) * 1.5 - 0.2], 1)


@pytest.mark.parametrize(
    "views",
    [
        Views(),
        Views(flip=True),
        Views(scales=(0.5, 1.0, 1.25), flip=True),
        Views(short_side=120, scales=(1.0, 0.7)),
        Views(window=(64, 48)),
        Views(window=(80, 90), flip=True, scales=(1.0, 1.5)),
    ],
)
def test_few_rows_at_a_time_change_no_bit(views):
    images = torch.rand(2, 3, 100, 136, generator=torch.Generator().manual_seed(0))
    size = (150, 208)
    whole = whole_maps(strided, images, size, views)
    assert torch.equal(predict_dense(strided, images, size, views), whole)
    classes = predict_classes(strided, images, size, views)
    assert classes.dtype == torch.uint8
    assert torch.equal(classes.long(), whole.argmax(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(predict_classes(strided, images, size, views), classes)
    # The end of a row that is no multiple of the processor's vector has a softmax with another last bit.
    odd = predict_dense(strided, images, (150, 203), views)
    assert torch.allclose(odd, whole_maps(strided, images, (150, 203), views), atol=1e-6)


def test_an_average_of_ones_own_gets_rows_and_may_return_what_it_got():
    images = torch.rand(1, 3, 90, 70, generator=torch.Generator().manual_seed(0))
    kept = images.clone()
    views = Views(scales=(1.0, 1.5), flip=True)
    for average in (lambda x: x, lambda x: x.mean(1, keepdim=True)):
        mean = predict_dense(lambda x: x, images, (90, 70), views, average=average)
        assert torch.equal(mean, whole_maps(lambda x: x, images, (90, 70), views, average))
    assert torch.equal(images, kept)


def test_small_images_are_seen_together_with_their_mirror_images(monkeypatch):
    seen = []

    def network(x):
        seen.append(x.shape[0])
        return x

    images = torch.rand(3, 3, 8, 10)
    predict_dense(network, images, (8, 10), Views(flip=True))
    assert seen == [6]
    monkeypatch.setattr(tiling, "PIXELS_AT_ONCE", 479)
    predict_dense(network, images, (8, 10), Views(flip=True))
    assert seen == [6, 3, 3]
