"""torchvision's own detectors: the keys, outputs, losses and boxes of torchvision; classes put together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models import get_model
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD, SSDHead

from densekd.errors import UserError
from densekd.export import compare, onnx_bytes, onnx_runner, trace
from densekd.models import LabelSpace
from densekd.models.foreign.torchvision import torchvision
from densekd.models.foreign.torchvision_detection import TorchvisionDetector, default_boxes
from densekd.tasks.detection import Detection
from densekd.types import Batch, Boxes, DenseOutput, DetectorOutput, InputSpec, SetPrediction

K = 3
CLASSES, PALETTE = ["cat", "dog", "cow"], [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
SIZES = {
    "fcos_resnet50_fpn": 128,
    "retinanet_resnet50_fpn": 128,
    "ssdlite320_mobilenet_v3_large": 320,
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(arch, marks=[pytest.mark.slow] if arch.startswith("retinanet") else [])
        for arch in SIZES
    ],
)
def pair(request):
    """torchvision's detector, ours with its weights, and images that torchvision does not resize."""
    arch, size = request.param, SIZES[request.param]
    background = arch.startswith("ssd")
    torch.manual_seed(0)
    sides = {} if background else {"min_size": size, "max_size": size}
    original = get_model(
        arch,
        weights=None,
        weights_backbone=None,
        num_classes=K + background,
        score_thresh=0.01,
        **sides,
    ).eval()
    with torch.no_grad():  # at random all scores are alike: no box stands out
        for name, parameter in original.head.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(4 if "cls_logits" in name or "classification" in name else 1.5)
    ours = torchvision(K, arch=arch).eval()
    ours.load_state_dict(original.state_dict(), strict=True)
    return original, ours, torch.rand(2, 3, size, size)


