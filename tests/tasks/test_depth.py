"""What depth owns: terms, masks, decoding, metric, guess, pictures."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from densekd.losses import berhu, depth_cross_entropy, depth_l1, silog, virtual_normal
from densekd.ops.depth_bins import bins_to_depth
from densekd.ops.resize import resize_map
from densekd.ops.tiling import Views
from densekd.tasks.base import Task
from densekd.tasks.depth import GUESS_ROWS, Depth
from densekd.types import Batch, DenseOutput, DepthMaps

RANGE = {"min_depth": 0.5, "max_depth": 8.0}
BOUNDS = (0.5, 8.0)


@dataclass
class Target:
    depth: np.ndarray


def make_batch(depth, labelled=None, inside=None, intrinsics=None):
    n, _, h, w = depth.shape
    if intrinsics is None:
        intrinsics = torch.tensor([w, w, w / 2, h / 2], dtype=torch.float32).repeat(n, 1)
    return Batch(
        images=torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(9)),
        targets=DepthMaps(depth, intrinsics),
        labelled=torch.ones(n, dtype=torch.bool) if labelled is None else torch.tensor(labelled),
        inside=torch.ones(n, h, w, dtype=torch.bool) if inside is None else torch.tensor(inside),
        names=[str(i) for i in range(n)],
    )


def depths(n=2, h=12, w=16, seed=0):
    return 1 + 4 * torch.rand(n, 1, h, w, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def batch():
    depth = depths()
    depth[0, 0, 0] = 0.0
    return make_batch(depth)


@pytest.fixture
def logits():
    return torch.randn(2, 10, 6, 8, generator=torch.Generator().manual_seed(1))


def test_it_is_a_task():
    names = {n for n in dir(Task) if not n.startswith("_")} | set(Task.__annotations__)
    for task in (Depth(**RANGE), Depth(**RANGE, bins=10)):
        assert not [name for name in names if not hasattr(task, name)]
        assert task.smaller_is_better < set(task.metric_names)
        assert task.quick_metric in task.metric_names
    assert Depth(**RANGE).network_arguments == {"num_classes": 1, "depth_range": BOUNDS}
    assert Depth(**RANGE, bins=10).network_arguments["num_classes"] == 10
    assert Depth(**RANGE).term_options == {"pixel_wise": {"form": "regression"}}
    assert Depth(**RANGE, bins=10).term_options == {"pixel_wise": {"form": "softmax"}}


def test_terms_of_metres(batch):
    task = Depth(**RANGE, losses={"silog": 1, "berhu": 0.5, "l1": 2})
    prediction = depths(2, 6, 8, seed=2)
    terms = task.loss(DenseOutput(prediction), batch)
    assert list(terms) == ["task/silog", "task/berhu", "task/l1"]
    full, target = resize_map(prediction, (12, 16)), batch.targets.depth
    assert torch.equal(terms["task/silog"], silog(full, target))
    assert torch.equal(terms["task/berhu"], 0.5 * berhu(full, target))
    assert torch.equal(terms["task/l1"], 2 * depth_l1(full, target))
    assert list(Depth(**RANGE).loss(DenseOutput(prediction), batch)) == ["task/silog"]


def test_terms_of_bins(batch, logits):
    task = Depth(**RANGE, bins=10, virtual_normal_samples=50)
    torch.manual_seed(4)
    terms = task.loss(DenseOutput(logits), batch)
    assert list(terms) == ["task/cross_entropy", "task/virtual_normal"]
    target = batch.targets.depth
    expected = depth_cross_entropy(logits, target, depth_range=BOUNDS)
    assert torch.equal(terms["task/cross_entropy"], expected)
    full = resize_map(bins_to_depth(logits, BOUNDS), (12, 16))
    torch.manual_seed(4)
    normals = virtual_normal(full, target, batch.targets.intrinsics, samples=50)
    assert torch.equal(terms["task/virtual_normal"], 6 * normals)


@pytest.mark.parametrize("bins", [0, 10])
def test_invalid_pixels_and_unlabelled_images_count_nothing(bins, logits):
    """Out of range, unknown, padding, an image without a label: what is predicted there gets no gradient."""
    losses = {"l1": 1, "silog": 1, "virtual_normal": 1} | ({"cross_entropy": 1} if bins else {})
    task = Depth(**RANGE, bins=bins, losses=losses)
    depth = depths()
    depth[0, 0, 0], depth[0, 0, 1], depth[0, 0, 2] = 0.1, 9.0, torch.nan
    inside = torch.ones(2, 12, 16, dtype=torch.bool)
    inside[0, 3] = False
    batch = make_batch(depth, labelled=[True, False], inside=inside.tolist())
    batch.targets.intrinsics[1] = torch.nan
    prediction = (resize_map(logits, (12, 16)) if bins else depths(seed=3)).requires_grad_()
    sum(task.loss(DenseOutput(prediction), batch).values()).backward()
    counted = (prediction.grad != 0).any(1)
    assert not counted[1].any()
    assert not counted[0, :4].any()
    assert counted[0, 4:].all()


def test_nothing_valid_is_a_finite_zero(logits):
    batch = make_batch(torch.zeros(2, 1, 12, 16), intrinsics=torch.full((2, 4), torch.nan))
    logits.requires_grad_()
    total = sum(Depth(**RANGE, bins=10).loss(DenseOutput(logits), batch).values())
    assert total == 0
    total.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_unknown_intrinsics_say_what_to_do(batch, logits):
    batch.targets.intrinsics[1] = torch.nan
    with pytest.raises(
        ValueError,
        match=r"image 1 .*its option `intrinsics`.*leave virtual_normal out of the losses",
    ):
        Depth(**RANGE, bins=10).loss(DenseOutput(logits), batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"losses": {"huber": 1}}, r"no loss 'huber'; choose of cross_entropy, virtual_normal"),
        ({"losses": {"cross_entropy": 1}}, r"needs depth bins: set bins"),
        ({"losses": {}}, r"needs one with a weight above 0"),
        ({"losses": {"silog": 0}}, r"needs one with a weight above 0"),
        ({"losses": {"silog": 1, "l1": -1}}, r"weights are finite numbers from 0 up"),
        ({"bins": 1}, r"1 depth bins leave nothing"),
        ({"min_depth": 0.0}, r"expected 0 < nearest < farthest"),
        ({"crop": "middle"}, r"crop is 'middle'"),
        ({"virtual_normal_samples": 0}, r"samples is 0"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        Depth(**(RANGE | options))


def test_a_loss_of_weight_0_asks_for_nothing(batch):
    """Neither the bins of cross_entropy nor the camera of virtual_normal."""
    batch.targets.intrinsics[:] = torch.nan
    task = Depth(**RANGE, losses={"silog": 1, "cross_entropy": 0, "virtual_normal": 0})
    assert list(task.loss(DenseOutput(depths(2, 6, 8, seed=2)), batch)) == ["task/silog"]


@pytest.mark.parametrize(
    "prediction", [torch.zeros(1, 3, 2, 2), torch.zeros(1, 10, 2), [1], None, torch.zeros(3)]
)
def test_a_prediction_of_another_form_is_an_error(prediction):
    with pytest.raises(ValueError, match=r"the teacher's .* with 10 bins expects \(N, 10, h, w\)"):
        Depth(**RANGE, bins=10).check_output(DenseOutput(prediction), "teacher")
    with pytest.raises(ValueError, match=r"without bins expects \(N, 1, h, w\)"):
        Depth(**RANGE).check_output(DenseOutput(prediction), "student")
    Depth(**RANGE).check_output(DenseOutput(torch.zeros(2, 1, 5, 6)), "teacher")


def test_masks():
    """A row a case: unknown, known, too far, padding."""
    depth = torch.tensor([[0.0, 2.0, 99.0, 2.0]]).view(1, 1, 1, 4).repeat(2, 1, 1, 1)
    inside = [[[True, True, True, False]]] * 2
    batch = make_batch(depth, labelled=[True, False], inside=inside)
    task = Depth(**RANGE)
    assert task.mask(batch, "none") is None
    assert task.mask(batch, "padding").tolist() == inside
    # an image without any label is compared everywhere inside
    assert task.mask(batch, "label").tolist() == [[[False, True, False, False]], inside[0]]


def test_maps(logits):
    metres, bins = Depth(**RANGE), Depth(**RANGE, bins=10)
    depth = depths(seed=5)
    assert torch.equal(bins.map(DenseOutput(logits)), logits)
    assert torch.equal(bins.map(DenseOutput(logits), "depth"), bins_to_depth(logits, BOUNDS))
    assert torch.equal(metres.map(DenseOutput(depth), "depth"), depth)
    top = logits.softmax(1).max(1, keepdim=True).values
    assert torch.equal(bins.confidence(DenseOutput(logits)), top)
    assert torch.equal(metres.confidence(DenseOutput(depth)), torch.ones_like(depth))
    ends = torch.tensor([0.5, 2.0, 8.0, 100.0]).view(1, 1, 1, 4)
    place = metres.holistic_map(DenseOutput(ends)).flatten().tolist()
    assert place == pytest.approx([0, 0.5, 1, 1], abs=1e-6)
    assert bins.holistic_map(DenseOutput(logits)).shape == (2, 1, 6, 8)


class Rows(nn.Module):
    """Answers every image alike at a quarter of its size: depth that grows with the row and with the column."""

    def forward(self, images):
        n, _, h, w = images.shape
        y, x = torch.linspace(1, 2, h // 4), torch.linspace(0, 1, w // 4)
        return DenseOutput((y[:, None] + x).expand(n, 1, -1, -1))


def test_predict_averages_views_in_metres():
    batch = make_batch(depths(2, 16, 24))
    task = Depth(**RANGE)
    plain = task.predict(Rows(), batch, Views())
    assert plain.shape == (2, 1, 16, 24)
    expected = torch.linspace(1, 2, 16)[:, None] + torch.linspace(0, 1, 24)
    assert torch.allclose(plain[0, 0], expected, atol=1e-6)
    # with the mirrored view the columns even out
    both = task.predict(Rows(), batch, Views(flip=True))
    assert torch.allclose(both[0, 0], (torch.linspace(1, 2, 16)[:, None] + 0.5).expand(16, 24))
    # Rows looks at no picture: its depth at half the size counts half, at twice the size twice.
    scaled = task.predict(Rows(), batch, Views(scales=(0.5, 1.0, 2.0)))
    assert torch.allclose(scaled, plain * 3.5 / 3, atol=1e-5)


class Wall(nn.Module):
    """Knows the wall at 2 m by its size in the picture, 16 pixels high: twice as high is 1 m away."""

    def forward(self, images):
        return DenseOutput(images.new_full((len(images), 1, 4, 6), 2.0 * 16 / images.shape[-2]))


@pytest.mark.parametrize("scales", [(1.0,), (2.0,), (0.5, 1.0, 2.0)])
@pytest.mark.parametrize("flip", [False, True])
def test_a_scale_is_coming_nearer(scales, flip):
    """As in training (`Augment`), so that a network that learned it answers alike at every scale."""
    batch = make_batch(depths(2, 16, 24))
    depth = Depth(**RANGE).predict(Wall(), batch, Views(scales=scales, flip=flip))
    assert torch.allclose(depth, torch.full((2, 1, 16, 24), 2.0))


def test_short_side_is_resolution():
    class Two(nn.Module):
        def forward(self, images):
            return DenseOutput(images.new_full((len(images), 1, 4, 6), 2.0))

    depth = Depth(**RANGE).predict(Two(), make_batch(depths(1, 16, 24)), Views(short_side=32))
    assert torch.allclose(depth, torch.full((1, 1, 16, 24), 2.0))


def test_predict_decodes_bins():
    class Bins(nn.Module):
        def forward(self, images):
            return DenseOutput(torch.zeros(len(images), 10, 3, 4))

    batch = make_batch(depths())
    for views in (Views(), Views(flip=True)):
        depth = Depth(**RANGE, bins=10).predict(Bins(), batch, views)
        assert torch.allclose(depth, torch.full((2, 1, 12, 16), 2.0))  # √(0.5 · 8)


def test_metric():
    task = Depth(**RANGE)
    depth = torch.full((2, 1, 4, 6), 2.0)
    depth[0, 0, 0, 0] = 9.0  # out of range
    inside = torch.ones(2, 4, 6, dtype=torch.bool)
    inside[0, :, 5] = False
    batch = make_batch(depth, labelled=[True, False], inside=inside.tolist())
    metric = task.metric()
    prediction = torch.full_like(depth, 3.0)
    metric.update(prediction, batch)
    scores = metric.compute()
    assert scores["images"] == 1
    assert scores["pixels"] == 19
    assert scores["abs_rel"] == pytest.approx(0.5)
    assert {*task.metric_names, *(c.key for c in task.columns)} <= set(scores)
    lines = task.summary(scores)
    assert lines[-1] == "AbsRel 0.5000"
    assert lines[0] == "1 images, 19 pixels, 0.5 to 8 m"
    assert task.metric(device="meta").errors.device.type == "meta"
    nothing = task.metric()
    nothing.update(prediction, make_batch(depth, labelled=[False, False]))
    assert task.summary(nothing.compute())[-1] == "AbsRel -"


def test_the_crop_does_not_see_padding():
    task = Depth(**RANGE, crop="nyu_eigen")
    depth = torch.full((1, 1, 60, 80), 2.0)
    depth[..., 48:, :] = depth[..., 64:] = 0
    inside = (depth[:, 0] > 0).tolist()
    metric = task.metric()
    metric.update(depth, make_batch(depth, inside=inside))
    assert metric.compute()["pixels"] == (47 - 4) * (60 - 4)


def test_guess_is_the_median_of_each_height():
    task = Depth(**RANGE)
    rows = torch.linspace(1, 5, 64).numpy()
    targets = []
    for factor in (0.9, 1.0, 1.3):
        depth = np.repeat(factor * rows[:, None], 40, axis=1).astype(np.float32)
        depth[:, 20:] = 0
        targets.append((Target(depth), (64, 40)))
    constant = task.constant_guess(iter(targets))
    assert constant.shape == (GUESS_ROWS,)
    assert constant[0].item() == pytest.approx(1.0)
    assert constant[-1].item() == pytest.approx(5.0)
    # without the (height, width), and rows that are known nowhere: the median of all
    hole = targets[1][0].depth.copy()
    hole[:32] = 0
    again = task.constant_guess([Target(hole)])
    assert again[0] == again[16:].median()
    guess = task.guess(constant, make_batch(depths(2, 9, 7)))
    assert guess.shape == (2, 1, 9, 7)
    assert torch.allclose(guess[0, 0, :, 0], torch.linspace(1, 5, 9), atol=0.1)
    with pytest.raises(ValueError, match="no training targets"):
        task.constant_guess([])


def test_example_targets_can_be_learned_from(logits):
    task = Depth(**RANGE, bins=10, losses={"cross_entropy": 1, "virtual_normal": 1})
    targets = task.example_targets(2, (24, 32), torch.device("cpu"))
    assert targets.depth.shape == (2, 1, 24, 32)
    batch = make_batch(targets.depth, intrinsics=targets.intrinsics)
    valid = task.valid(batch)
    assert 0.5 < valid.float().mean() < 1
    terms = task.loss(DenseOutput(logits), batch)
    assert all(value.isfinite() and value > 0 for value in terms.values())


def test_picture():
    task = Depth(**RANGE)
    image = np.zeros((4, 6, 3), np.uint8)
    depth = np.array([[0.5, 8.0], [0.0, np.nan]], np.float32)
    drawn = task.picture(image, Target(depth))
    assert drawn.shape == (4, 6, 3)
    assert drawn.dtype == np.uint8
    near, far = drawn[0, 0].astype(int), drawn[0, -1].astype(int)
    assert near[0] > near[2]  # red
    assert far[2] > far[0]  # blue
    assert not drawn[-1].any()
    # a prediction (1, h, w) is drawn as the target is
    assert np.array_equal(task.picture(image, torch.from_numpy(depth)[None]), drawn)
