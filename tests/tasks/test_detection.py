"""What detection owns: torchvision's terms and boxes, maps for distillation, views, metric, pictures."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.retinanet import RetinaNet

import densekd.tasks
from densekd.errors import UserError
from densekd.models import load_weights
from densekd.models.fcos import fcos_timm
from densekd.models.retinanet import retinanet_timm
from densekd.ops.tiling import Views
from densekd.tasks.detection import Detection
from densekd.types import Batch, Boxes, DenseOutput, Detections, DetectorOutput

CLASSES = ["cat", "dog", "cow"]
PALETTE = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
SIZE = (128, 192)


def make_task(**options) -> Detection:
    return Detection(CLASSES, PALETTE, **options)


def target(boxes, labels, ignored=None, size=SIZE, image_id=1) -> Boxes:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Boxes(
        boxes,
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(ignored or [False] * len(boxes), dtype=torch.bool),
        (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        image_id,
        size,
    )


def make_batch(targets: list[Boxes], labelled=None, size=SIZE) -> Batch:
    n = len(targets)
    inside = torch.zeros(n, *size, dtype=torch.bool)
    for i, t in enumerate(targets):
        inside[i, : t.size[0], : t.size[1]] = True
    return Batch(
        images=torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(0)),
        targets=targets,
        labelled=torch.tensor(labelled or [True] * n),
        inside=inside,
        names=[str(i) for i in range(n)],
    )


OBJECTS = [
    target([[10, 20, 60, 90], [30, 30, 180, 120]], [0, 2], image_id=1),
    target([[100, 5, 118, 30]], [1], image_id=2),
]


class Features(nn.Module):
    """Our backbone and pyramid as torchvision's detectors want them."""

    def __init__(self, network, channels: int) -> None:
        super().__init__()
        self.network = network
        self.out_channels = channels

    def forward(self, x):
        maps = self.network.backbone(x)
        levels = self.network.fpn(maps[len(maps) - len(self.network.fpn.inner_blocks) :])
        return {str(i): level for i, level in enumerate(levels)}


class Plain(nn.Module):
    """A tapped network, without the taps."""

    def __init__(self, network) -> None:
        super().__init__()
        self.network = network
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x) -> DenseOutput:
        self.seen.append(tuple(x.shape))
        return DenseOutput(self.network(self.network.input_spec.normalize(x)))


def pair(kind: str):
    """Our detector and torchvision's with the same parameters; nothing is resized or padded in theirs."""
    torch.manual_seed(0)
    build = {"fcos": fcos_timm, "retinanet": retinanet_timm}[kind]
    ours = build(3, backbone="resnet10t", pyramid_channels=32, extra_levels=0, head_convs=1)
    # Untrained heads say the same everywhere: sharpen them, so that boxes and scores differ.
    for name, parameter in ours.head.named_parameters():
        if name.endswith("weight") and parameter.ndim == 4:
            nn.init.normal_(parameter, std=0.1)
    nn.init.constant_(ours.head.classification_head.cls_logits.bias, -2.0)
    theirs = {"fcos": FCOS, "retinanet": RetinaNet}[kind](
        Features(ours, 32),
        3,
        anchor_generator=ours.anchors,
        head=ours.head,
        score_thresh=0.05,
        detections_per_img=100,
        min_size=SIZE[0],
        max_size=SIZE[1],
        image_mean=list(ours.input_spec.mean),
        image_std=list(ours.input_spec.std),
    )
    return ours, theirs


@pytest.fixture(scope="module", params=["fcos", "retinanet"])
def detectors(request):
    ours, theirs = pair(request.param)
    # Norms of the backbone in evaluation, so that both see the same; torchvision's flag alone asks for losses.
    ours.eval()
    theirs.eval()
    return ours, theirs


def test_losses_are_torchvisions(detectors):
    ours, theirs = detectors
    batch = make_batch(OBJECTS)
    terms = make_task().loss(Plain(ours)(batch.images), batch)
    theirs.training = True
    expected = theirs(list(batch.images), [{"boxes": t.boxes, "labels": t.labels} for t in OBJECTS])
    theirs.training = False
    assert set(terms) == {"task/classification", "task/box"} | (
        {"task/centerness"} if ours.kind == "fcos" else set()
    )
    names = {"classification": "classification", "box": "bbox_regression"}
    names |= {"centerness": "bbox_ctrness"} if ours.kind == "fcos" else {}
    for mine, name in names.items():
        value = terms[f"task/{mine}"]
        assert value > 0
        assert torch.allclose(value, expected[name], rtol=1e-5), mine


