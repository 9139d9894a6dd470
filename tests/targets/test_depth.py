from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd.data import Augment, Sample
from densekd.targets import DepthTarget, to_depth_maps


def points(target: DepthTarget) -> np.ndarray:
    """(H, W, 3) by the pinhole rule of `DepthTarget`."""
    fx, fy, cx, cy = target.intrinsics
    i, j = np.mgrid[: target.depth.shape[0], : target.depth.shape[1]]
    rays = np.stack([(j - cx) / fx, (i - cy) / fy, np.ones_like(i)], axis=-1)
    return rays * target.depth[..., None]


def slanted(height=96, width=128) -> DepthTarget:
    """The plane X / 3 + Y / 2 + Z = 4, seen by a camera off the centre: every pixel's depth worked out."""
    fx, fy, cx, cy = intrinsics = (110.0, 120.0, 70.25, 40.5)
    i, j = np.mgrid[:height, :width]
    depth = 4 / ((j - cx) / fx / 3 + (i - cy) / fy / 2 + 1)
    return DepthTarget(depth.astype(np.float32), intrinsics)


@given(
    scale=st.floats(0.5, 2.5),
    short_side=st.none() | st.integers(40, 150),
    crop=st.none() | st.tuples(st.integers(30, 100), st.integers(30, 100)),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=100, deadline=None)
def test_depth_keeps_its_shape(scale, short_side, crop, seed):
    """Back-projected, the plane X / 3 + Y / 2 + Z = 4 becomes the plane X / 3 + Y / 2 + s Z = 4, mirrored or not."""
    sample = Sample(np.zeros((96, 128, 3), np.uint8), slanted(), "x")
    setting = Augment(crop=crop, scale=scale, short_side=short_side)
    _, target, inside = setting(sample, np.random.default_rng(seed))
    assert ((target.depth > 0) == inside).all()
    choices = setting.draw((96, 128), sample.target, np.random.default_rng(seed))
    side = -1 if choices.flip else 1
    x, y, z = points(target)[inside].T
    plane = side * x / 3 + y / 2 + scale * z
    # Nearest depth is up to half a source pixel off, about (1/110/3 + 1/120/2) / 2 of the depth.
    np.testing.assert_allclose(plane, 4, rtol=8e-3)
    assert abs(plane.mean() - 4) < 0.015


def test_flipping_twice_changes_nothing():
    depth = DepthTarget(np.random.default_rng(0).random((4, 6), np.float32), (5.0, 6.0, 2.25, 1.5))
    twice = depth.flip(6).flip(6)
    np.testing.assert_array_equal(twice.depth, depth.depth)
    assert twice.intrinsics == depth.intrinsics


def test_depth_by_hand():
    depth = np.arange(1, 17, dtype=np.float32).reshape(4, 4)
    target = DepthTarget(depth, (8.0, 6.0, 1.5, 1.0))
    cut = target.crop(1, 2, 2, 2)
    np.testing.assert_array_equal(cut.depth, [[7, 8], [11, 12]])
    assert cut.intrinsics == (8.0, 6.0, -0.5, 0.0)
    assert target.flip(4).intrinsics == (8.0, 6.0, 1.5, 1.0)
    assert cut.flip(2).intrinsics == (8.0, 6.0, 1.5, 0.0)
    np.testing.assert_array_equal(cut.flip(2).depth, [[8, 7], [12, 11]])
    larger = target.resize((4, 4), (8, 8))
    np.testing.assert_array_equal(larger.depth, np.kron(depth, np.ones((2, 2))))
    assert larger.intrinsics == (16.0, 12.0, 3.5, 2.5)
    nearer = target.resize((4, 4), (8, 8), zoom=2.0)
    np.testing.assert_array_equal(nearer.depth, larger.depth / 2)
    assert nearer.intrinsics == (8.0, 6.0, 3.5, 2.5)
    assert nearer.depth.dtype == np.float32
    assert target.resize((4, 4), (2, 2)).intrinsics == (4.0, 3.0, 0.5, 0.25)
    unknown = DepthTarget(depth)
    for other in (unknown.crop(0, 0, 1, 1), unknown.resize((4, 4), (2, 2)), unknown.flip(4)):
        assert other.intrinsics is None
    padded = target.pad((5, 6))
    assert (padded.depth.sum(), padded.depth.shape) == (depth.sum(), (5, 6))
    assert padded.intrinsics == target.intrinsics


def test_depth_values_are_never_mixed():
    depth = np.where(np.random.default_rng(0).random((40, 60)) < 0.5, 1, 5).astype(np.float32)
    resized = DepthTarget(depth).resize((40, 60), (57, 31))
    assert set(np.unique(resized.depth)) == {1, 5}


def test_unknown_depth():
    assert DepthTarget.empty((3, 4), 255).depth.shape == (3, 4)
    assert not DepthTarget.empty((3, 4)).depth.any()


def test_as_tensors():
    known = DepthTarget(np.ones((2, 3), np.float32), (1.0, 2.0, 3.0, 4.0))
    maps = to_depth_maps([known, DepthTarget.empty((2, 3)), known.flip(3)])
    assert maps.depth.shape == (3, 1, 2, 3)
    assert maps.intrinsics[0].tolist() == [1, 2, 3, 4]
    assert maps.intrinsics[1].isnan().all()
    assert maps.intrinsics[2].tolist() == [1, 2, -1, 4]
