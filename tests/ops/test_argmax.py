"""The class map is that of the plain way, pixel for pixel, by whichever way it was found."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd.ops import _bilinear, argmax
from densekd.ops.argmax import argmax_map
from densekd.ops.resize import resize_map


def plain(maps, size):
    return resize_map(maps.float().contiguous(), size).argmax(1)


def smooth(seed, n=1, k=6, h=24, w=40, noise=0.3):
    """Scores with regions and borders, as a network's."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, k, 4, 4, generator=g) * 8
    return resize_map(coarse, (h, w)) + torch.randn(n, k, h, w, generator=g) * noise


@pytest.fixture
def ways(monkeypatch):
    """Which images went which way."""
    seen = []
    for name in ("_by_cells", "_by_classes", "bands"):
        inner = getattr(argmax, name)

        def call(*args, name=name, inner=inner):
            out = inner(*args)
            if out is not False:
                seen.append(name)
            return out

        monkeypatch.setattr(argmax, name, call)
    return seen


@pytest.mark.parametrize(
    ("k", "kind"),
    [(2, torch.uint8), (19, torch.uint8), (255, torch.uint8), (300, torch.int16)],
)
@pytest.mark.parametrize("size", [(192, 320), (193, 321), (130, 187)])
def test_regions(k, kind, size, ways):
    maps = smooth(k, n=2, k=k, noise=0)
    out = argmax_map(maps, size)
    assert torch.equal(out.long(), plain(maps, size))
    assert out.dtype == kind
    if _bilinear._same_bits():  # else everything is the plain way, by classes
        assert ways == ["_by_cells"] * 2


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    k=st.integers(1, 9),
    small=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    size=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e6]),
    kind=st.sampled_from(["regions", "noise", "steps"]),
)
def test_any_shape(seed, k, small, size, scale, kind):
    maps = smooth(seed, k=k, h=small[0], w=small[1])
    if kind == "noise":
        maps = torch.randn(maps.shape, generator=torch.Generator().manual_seed(seed))
    elif kind == "steps":  # ties at the corners and between them
        maps = (maps / 3).round()
    maps = maps * scale
    assert torch.equal(argmax_map(maps, size).long(), plain(maps, size))


@pytest.mark.parametrize("size", [(96, 200), (31, 33), (24, 40), (10, 300), (10, 12)])
def test_ties_go_to_the_lowest_class(size):
    g = torch.Generator().manual_seed(0)
    maps = torch.randint(0, 2, (1, 5, 24, 40), generator=g).float()
    for tied in (maps, maps * 0, maps * 0 + 3, maps / 3, maps[:, :, :1], maps[..., :1]):
        assert torch.equal(argmax_map(tied, size).long(), plain(tied, size))


def test_nearly_equal_classes():
    """Classes that differ by less than, about, and more than what rounding can undo."""
    base = smooth(0, k=2, h=32, w=32)
    for ulps in (0, 1, 3, 10, 100):
        # the later class leads: a tie by rounding would go to the earlier one
        maps = torch.cat([base, base * (1 + ulps * 2.0**-23)], 1)
        for size in ((256, 256), (255, 301)):
            assert torch.equal(argmax_map(maps, size).long(), plain(maps, size))


def test_nearly_equal_classes_of_small_maps():
    """What the kernel for these rounds to depends on the number of channels."""
    base = smooth(0, k=1, h=16, w=16)
    maps = base * (1 + torch.arange(19.0).view(1, -1, 1, 1) % 3 * 2.0**-23)
    for size in ((64, 64), (63, 65), (31, 97), (64, 65)):
        assert torch.equal(argmax_map(maps, size).long(), plain(maps, size))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", [(0, 0, 3, 4), (0, 4, 10, 10), (0, 5, 23, 39)])
def test_not_finite_is_as_in_the_plain_way(value, where):
    maps = smooth(3)
    maps[where] = value
    for size in ((192, 320), (24, 40), (50, 50), (12, 200), (24, 200), (192, 40)):
        assert torch.equal(argmax_map(maps, size).long(), plain(maps, size))


@pytest.mark.parametrize("largest", [1e-45, 1e-38, 3e38])
def test_ends_of_float32(largest):
    maps = smooth(4)
    maps = maps / maps.abs().max() * largest
    assert torch.equal(argmax_map(maps, (192, 320)).long(), plain(maps, (192, 320)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_count_as_float32(dtype):
    maps = smooth(5).to(dtype)
    assert torch.equal(argmax_map(maps, (192, 320)).long(), plain(maps, (192, 320)))


def test_layout_does_not_matter():
    maps = smooth(6, n=2)
    other = maps.contiguous(memory_format=torch.channels_last)
    assert torch.equal(argmax_map(other, (192, 320)), argmax_map(maps, (192, 320)))


def test_noise_goes_by_bands(ways):
    maps = torch.randn(1, 19, 24, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(argmax_map(maps, (192, 320)).long(), plain(maps, (192, 320)))
    if _bilinear._same_bits():
        assert ways == ["bands"]


@pytest.mark.parametrize("k", [1, 2, 3, 4, 7])
def test_a_build_with_other_roundings_goes_by_classes(k, monkeypatch, ways):
    monkeypatch.setattr(argmax, "is_exact", lambda maps, size: False)
    maps = smooth(7, n=2, k=k)
    maps[0, -1, 5, 5] = torch.nan
    assert torch.equal(argmax_map(maps, (192, 320)).long(), plain(maps, (192, 320)))
    tied = maps.round()
    assert torch.equal(argmax_map(tied, (192, 320)).long(), plain(tied, (192, 320)))
    assert set(ways) == {"_by_classes"}


def test_no_gradient_is_kept():
    assert not argmax_map(smooth(8).requires_grad_(), (192, 320)).requires_grad


@pytest.mark.parametrize("size", [(192, 320), (193, 77), (24, 320), (9, 130), (5, 200)])
def test_bands_are_the_resized_map(size):
    maps = smooth(9, n=2)
    whole = resize_map(maps, size)
    seen = 0
    for rows, band in _bilinear.bands(maps, size):
        assert rows.start == seen
        assert torch.equal(band, whole[:, :, rows])
        seen = rows.stop
    assert seen == size[0]


def test_a_map_of_that_size_comes_back_in_bands():
    maps = smooth(10, h=70, w=80)
    assert all(
        torch.equal(band, maps[:, :, rows]) for rows, band in _bilinear.bands(maps, (70, 80))
    )