def test_boxes_are_torchvisions(detectors):
    ours, theirs = detectors
    batch = make_batch(OBJECTS)
    with torch.no_grad():
        found = make_task().predict(Plain(ours), batch, Views())
        expected = theirs(list(batch.images))
    for mine, other in zip(found, expected, strict=True):
        assert len(mine.boxes) == 100
        assert len(set(mine.labels.tolist())) > 1
        assert torch.allclose(mine.boxes, other["boxes"], atol=1e-3)
        assert torch.allclose(mine.scores, other["scores"], atol=1e-6)
        assert torch.equal(mine.labels, other["labels"])
        assert torch.equal(mine.scores, mine.scores.sort(descending=True).values)


def test_ignored_objects_are_left_out(detectors):
    ours, _ = detectors
    batch = make_batch(OBJECTS)
    output = Plain(ours)(batch.images)
    crowd = [
        target([[10, 20, 60, 90], [30, 30, 180, 120], [5, 5, 190, 120]], [0, 2, 1], [0, 0, 1]),
        OBJECTS[1],
    ]
    plain = make_task().loss(output, batch)
    assert make_task().loss(output, make_batch(crowd)) == plain


def test_unlabelled_images_count_nothing(detectors):
    ours, _ = detectors
    both = make_batch([OBJECTS[0], target([], [])], labelled=[True, False])
    alone = Batch(
        both.images[:1], both.targets[:1], both.labelled[:1], both.inside[:1], both.names[:1]
    )
    task = make_task()
    raw = Plain(ours)(both.images)
    terms = task.loss(raw, both)
    for name, value in task.loss(Plain(ours)(alone.images), alone).items():
        assert torch.allclose(terms[name], value, rtol=1e-4), name
    none = task.loss(raw, make_batch([target([], [])] * 2, labelled=[False, False]))
    assert list(none.values()) == [0] * len(terms)
    assert set(none) == set(terms)
    assert all(value.requires_grad for value in none.values())


def test_images_without_objects_teach_background(detectors):
    ours, _ = detectors
    task = make_task()
    batch = make_batch([target([], [])] * 2)
    terms = task.loss(Plain(ours)(batch.images), batch)
    assert terms["task/classification"] > 0
    assert terms["task/box"] == 0
    ours.zero_grad()
    sum(terms.values()).backward()
    gradient = ours.head.classification_head.cls_logits.bias.grad
    assert (gradient > 0).all()  # down with all scores
    ours.zero_grad()


def test_half_precision_is_scored_in_float32(detectors):
    ours, _ = detectors
    batch = make_batch(OBJECTS)
    task = make_task()
    with torch.no_grad():
        raw = Plain(ours)(batch.images).prediction

    def cast(dtype: torch.dtype) -> DetectorOutput:
        """What bfloat16 leaves of the outputs, in either precision."""
        maps = {
            name: [x.bfloat16().to(dtype) for x in getattr(raw, name)]
            for name in ("logits", "boxes", "centerness")
            if getattr(raw, name) is not None
        }
        return replace(raw, **maps)

    with torch.autocast("cpu", torch.bfloat16):
        terms = task.loss(DenseOutput(cast(torch.bfloat16)), batch)
        found = task.decode(cast(torch.bfloat16), SIZE)
    expected = cast(torch.float32)
    assert all(value.dtype == torch.float32 for value in terms.values())
    assert terms == task.loss(DenseOutput(expected), batch)
    assert torch.equal(found[0].boxes, task.decode(expected, SIZE)[0].boxes)
    assert torch.equal(found[0].scores, task.decode(expected, SIZE)[0].scores)


def raw_output(anchors: int = 1) -> DetectorOutput:
    """Two levels, 2x2 and 1x1, three classes."""
    generator = torch.Generator().manual_seed(0)

    def maps(channels: int) -> list[torch.Tensor]:
        return [torch.randn(2, channels, side, side, generator=generator) for side in (2, 1)]

    return DetectorOutput(
        maps(3 * anchors),
        maps(4 * anchors),
        maps(1) if anchors == 1 else None,
        [torch.zeros(4 * anchors, 4), torch.zeros(anchors, 4)],
        "fcos" if anchors == 1 else "retinanet",
    )


