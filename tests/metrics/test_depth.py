"""Depth errors by hand, against numpy, and what must not change them."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from densekd.metrics import DepthMetrics
from densekd.metrics.depth import ERRORS, crop_box


def maps(n=3, height=20, width=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = 0.5 + 8 * torch.rand(n, 1, height, width, generator=generator)
    factor = (0.3 * torch.randn(n, 1, height, width, generator=generator)).exp()
    return target * factor, target


def scores(prediction, target, *args, sizes=None, **options):
    metric = DepthMetrics(*(args or (0.1, 20.0)), **options)
    metric.update(prediction, target, sizes)
    return metric.reduce().compute()


def test_by_hand():
    """Two pixels: 2 m for 1 m, and 4 m for 4 m; the others are unknown, too near, too far."""
    target = torch.tensor([[[[1.0, 4.0, 0.0, 0.01, 99.0, math.nan]]]])
    prediction = torch.tensor([[[[2.0, 4.0, 7.0, 7.0, 7.0, 7.0]]]])
    found = scores(prediction, target, 0.1, 10.0)
    log2 = math.log(2)
    assert found["abs_rel"] == pytest.approx(0.5)
    assert found["sq_rel"] == pytest.approx(0.5)
    assert found["rmse"] == pytest.approx(math.sqrt(0.5))
    assert found["rmse_log"] == pytest.approx(log2 * math.sqrt(0.5))
    assert found["log10"] == pytest.approx(math.log10(2) / 2)
    assert found["silog"] == pytest.approx(100 * log2 / 2)
    assert [found[f"delta{k}"] for k in (1, 2, 3)] == [0.5, 0.5, 0.5]
    assert found["images"] == 1
    assert found["pixels"] == 2
    settings = [found[k] for k in ("min_depth", "max_depth", "crop", "align")]
    assert settings == [0.1, 10.0, None, None]


class NoDouble(torch.Tensor):
    """As on Apple's MPS: float64 only after `cpu`."""

    def double(self):
        raise TypeError("no float64 here")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_float64_is_left_to_the_cpu():
    prediction, target = maps()
    there = [x.as_subclass(NoDouble) for x in (prediction, target)]
    assert scores(*there, align="median") == scores(prediction, target, align="median")


def test_the_three_deltas():
    target = torch.ones(1, 1, 1, 4)
    prediction = torch.tensor([1.24, 1 / 1.3, 1.6, 2.0]).view(1, 1, 1, 4)
    found = scores(prediction, target)
    assert [found[f"delta{k}"] for k in (1, 2, 3)] == [0.25, 0.5, 0.75]


def test_against_numpy():
    prediction, target = maps(1)
    p, t = (x.double().numpy().ravel() for x in (prediction, target))
    d = np.log(p) - np.log(t)
    expected = {
        "abs_rel": np.mean(abs(p - t) / t),
        "sq_rel": np.mean((p - t) ** 2 / t),
        "rmse": np.sqrt(np.mean((p - t) ** 2)),
        "rmse_log": np.sqrt(np.mean(d**2)),
        "log10": np.mean(abs(np.log10(p / t))),
        "silog": 100 * np.sqrt(np.mean(d**2) - np.mean(d) ** 2),
        "delta1": np.mean(np.maximum(p / t, t / p) < 1.25),
    }
    found = scores(prediction, target, 0.01, 100.0)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6), name


def test_images_count_alike_whatever_their_pixels():
    """One image with one pixel and 100 % error, one with four and none: the mean is 50 %."""
    target = torch.ones(2, 1, 2, 2)
    target[0, 0, 0] = target[0, 0, 1, 0] = 0
    prediction = torch.ones(2, 1, 2, 2)
    prediction[0] = 2
    found = scores(prediction, target)
    assert found["abs_rel"] == pytest.approx(0.5)
    assert found["pixels"] == 5


def test_batches_add_up_and_empty_images_do_not_count():
    prediction, target = maps(4)
    target[2] = 0
    whole = scores(prediction, target)
    metric = DepthMetrics(0.1, 20.0)
    for i in range(4):
        metric.update(prediction[i : i + 1], target[i : i + 1])
    parts = metric.reduce().compute()
    assert whole["images"] == parts["images"] == 3
    assert parts == pytest.approx(whole)