def test_the_outputs_are_torchvisions(pair):
    original, ours, images = pair
    assert list(ours.state_dict()) == list(original.state_dict())
    x = ours.input_spec.normalize(images)
    with torch.no_grad():
        raw = ours(x)
        wanted = original.head(list(original.backbone(x).values()))
    shapes = zip(raw.logits, raw.anchors, strict=True)
    parts = [
        level.unflatten(1, (len(a) // level[0, 0].numel(), -1)).permute(0, 3, 4, 1, 2).flatten(1, 3)
        for level, a in shapes
    ]
    torch.testing.assert_close(torch.cat(parts, 1), wanted["cls_logits"])


def test_the_boxes_are_torchvisions(pair):
    original, ours, images = pair
    task = Detection(
        CLASSES, PALETTE, score_threshold=0.01, nms_threshold=original.nms_thresh,
        topk_candidates=original.topk_candidates, detections_per_image=original.detections_per_img,
    )  # fmt: skip
    size = (images.shape[-2], images.shape[-1])
    with torch.no_grad():
        found = task.decode(ours(ours.input_spec.normalize(images)), size)
        wanted = original(list(images))
    for ours_, theirs in zip(found, wanted, strict=True):
        assert len(ours_.boxes) == len(theirs["boxes"]) > 0
        torch.testing.assert_close(ours_.scores, theirs["scores"])
        torch.testing.assert_close(ours_.boxes, theirs["boxes"], atol=1e-3, rtol=1e-4)
        assert torch.equal(ours_.labels + (ours.kind == "ssd"), theirs["labels"])


def test_the_losses_are_torchvisions(pair):
    original, ours, images = pair
    task, side = Detection(CLASSES, PALETTE), images.shape[-1]
    boxes = torch.tensor([[0.1, 0.2, 0.6, 0.9], [0.4, 0.1, 0.9, 0.5]]) * side
    labels = torch.tensor([2, 0])
    empty = torch.zeros(0, 4)
    targets = [
        Boxes(b, y, torch.zeros(len(b), dtype=torch.bool), b[:, 2] * 0, 1, (side, side))
        for b, y in ((boxes, labels), (empty, labels[:0]))
    ]
    batch = Batch(
        images,
        targets,
        torch.ones(2, dtype=torch.bool),
        torch.ones(2, side, side, dtype=torch.bool),
        ["a", "b"],
    )
    with torch.no_grad():
        output = DenseOutput(ours(ours.input_spec.normalize(images)))
    with torch.no_grad():
        found = task.loss(output, batch)
    original.train()
    for module in original.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    shift = ours.kind == "ssd"
    wanted = original(
        list(images),
        [{"boxes": boxes, "labels": labels + shift}, {"boxes": empty, "labels": labels[:0]}],
    )
    original.eval()
    assert sorted(v.item() for v in found.values()) == pytest.approx(
        sorted(v.item() for v in wanted.values()), rel=1e-4
    )


def test_maps_have_a_channel_a_class(pair):
    _, ours, images = pair
    with torch.no_grad():
        raw = ours(ours.input_spec.normalize(images))
    maps = Detection(CLASSES, PALETTE).map(DenseOutput(raw))
    assert [m.shape[1] for m in maps] == [K] * len(raw.logits)
    if raw.kind == "ssd":
        a = len(raw.anchors[0]) // raw.logits[0][0, 0].numel()
        p = raw.logits[0].unflatten(1, (a, -1)).softmax(2)[:, :, 1:]
        torch.testing.assert_close(maps[0].sigmoid(), p.amax(1))


@pytest.mark.parametrize("shape", [(65, 97), (96, 128)])
def test_any_size(shape):
    network = torchvision(K, arch="ssdlite320_mobilenet_v3_large").eval()
    with torch.no_grad():
        raw = network(torch.rand(1, 3, *shape))
    assert [len(a) for a in raw.anchors] == [
        x.shape[1] // (K + 1) * x.shape[-2] * x.shape[-1] for x in raw.logits
    ]


@pytest.mark.parametrize("steps", [None, [8, 16]])
def test_ssds_anchors_are_torchvisions(steps):
    generator = DefaultBoxGenerator([[2], [2, 3]], steps=steps)
    images, levels = torch.rand(1, 3, 70, 100), [(9, 13), (5, 7)]
    maps = [torch.rand(1, 1, *level) for level in levels]
    (wanted,) = generator(ImageList(images, [(70, 100)]), maps)
    found = [default_boxes(generator, k, s, (70, 100), images.device) for k, s in enumerate(levels)]
    torch.testing.assert_close(torch.cat(found), wanted)


class TinyMaps(nn.Module):
    """Two levels of 32 channels, of strides 8 and 16."""

    out_channels = 32

    def __init__(self):
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(3, 32, s, stride=s) for s in (8, 16))

    def forward(self, x):
        return {str(i): level(x) for i, level in enumerate(self.levels)}


def tiny(kind):
    """torchvision's own detector of a kind on `TinyMaps`."""
    torch.manual_seed(0)
    if kind == "ssd":
        grid = DefaultBoxGenerator([[2], [2]])
        head = SSDHead([32, 32], grid.num_anchors_per_location(), K + 1)
        detector = SSD(TinyMaps(), grid, (64, 96), K + 1, head=head)
    else:
        grid = AnchorGenerator(((8,), (16,)), ((1.0,),) * 2)
        detector = {"fcos": FCOS, "retinanet": RetinaNet}[kind](
            TinyMaps(), K, anchor_generator=grid
        )
    for name, parameter in detector.head.named_parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(2 if "cls_logits" in name else 1)
    return TorchvisionDetector(detector, kind, K).eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "end"),
    # RetinaNet's own file after NMS is refused by the check where scores lie as near as in an untrained network.
    [("fcos", "boxes"), ("fcos", "detections"), ("retinanet", "boxes"), ("ssd", "boxes"), ("ssd", "detections")],
)  # fmt: skip
def test_they_are_exported_for_sizes_that_vary(kind, end):
    """With boxes before and after NMS, in ONNX Runtime, at the three shapes of the check."""
    pytest.importorskip("onnxruntime")
    task = Detection(
        CLASSES, PALETTE, score_threshold=0.01, topk_candidates=30, detections_per_image=9
    )
    graph = trace(tiny(kind), task, InputSpec(), end, (64, 96))
    run = onnx_runner(onnx_bytes(graph, {}), 1)
    gaps = compare(graph, run, "the file")
    assert len({gap.shape[-2:] for gap in gaps}) == 3
    if end == "detections":
        with torch.no_grad():
            labels = graph.module(torch.rand(1, 3, 64, 96))[2]
        assert (labels >= 0).any()  # there are boxes to compare


def test_names_that_are_none_of_these():
    with pytest.raises(UserError, match=r"finds regions first.*fcos_resnet50_fpn"):
        torchvision(K, arch="fasterrcnn_resnet50_fpn")
    with pytest.raises(UserError, match="did you mean 'ssdlite320_mobilenet_v3_large'"):
        torchvision(K, arch="ssdlite320_mobilenet_v3")
    with pytest.raises(UserError, match="no auxiliary head"):
        torchvision(K, arch="ssd300_vgg16", aux_head=True)