def test_maps_by_hand():
    task = make_task()
    raw = raw_output()
    assert task.map(DenseOutput(raw)) is raw.logits
    many = raw_output(anchors=2)
    fine, coarse = task.map(DenseOutput(many))
    assert fine.shape == (2, 3, 2, 2)
    assert fine[1, 2, 0, 1] == max(many.logits[0][1, 2, 0, 1], many.logits[0][1, 5, 0, 1])
    assert coarse.shape == (2, 3, 1, 1)
    sure = task.confidence(DenseOutput(raw))
    assert [x.shape for x in sure] == [(2, 1, 2, 2), (2, 1, 1, 1)]
    assert torch.allclose(sure[0][0, 0, 1, 0], raw.logits[0][0, :, 1, 0].max().sigmoid())
    whole = task.holistic_map(DenseOutput(raw))
    assert whole.shape == (2, task.holistic_channels, 2, 2)
    assert whole[0, 1, 1, 1] == max(raw.logits[0][0, 1, 1, 1], raw.logits[1][0, 1, 0, 0])
    with pytest.raises(ValueError, match="no map 'depth'"):
        task.map(DenseOutput(raw), "depth")


def test_masks():
    batch = make_batch([target([], [], size=(100, 192)), target([], [])])
    task = make_task()
    assert task.mask(batch, "none") is None
    for kind in ("label", "padding"):
        assert torch.equal(task.mask(batch, kind), batch.inside)
    assert not task.mask(batch, "label")[0, 100:].any()


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (torch.zeros(1, 3, 2, 2), "the teacher predicts a Tensor; detection expects a detector"),
        ([1], "predicts a list"),
    ],
)
def test_a_prediction_of_another_form_is_an_error(prediction, message):
    with pytest.raises(ValueError, match=message):
        make_task().check_output(DenseOutput(prediction), "teacher")


def test_another_class_count_is_an_error():
    for anchors in (1, 2):
        make_task().check_output(DenseOutput(raw_output(anchors)), "student")
        four = Detection([*CLASSES, "hen"], [*PALETTE, (0, 0, 0)])
        with pytest.raises(ValueError, match=r"the student predicts 3 classes .* this data has 4"):
            four.check_output(DenseOutput(raw_output(anchors)), "student")
    other = raw_output()
    other.kind = "yolo"
    with pytest.raises(ValueError, match="kind 'yolo'; expected one of fcos, retinanet, ssd"):
        make_task().check_output(DenseOutput(other), "student")


class OneBox(nn.Module):
    """Sees nothing, says class 1 over the given part of its input, at one place."""

    def __init__(self, part) -> None:
        super().__init__()
        self.part = torch.tensor(part)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x) -> DenseOutput:
        self.seen.append(tuple(x.shape))
        n, _, h, w = x.shape
        centre = torch.tensor([w / 2, h / 2, w / 2, h / 2])
        corners = self.part * torch.tensor([w, h, w, h])
        # FCOS: distances of the sides from the centre, in units of the anchor's size (here 1)
        distances = (corners - centre) * torch.tensor([-1, -1, 1, 1])
        logits = torch.tensor([-9.0, 9.0, -9.0]).view(1, 3, 1, 1).expand(n, 3, 1, 1)
        return DenseOutput(
            DetectorOutput(
                [logits],
                [distances.view(1, 4, 1, 1).expand(n, 4, 1, 1)],
                [torch.full((n, 1, 1, 1), 9.0)],
                [(centre + torch.tensor([-0.5, -0.5, 0.5, 0.5])).view(1, 4)],
                "fcos",
            )
        )


