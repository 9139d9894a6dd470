from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd.data import Augment, Sample, augment
from densekd.errors import UserError
from densekd.targets import BoxTarget, DepthTarget


def smooth_sample(height=96, width=128, classes=5, seed=0) -> Sample:
    """An image of soft colours and labels in large regions, as photographs have them."""
    noise = np.random.default_rng(seed).random((6, 8, 3)).astype(np.float32)
    image = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    labels = np.clip(image[..., 0] * classes, 0, classes - 1).astype(np.uint8)
    return Sample(np.clip(image * 255, 0, 255).astype(np.uint8), labels, "smooth")


def rng(seed=0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_nothing_to_do_gives_the_sample():
    sample = smooth_sample()
    image, target, inside = augment(sample, rng(), hflip=0)
    np.testing.assert_array_equal(image, sample.image)
    np.testing.assert_array_equal(target, sample.target)
    assert inside.all()
    image, target, _ = augment(sample, rng(), hflip=1)
    np.testing.assert_array_equal(image, sample.image[:, ::-1])
    np.testing.assert_array_equal(target, sample.target[:, ::-1])
    assert image.flags.c_contiguous
    assert target.flags.c_contiguous


@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    crop=st.none() | st.tuples(st.integers(1, 50), st.integers(1, 50)),
    scale=st.floats(0.2, 3),
    channels=st.sampled_from([1, 3, 4]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_shapes_types_and_padding(size, crop, scale, channels, seed):
    pixels = rng(seed).integers(0, 200, (*size, channels), dtype=np.uint8)
    labels = rng(seed).integers(0, 19, size, dtype=np.uint8)
    setting = Augment(crop=crop, scale=scale, color_jitter=0.1, fill=(250,) * channels)
    image, target, inside = setting(Sample(pixels, labels, "x"), rng(seed))
    scaled = tuple(max(1, round(side * scale)) for side in size)
    expected = crop or scaled
    assert image.shape == (*expected, channels)
    assert target.shape == inside.shape == expected
    assert (image.dtype, target.dtype, inside.dtype) == (np.uint8, np.uint8, bool)
    h, w = (min(a, b) for a, b in zip(expected, scaled, strict=True))
    assert inside[:h, :w].all()
    assert inside.sum() == h * w
    assert (target[inside] != 255).all()
    assert (target[~inside] == 255).all()
    assert (image[~inside] == 250).all()
    # Nothing but the seed decides.
    again = setting(Sample(pixels, labels, "x"), rng(seed))
    assert all(np.array_equal(a, b) for a, b in zip((image, target, inside), again, strict=True))


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.0, 1.5, 2.0, 1.37, 0.61])
def test_equals_resizing_everything_and_then_cutting(scale):
    sample = smooth_sample(384, 512, classes=3)
    setting = Augment(crop=(160, 192), scale=scale, hflip=0)
    height, width = (round(side * scale) for side in (384, 512))
    naive_image = cv2.resize(sample.image, (width, height), interpolation=cv2.INTER_LINEAR)
    naive_target = cv2.resize(sample.target, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    compared = 0
    for seed in range(300):
        look = setting.draw((384, 512), sample.target, rng(seed))
        size = look.size
        corner = np.array([look.rows.start, look.columns.start]) * scale
        if np.abs(corner - corner.round()).max() > 0.15:
            continue  # not a window that a cut of the resized image can have
        top, left = corner.round().astype(int)
        cut = slice(top, top + size[0]), slice(left, left + size[1])
        if naive_target[cut].shape != size:
            continue
        image, target, inside = setting(sample, rng(seed))
        # The rim of a cut cannot see its neighbours.
        inner = np.abs(image.astype(int) - naive_image[cut])[2:-2, 2:-2]
        assert inner.mean() < 1.5
        assert (target == naive_target[cut]).mean() >= 0.99
        assert inside.all()
        compared += 1
    assert compared >= 3


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_equals_the_plain_steps_bit_for_bit(channels):
    """Draws in the order zoom, corner, mirror, factors; then cut, resize, mirror, colour, on copies."""
    pixels = rng(1).integers(0, 256, (90, 110, channels), dtype=np.uint8)
    labels = rng(2).integers(0, 19, (90, 110), dtype=np.uint8)
    pixels.flags.writeable = labels.flags.writeable = False  # as in a cache
    for seed in range(40):
        draws = rng(seed)
        zoom = draws.uniform(0.5, 2.0)
        height, width = (min(n, max(1, round(c / zoom))) for n, c in ((90, 40), (110, 50)))
        top, left = (int(draws.integers(0, n - m + 1)) for n, m in ((90, height), (110, width)))
        cut = slice(top, top + height), slice(left, left + width)
        want = cv2.resize(pixels[cut].copy(), (50, 40), interpolation=cv2.INTER_LINEAR)
        want = want.reshape(40, 50, channels)
        map_ = cv2.resize(labels[cut].copy(), (50, 40), interpolation=cv2.INTER_NEAREST_EXACT)
        if draws.random() < 0.5:
            want, map_ = want[:, ::-1], map_[:, ::-1]
        brightness, contrast = draws.uniform(0.8, 1.2), draws.uniform(0.7, 1.3)
        bright = np.clip(want.astype(float) * brightness, 0, 255)
        want = np.clip((bright - bright.mean()) * contrast + bright.mean() + 0.5, 0, 255)
        setting = Augment(crop=(40, 50), scale=(0.5, 2.0), color_jitter=(0.2, 0.3, 0))
        image, target, inside = setting(Sample(pixels, labels, "x"), rng(seed))
        assert np.abs(image.astype(int) - want.astype(np.uint8)).max() <= 1
        assert (image == want.astype(np.uint8)).mean() > 0.999  # a sum in another order
        np.testing.assert_array_equal(target, map_)
        assert inside.all()


def test_what_is_drawn_is_apart_from_what_is_done():
    sample = smooth_sample()
    setting = Augment(crop=(60, 70), scale=(0.5, 2.0), color_jitter=0.2, cat_max_ratio=0.5)
    for seed in range(10):
        look = setting.draw((96, 128), sample.target, rng(seed))
        for a, b in zip(setting.apply(sample, look), setting(sample, rng(seed)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_labels_stay_with_their_pixels():
    """An image made of its own labels: after any scaling, halving it gives the labels."""
    labels = np.kron(rng().integers(0, 2, (6, 8)), np.ones((16, 16))).astype(np.uint8)
    sample = Sample(np.repeat(labels[..., None] * 200, 3, axis=2), labels, "x")
    for seed in range(20):
        image, target, inside = augment(sample, rng(seed), crop=(64, 64), scale=(0.4, 2.5))
        assert ((image[..., 0] > 100) == (target == 1))[inside].mean() > 0.98


def test_windows_are_uniform_over_the_image():
    """Every crop position is as likely as another, borders included, as with resize-then-crop."""
    ramp = np.tile(np.arange(100, dtype=np.uint8), (8, 1))
    sample = Sample(np.repeat(ramp[..., None], 3, axis=2), ramp, "ramp")
    generator = rng()
    setting = Augment(crop=(8, 20), scale=1.0, hflip=0)
    starts = [int(setting(sample, generator)[1][0, 0]) for _ in range(4000)]
    counts = np.bincount(starts, minlength=81)
    assert len(counts) == 81
    assert 4000 / 81 * 0.4 < counts.min() <= counts.max() < 4000 / 81 * 1.7


def test_scales_and_short_side():
    sample = smooth_sample(40, 80)
    sizes = {augment(sample, rng(seed), scales=[0.5, 1.0, 2.0])[0].shape[:2] for seed in range(40)}
    assert sizes == {(20, 40), (40, 80), (80, 160)}
    heights = [augment(sample, rng(seed), scale=(0.5, 2.0))[0].shape[0] for seed in range(300)]
    assert 20 <= min(heights) < 25
    assert 75 < max(heights) <= 80
    assert 45 < np.mean(heights) < 55
    assert augment(sample, rng(), short_side=20)[0].shape[:2] == (20, 40)


def test_flips_half_of_the_time():
    sample = smooth_sample(4, 6)
    flips = [
        np.array_equal(augment(sample, rng(seed))[0], sample.image[:, ::-1]) for seed in range(1000)
    ]
    assert 430 < sum(flips) < 570


def test_colour_changes_pixels_and_not_labels():
    sample = smooth_sample()
    image, target, _ = augment(sample, rng(1), hflip=0, color_jitter=(0.5, 0.5, 0.5))
    assert np.abs(image.astype(int) - sample.image).mean() > 2
    np.testing.assert_array_equal(target, sample.target)
    grey = Sample(sample.image[..., :1], sample.target, "grey")
    assert augment(grey, rng(1), color_jitter=0.5)[0].shape == grey.image.shape


def test_brightness_alone_is_a_factor():
    sample = Sample(np.full((4, 4, 3), 100, dtype=np.uint8), np.zeros((4, 4), np.uint8), "x")
    values = {
        int(augment(sample, rng(s), color_jitter=(0.2, 0, 0))[0][0, 0, 0]) for s in range(200)
    }
    assert 80 <= min(values) < 84
    assert 116 < max(values) <= 120


def test_one_class_crops_are_drawn_again():
    labels = np.zeros((64, 64), dtype=np.uint8)
    labels[:20, :20] = 1
    sample = Sample(np.zeros((64, 64, 3), dtype=np.uint8), labels, "x")

    def mixed(ratio):
        crops = [augment(sample, rng(s), crop=(16, 16), cat_max_ratio=ratio)[1] for s in range(200)]
        return sum(len(np.unique(crop)) == 2 for crop in crops)

    assert mixed(0.75) > 2 * mixed(None)
    ignored = Sample(sample.image, np.full_like(labels, 255), "ignored")
    assert (augment(ignored, rng(), crop=(16, 16), cat_max_ratio=0.75)[1] == 255).all()


def test_unlabelled_samples_are_ignored_throughout():
    sample = Sample(smooth_sample().image, None, "x")
    image, target, inside = augment(sample, rng(), crop=(120, 200))
    assert image.shape[:2] == target.shape == (120, 200)
    assert (target == 255).all()
    assert inside.sum() == 96 * 128


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop": (0, 5)}, {"crop": (5,)}, {"scale": 0}, {"scale": (2, 1)}, {"scale": (1, 2, 3)},
        {"scales": []}, {"hflip": 2}, {"color_jitter": -1}, {"color_jitter": (1, 2)},
        {"cat_max_ratio": 0}, {"short_side": 0}, {"long_side": 0},
    ],
)  # fmt: skip
def test_wrong_settings_are_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Augment(**wrong)


def test_fill_of_another_channel_count():
    with pytest.raises(UserError, match="fill has 4 values"):
        augment(smooth_sample(), rng(), crop=(200, 200), fill=(1, 2, 3, 4))


def test_the_longer_side_has_a_limit():
    sizes = [
        augment(smooth_sample(height, width), rng(), short_side=40, long_side=60)[0].shape[:2]
        for height, width in [(40, 50), (40, 80), (160, 80), (20, 20)]
    ]
    assert sizes == [(40, 50), (30, 60), (60, 30), (40, 40)]
    assert augment(smooth_sample(40, 80), rng(), long_side=20)[0].shape[:2] == (10, 20)


def test_random_scale_is_not_held_by_the_limit():
    heights = {
        augment(smooth_sample(40, 80), rng(), long_side=40, scale=s)[0].shape[0] for s in (1, 2)
    }
    assert heights == {20, 40}


def test_the_task_changes_no_draw():
    """The same image comes out whatever its target is."""
    sample = smooth_sample()
    boxes = Sample(sample.image, BoxTarget.empty(), "boxes")
    depth = Sample(sample.image, DepthTarget.empty((96, 128)), "depth")
    setting = Augment(crop=(60, 70), scale=(0.5, 2.0), color_jitter=0.2)
    for seed in range(10):
        image = setting(sample, rng(seed))[0]
        for other in (boxes, depth):
            np.testing.assert_array_equal(setting(other, rng(seed))[0], image)


def test_class_balance_is_for_class_maps():
    sample = Sample(smooth_sample().image, BoxTarget.empty(), "boxes")
    with pytest.raises(UserError, match="cat_max_ratio"):
        augment(sample, rng(), crop=(16, 16), cat_max_ratio=0.75)