def test_weights_of_other_classes_say_what_to_do(monkeypatch):
    built = get_model(
        "ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=91
    )
    monkeypatch.setattr(
        "densekd.models.foreign.torchvision_detection.get_model", lambda *_, **__: built
    )
    monkeypatch.setattr("densekd.models.foreign.torchvision.get_model_weights", _Weights)
    with pytest.raises(
        UserError, match=r"are for 90 classes.*teacher\.num_classes 90.*teacher\.classes"
    ):
        torchvision(20, arch="ssdlite320_mobilenet_v3_large", weights="DEFAULT")
    assert (
        torchvision(90, arch="ssdlite320_mobilenet_v3_large", weights="DEFAULT").num_classes == 90
    )


class _Weights(dict):
    def __init__(self, _: str) -> None:
        meta = type("Entry", (), {"meta": {"categories": list(range(91))}})
        super().__init__(DEFAULT=meta)


def raw_output(kind: str, channels: int, a: int) -> DetectorOutput:
    g = torch.Generator().manual_seed(0)
    sizes = [(4, 6), (2, 3)]
    return DetectorOutput(
        logits=[torch.randn(2, a * channels, *s, generator=g) for s in sizes],
        boxes=[torch.randn(2, a * 4, *s, generator=g) for s in sizes],
        centerness=None,
        anchors=[torch.rand(h * w * a, 4, generator=g) for h, w in sizes],
        kind=kind,
    )


def test_classes_of_yes_and_no_take_the_largest():
    raw = raw_output("retinanet", 5, 3)
    merged = LabelSpace([[4], [], [0, 2]], 5)(raw)
    p = raw.logits[0].sigmoid().unflatten(1, (3, 5))
    wanted = torch.stack([p[:, :, 4], torch.zeros_like(p[:, :, 0]), p[:, :, [0, 2]].amax(2)], 2)
    torch.testing.assert_close(
        merged.logits[0].sigmoid(), wanted.flatten(1, 2), atol=1e-6, rtol=1e-5
    )
    assert merged.boxes is raw.boxes
    with pytest.raises(UserError, match=r"predicts 5 classes.*expected 6"):
        LabelSpace([[4], [0]], 6)(raw)


def test_classes_of_a_softmax_are_summed_and_the_rest_is_background():
    raw = raw_output("ssd", 6, 4)  # 5 classes and the background
    merged = LabelSpace([[4], [0, 2]], 5)(raw)
    p = raw.logits[1].unflatten(1, (4, 6)).softmax(2)
    wanted = torch.stack(
        [p[:, :, 0] + p[:, :, 2] + p[:, :, 4], p[:, :, 5], p[:, :, 1] + p[:, :, 3]], 2
    )
    torch.testing.assert_close(merged.logits[1].unflatten(1, (4, 3)).softmax(2), wanted)
    Detection(["a", "b"], PALETTE[:2]).check_output(DenseOutput(merged), "teacher")


def test_sets_of_boxes():
    g = torch.Generator().manual_seed(0)
    raw = SetPrediction(torch.randn(2, 7, 5, generator=g), torch.rand(2, 7, 4, generator=g))
    hugging = pytest.importorskip("transformers")
    task = Detection(
        ["a", "b", "c", "d", "e"], PALETTE * 2, score_threshold=0.3, detections_per_image=7
    )
    found = task.decode(raw, (48, 64))
    outputs = type("Outputs", (), {"logits": raw.logits, "pred_boxes": raw.boxes})()
    wanted = hugging.RTDetrImageProcessor().post_process_object_detection(
        outputs, threshold=0.3, target_sizes=[(48, 64)] * 2
    )
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.scores, theirs["scores"])
        assert torch.equal(ours.labels, theirs["labels"])
        limit = ours.boxes.new_tensor([64, 48] * 2)
        torch.testing.assert_close(ours.boxes, theirs["boxes"].clamp(min=0).minimum(limit))
    merged = LabelSpace([[0, 1], [4]], 5)(raw)
    torch.testing.assert_close(merged.logits[..., 0], raw.logits[..., :2].amax(-1))
    output = DenseOutput(replace(raw))
    task.check_output(output, "teacher")
    with pytest.raises(ValueError, match="training by matching is not part of densekd"):
        task.check_output(output, "student")
    with pytest.raises(ValueError, match=r"queries are no places of the image.*Compare features"):
        task.map(output)