class Edge(nn.Module):
    """A box over what is bright, its sides where the brightness is half: cuts of the middle row and column."""

    def forward(self, x) -> DenseOutput:
        h, w = x.shape[-2:]
        right = x[0, 0, h // 8].sum()
        bottom = x[0, 0, :, w // 8].sum()
        distances = torch.stack([-right * 0, -right * 0, right, bottom])
        return DenseOutput(
            DetectorOutput(
                [torch.tensor([-9.0, 9.0, -9.0]).view(1, 3, 1, 1)],
                [distances.view(1, 4, 1, 1)],
                [torch.full((1, 1, 1, 1), 9.0)],
                [torch.tensor([[-0.5, -0.5, 0.5, 0.5]])],
                "fcos",
            )
        )


@pytest.mark.parametrize("side", [25, 100, 200, 300])
def test_boxes_lie_where_their_objects_do_at_every_size(side):
    """Bright from the corner to (24, 20): as many bright pixels, in the image's own, at whatever size it is seen."""
    batch = make_batch([target([], [], size=(100, 160))], size=(100, 160))
    batch.images[:] = 0
    batch.images[..., :20, :24] = 1
    (found,) = make_task().predict(Edge(), batch, Views(short_side=side))
    assert torch.allclose(found.boxes, torch.tensor([[0.0, 0, 24, 20]]), atol=0.05)


def test_boxes_come_back_in_the_images_own_pixels():
    """Three images of two sizes in one padded batch, seen at a short side of 64."""
    targets = [
        target([], [], size=(100, 160)),
        target([], [], size=(128, 192)),
        target([], [], size=(100, 160)),
    ]
    network = OneBox([0.25, 0.5, 0.75, 1.25])
    found = make_task().predict(network, make_batch(targets), Views(short_side=64))
    assert sorted(network.seen) == [(1, 3, 64, 96), (2, 3, 64, 102)]
    assert [f.labels.tolist() for f in found] == [[1]] * 3
    # What lies below the image is cut off at its own border, not at the batch's.
    assert torch.allclose(found[0].boxes, torch.tensor([[40.0, 50, 120, 100]]), atol=1e-3)
    assert torch.allclose(found[1].boxes, torch.tensor([[48.0, 64, 144, 128]]), atol=1e-3)
    assert torch.equal(found[0].boxes, found[2].boxes)
    assert (found[0].boxes[:, 3] <= 100).all()


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (Views(scales=(0.5, 1.0)), r"`scales` is \[0.5, 1.0\]: give one"),
        (Views(flip=True), r"`flip` is true"),
        (Views(window=(64, 64)), r"`window` is \[64, 64\]: leave it out"),
    ],
)
def test_views_that_boxes_do_not_know(views, message):
    with pytest.raises(UserError, match=message):
        make_task().predict(OneBox([0.0, 0, 1, 1]), make_batch(OBJECTS), views)


def test_thresholds_reach_the_boxes():
    network, batch = OneBox([0.0, 0, 1, 1]), make_batch(OBJECTS)
    assert len(make_task(score_threshold=0.99).predict(network, batch, Views())[0].boxes) == 1
    assert len(make_task(score_threshold=1.0).predict(network, batch, Views())[0].boxes) == 0
    task = make_task(nms_threshold=0.3, topk_candidates=7, detections_per_image=9)
    for rules in task.rules.values():
        assert (rules.nms_thresh, rules.topk_candidates, rules.detections_per_img) == (0.3, 7, 9)
    assert [make_task().rules[k].nms_thresh for k in ("fcos", "retinanet")] == [0.6, 0.5]


def test_rules_hold_no_memory_and_draw_no_random_numbers():
    before = torch.get_rng_state()
    task = make_task()
    assert torch.equal(torch.get_rng_state(), before)
    for rules in task.rules.values():
        assert all(p.device.type == "meta" for p in rules.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_threshold": 1.5}, "score_threshold is 1.5; expected a number from 0 to 1"),
        ({"nms_threshold": -1}, "nms_threshold is -1"),
        ({"topk_candidates": 0}, "topk_candidates is 0; expected at least 1"),
    ],
)
def test_settings_outside_their_range(options, message):
    with pytest.raises(ValueError, match=message):
        make_task(**options)


def test_metric_counts_labelled_images():
    pytest.importorskip("faster_coco_eval")
    task = make_task(category_ids=[1, 18, 21])
    metric = task.metric("cpu")
    batch = make_batch([*OBJECTS, target([], [], image_id=-1)], labelled=[True, True, False])
    perfect = [
        Detections(t.boxes, torch.linspace(0.9, 0.8, len(t.boxes)), t.labels) for t in batch.targets
    ]
    metric.update(perfect, batch)
    scores = metric.compute()
    assert scores["images"] == 2
    assert set(task.metric_names) <= set(scores)
    assert task.quick_metric in scores
    assert all(column.key in scores for column in task.columns)
    assert scores["ap"] == 1
    assert {r["category_id"] for r in metric.results()} == {1, 18, 21}
    lines = task.summary(scores)
    assert lines[-1] == "AP 100.0, AP50 100.0, AP75 100.0"
    assert lines[0] == "cat  100.0"
    assert any("3 objects in 2 images" in line for line in lines)