def test_nothing_counted_is_none_not_zero():
    found = scores(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    assert found["abs_rel"] is None
    assert found["delta1"] is None
    assert found["images"] == 0


def test_predictions_are_clamped():
    target = torch.full((1, 1, 1, 3), 2.0)
    prediction = torch.tensor([-5.0, 1e9, math.nan]).view(1, 1, 1, 3)
    found = scores(prediction, target, 1.0, 4.0)
    assert found["abs_rel"] == pytest.approx((0.5 + 1 + 0.5) / 3)


@pytest.mark.parametrize(
    ("align", "change"),
    [
        ("median", lambda p: 3.7 * p),
        ("least_squares", lambda p: 0.4 * p + 1.5),
        ("least_squares", lambda p: -2 * p + 50),
    ],
)
def test_an_alignment_takes_off_what_it_fits(align: str, change: Callable):
    prediction, target = maps()
    plain = scores(prediction, target, 0.01, 100.0, align=align)
    changed = scores(change(prediction), target, 0.01, 100.0, align=align)
    for name in ERRORS:
        assert changed[name] == pytest.approx(plain[name], rel=1e-4), name
    assert scores(change(target), target, align=align)["abs_rel"] == pytest.approx(0, abs=1e-5)
    assert scores(change(target), target)["abs_rel"] > 0.1


def test_least_squares_against_numpy():
    prediction, target = maps(1)
    p, t = (x.double().numpy().ravel() for x in (prediction, target))
    scale, shift = np.polyfit(p, t, 1)
    fitted = np.clip(scale * p + shift, 0.1, 20.0)
    found = scores(prediction, target, align="least_squares")
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((fitted - t) ** 2)), rel=1e-6)


def test_median_against_numpy():
    prediction, target = maps(1)  # an even number of pixels
    p, t = (x.double().numpy().ravel() for x in (prediction, target))
    fitted = p * np.median(t) / np.median(p)
    found = scores(prediction, target, 0.001, 1000.0, align="median")
    assert found["abs_rel"] == pytest.approx(np.mean(abs(fitted - t) / t), rel=1e-6)


def test_a_flat_prediction_can_be_aligned():
    _, target = maps(1)
    found = scores(torch.ones_like(target), target, align="least_squares")
    assert found["rmse"] == pytest.approx(float(target.std(correction=0)), rel=1e-4)


def test_silog_knows_no_scale_and_deltas_are_symmetric():
    prediction, target = maps()
    plain = scores(prediction, target, 0.001, 1000.0)
    scaled = scores(2 * prediction, target, 0.001, 1000.0)
    assert scaled["silog"] == pytest.approx(plain["silog"], rel=1e-5)
    turned = scores(target, prediction, 0.001, 1000.0)
    for name in ("delta1", "delta2", "delta3", "rmse", "rmse_log", "log10", "silog"):
        assert turned[name] == pytest.approx(plain[name], rel=1e-5), name


def test_crops():
    assert crop_box("nyu_eigen", 480, 640) == (45, 471, 41, 601)
    assert crop_box("nyu_eigen", 240, 320) == (22, 235, 20, 300)
    # a KITTI image: the numbers of Garg et al. and Eigen et al. as the field's evaluation scripts have them
    assert crop_box("garg", 375, 1242) == (153, 371, 44, 1197)
    assert crop_box("kitti_eigen", 375, 1242) == (124, 342, 44, 1197)


def test_only_the_crop_counts():
    prediction, target = (x.clone() for x in maps(1, 48, 64))
    top, bottom, left, right = crop_box("nyu_eigen", 48, 64)
    inner = scores(prediction[..., top:bottom, left:right], target[..., top:bottom, left:right])
    prediction[..., :top, :] = 99.0
    found = scores(prediction, target, crop="nyu_eigen")
    assert found["pixels"] == (bottom - top) * (right - left)
    assert [found[name] for name in ERRORS] == pytest.approx([inner[name] for name in ERRORS])


def test_the_crop_goes_by_the_image_without_padding():
    prediction, target = maps(1, 48, 64)
    alone = scores(prediction, target, crop="garg")
    padded = [torch.nn.functional.pad(x, (0, 9, 0, 5)) for x in (prediction, target)]
    assert scores(*padded, sizes=[(48, 64)], crop="garg") == pytest.approx(alone)


def test_device_and_bad_arguments():
    assert DepthMetrics(1, 2, device="meta").device.type == "meta"
    with pytest.raises(ValueError, match="expected 0 < min_depth < max_depth"):
        DepthMetrics(0.0, 10.0)
    with pytest.raises(ValueError, match=r"crop is 'eigen'; choose None or one of 'nyu_eigen'"):
        DepthMetrics(1, 2, crop="eigen")
    with pytest.raises(ValueError, match=r"align is 'mean'; choose None or one of 'median'"):
        DepthMetrics(1, 2, align="mean")
    with pytest.raises(ValueError, match="resize the prediction to the target first"):
        DepthMetrics(1, 2).update(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 4, 4))