def reader_target(boxes, labels, ignored=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return SimpleNamespace(
        boxes=boxes,
        labels=np.array(labels, np.int64),
        ignored=np.array(ignored or [False] * len(boxes), bool),
    )


def test_constant_guess_by_hand():
    """Cats: two upper left, one lower right; a dog that is ignored; cows nowhere."""
    corner, other = [0, 0, 50, 25], [60, 30, 100, 50]
    pairs = [
        (reader_target([corner], [0]), (50, 100)),
        (reader_target([[0, 0, 98, 52], other], [0, 1], [False, True]), (100, 200)),
        (reader_target([other], [0]), (50, 100)),
        (reader_target([], []), (50, 100)),
    ]
    task = make_task()
    constant = task.constant_guess(iter(pairs))
    assert [(label, score) for label, score, _ in constant] == [(0, 0.5), (0, 0.25)]
    assert constant[0][2] in ([0, 0, 0.5, 0.5], pytest.approx([0, 0, 0.49, 0.52]))
    assert constant[1][2] == pytest.approx([0.6, 0.6, 1, 1])
    (found,) = task.guess(constant, make_batch([target([], [], size=(100, 100))]))
    assert found.scores.tolist() == [0.5, 0.25]
    assert torch.allclose(found.boxes[1], torch.tensor([60.0, 60, 100, 100]))
    assert task.guess([], make_batch([target([], [])]))[0].boxes.shape == (0, 4)


def test_example_targets_can_be_learned_from():
    task = make_task()
    examples = task.example_targets(4, SIZE, torch.device("cpu"))
    assert [t.labels.tolist() for t in examples] == [[0], [1], [2], [0]]
    assert examples[0].boxes.tolist() == [[48, 32, 144, 96]]
    assert len({t.image_id for t in examples}) == 4
    network = OneBox([0.25, 0.25, 0.75, 0.75])
    batch = make_batch(examples)
    terms = task.loss(network(batch.images), batch)
    assert all(value.isfinite() for value in terms.values())


def test_it_is_imported_when_asked_for():
    """torchvision's operators double the time of `import densekd.tasks`."""
    assert "Detection" not in vars(densekd.tasks)
    assert densekd.tasks.Detection is Detection
    with pytest.raises(AttributeError, match="has no attribute 'Detect'"):
        densekd.tasks.Detect  # noqa: B018


def test_picture():
    task = make_task()
    image = np.full((100, 160, 3), 7, np.uint8)
    truth = reader_target([[20, 40, 80, 90], [100, 40, 140, 90]], [0, 1], [False, True])
    drawn = task.picture(image, truth)
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert drawn[60, 20].tolist() == [200, 0, 0]
    assert drawn[60, 50].tolist() == [7, 7, 7]
    assert drawn[60, 100].tolist() == [160, 160, 160]  # ignored
    assert (image == 7).all()
    found = Detections(
        torch.tensor([[20.0, 0, 80, 90], [100, 40, 140, 90]]),
        torch.tensor([0.9, 0.1]),
        torch.tensor([2, 0]),
    )
    drawn = task.picture(image, found)
    assert drawn[60, 20].tolist() == [0, 0, 200]
    assert drawn[60, 100].tolist() == [7, 7, 7]  # too unsure
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert np.array_equal(task.picture(image, nothing), image)


def test_torchvisions_checkpoint_finds_torchvisions_boxes():
    """From a file of torchvision's to boxes, end to end, at another size than the image's."""
    from densekd.models.fcos import fcos_resnet50

    torch.manual_seed(0)
    theirs = torchvision.models.detection.fcos_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=3, score_thresh=0.05
    ).eval()
    nn.init.normal_(theirs.head.classification_head.cls_logits.weight, std=0.5)
    nn.init.normal_(theirs.head.regression_head.bbox_reg.weight, std=0.3)
    theirs.transform.min_size, theirs.transform.max_size = (128,), 192
    ours = fcos_resnet50(3).eval()
    load_weights(ours, theirs.state_dict())
    batch = make_batch([target([], [])])
    with torch.no_grad():
        (found,) = make_task().predict(Plain(ours), batch, Views())
        (expected,) = theirs(list(batch.images))
    assert len(found.boxes) > 10
    assert torch.allclose(found.scores, expected["scores"], atol=1e-5)
    assert torch.allclose(found.boxes, expected["boxes"], atol=1e-2)
