"""densekd's own operations in real files: int8 weights as QDQ pairs, and NMS."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from densekd.errors import UserError
from densekd.export import (
    ExportedFile,
    Program,
    compare,
    onnx_bytes,
    onnx_runner,
    quantise,
    trace,
)
from densekd.export.graph import OUTPUTS, Deployed, large_enough, limits_of
from densekd.models.taps import Taps
from densekd.ops.tiling import Views
from densekd.rewrite import to_int8
from densekd.tasks import Detection, Segmentation
from densekd.types import Batch, Boxes, DecodedBoxes, DetectorOutput, FinalBoxes, InputSpec

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SIZE = (64, 96)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.PReLU(8),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2),
        nn.ReLU6(),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
    )


@pytest.fixture(scope="module")
def rounding() -> nn.Module:
    net = network()
    to_int8(net, torch.rand(1, 3, *SIZE))
    net.train()(torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0)))
    return net.eval()


def segmentation() -> Segmentation:
    return Segmentation(list("abcd"), [(0, 0, 0)] * 4)


def test_a_network_that_learned_to_round_is_an_int8_file(rounding):
    graph = trace(rounding, segmentation(), InputSpec(), "none", SIZE)
    assert graph.int8
    content = onnx_bytes(graph, {"a": "b"})
    model = onnx.load_from_string(content)
    kinds = Counter(t.data_type for t in model.graph.initializer if np.prod(t.dims) > 16)
    assert kinds[onnx.TensorProto.INT8] == 3
    assert onnx.TensorProto.FLOAT not in kinds  # no weight is left in float
    operations = Counter(node.op_type for node in model.graph.node)
    assert operations["QuantizeLinear"] == 6
    assert operations["DequantizeLinear"] == 6 + 3 + 3  # maps, weights, biases
    assert not any(node.metadata_props for node in model.graph.node)
    run = onnx_runner(content, 1)
    gaps = compare(graph, run, "the file", 1e-3)
    assert len(gaps) == 3
    with pytest.raises(UserError, match="off PyTorch"):
        compare(graph, lambda images: run(images) * 1.1, "the file", 1e-2)


def test_ranges_must_be_known():
    net = network()
    to_int8(net, torch.rand(1, 3, *SIZE))
    with pytest.raises(UserError, match=r"0\.int8_input and 5 more have seen no batch"):
        trace(net.eval(), segmentation(), InputSpec(), "none", SIZE)


def test_weights_have_the_scales_of_onnx_runtimes_own_quantiser(rounding):
    """Two ways to one file: what training rounds is what static quantisation would round."""
    torch.manual_seed(1)
    plain = nn.Conv2d(3, 4, 3, padding=1)
    content = onnx_bytes(trace(plain, segmentation(), InputSpec(), "none", SIZE), {})
    images = [np.random.default_rng(0).random((1, 3, *SIZE), dtype=np.float32)]
    quantised = onnx.load_from_string(quantise(content, images)[0])
    found = [
        onnx.numpy_helper.to_array(t) for t in quantised.graph.initializer if list(t.dims) == [4]
    ]
    to_int8(plain, torch.rand(1, 3, *SIZE))
    ours = plain.parametrizations.weight[0].scale(plain.parametrizations.weight.original)
    assert any(f.dtype == np.float32 and np.allclose(f, ours.numpy(), rtol=1e-5) for f in found)


class TinyDetector(nn.Module):
    """Two levels of a detector of some kind; its anchors lie at multiples of the stride."""

    input_spec = InputSpec()

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.a = 1 if kind == "fcos" else 2
        self.k = 3 + (kind == "ssd")
        outputs = self.a * (self.k + 4) + 1
        self.heads = nn.ModuleList(nn.Conv2d(3, outputs, s, stride=s) for s in (8, 16))
        for head in self.heads:
            nn.init.normal_(head.weight, std=0.1)

    def forward(self, x: torch.Tensor) -> DetectorOutput:
        maps = [head(x) for head in self.heads]
        parts = [m.split([self.a * self.k, self.a * 4, 1], dim=1) for m in maps]
        anchors = []
        for m, stride in zip(maps, (8, 16), strict=True):
            y, x_ = torch.arange(m.shape[-2]) * stride, torch.arange(m.shape[-1]) * stride
            ys, xs = (
                v.flatten().repeat_interleave(self.a) for v in torch.meshgrid(y, x_, indexing="ij")
            )
            anchors.append(
                torch.stack([xs - stride, ys - stride, xs + stride, ys + stride], 1).float()
            )
        return DetectorOutput(
            logits=[p[0] for p in parts],
            boxes=[p[1].relu() if self.kind == "fcos" else p[1] for p in parts],  # as FCOS's head
            centerness=[p[2] for p in parts] if self.kind == "fcos" else None,
            anchors=anchors,
            kind=self.kind,
        )


def detection() -> Detection:
    return Detection(
        list("abc"),
        [(0, 0, 0)] * 3,
        score_threshold=0.3,
        topk_candidates=40,
        detections_per_image=9,
    )


@pytest.mark.parametrize("kind", ["fcos", "retinanet", "ssd"])
def test_boxes_after_nms_are_those_of_torchvisions_rules(kind):
    task, net = detection(), TinyDetector(kind).eval()
    images = torch.rand(3, 3, 80, 112, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        raw = net(images)
        expected = task.decode(raw, (80, 112))
        found = task.decode(FinalBoxes(*task.final_boxes(raw, (80, 112))), (80, 112))
    assert min(len(e.boxes) for e in expected) > 0
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one.boxes, other.boxes, atol=1e-4)
        assert torch.equal(one.labels, other.labels)
        assert torch.allclose(one.scores, other.scores)


def test_fewer_boxes_than_asked_for_are_filled_up():
    task, net = detection(), TinyDetector("fcos").eval()
    nn.init.constant_(net.heads[0].bias, -20)
    nn.init.constant_(net.heads[1].bias, -20)
    with torch.no_grad():
        boxes, scores, labels = task.final_boxes(net(torch.rand(2, 3, 64, 96)), SIZE)
    assert boxes.shape == (2, 9, 4)
    assert not boxes.any()
    assert not scores.any()
    assert (labels == -1).all()
    assert len(task.decode(FinalBoxes(boxes, scores, labels), SIZE)[0].boxes) == 0


@pytest.mark.parametrize("kind", ["fcos", pytest.param("ssd", marks=pytest.mark.slow)])
def test_nms_stands_in_the_file(kind):
    """For any batch and size, in ONNX Runtime; a file with other boxes is refused."""
    graph = trace(TinyDetector(kind), detection(), InputSpec(), "detections", SIZE)
    content = onnx_bytes(graph, {})
    model = onnx.load_from_string(content)
    assert "NonMaxSuppression" in {node.op_type for node in model.graph.node}
    assert tuple(output.name for output in model.graph.output) == OUTPUTS["detections"]
    run = onnx_runner(content, 1)
    gaps = compare(graph, run, "the file")
    assert [gap.differing for gap in gaps] == [0, 0, 0]

    def moved(images):
        boxes, scores, labels = run(images)
        return boxes + 5, scores, labels

    with pytest.raises(UserError, match="off PyTorch"):
        compare(graph, moved, "the file")


@pytest.mark.slow
def test_boxes_before_nms_stand_in_the_file_too():
    """They lead to PyTorch's answer, through the file read again."""
    net, task = TinyDetector("retinanet").eval(), detection()
    graph = trace(net, task, InputSpec(), "boxes", SIZE)
    run = onnx_runner(onnx_bytes(graph, {}), 1)
    assert all(gap.error <= 1e-3 for gap in compare(graph, run, "the file"))
    images = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        raw = Taps(net, {}, InputSpec())(images).prediction
    expected = task.decode(raw, (96, 128))
    outputs = [torch.from_numpy(part) for part in run(images.numpy())]
    found = task.decode(DecodedBoxes(*outputs, "retinanet"), (96, 128))
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one.boxes, other.boxes, atol=1e-3)
        assert torch.equal(one.labels, other.labels)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["detections", "boxes"])
def test_a_file_has_the_ap_of_pytorch(end):
    """The truth is a part of PyTorch's own boxes, moved, so that the AP is neither 0 nor 1."""
    net, task = TinyDetector("fcos").eval(), detection()
    pixels = torch.rand(3, 3, 80, 112, generator=torch.Generator().manual_seed(3))
    batch = Batch(
        images=pixels,
        targets=task.example_targets(3, (80, 112), torch.device("cpu")),
        labelled=torch.ones(3, dtype=torch.bool),
        inside=torch.ones(3, 80, 112, dtype=torch.bool),
        names=list("abc"),
    )
    content = onnx_bytes(trace(net, task, InputSpec(), end, SIZE), {})
    about = {
        "model": {"classes": task.classes, "input": InputSpec().as_dict()},
        "end": end,
        "kind": "fcos",
        "multiple_of": "1",
    }
    program = Program(ExportedFile(Path("a.onnx"), onnx_runner(content, 1), about))
    with torch.no_grad():
        expected = task.predict(Taps(net, {}, InputSpec()), batch, Views())
        found = task.predict(Taps(program, {}, program.input_spec), batch, Views())
    truth = [
        Boxes(
            boxes=image.boxes[1::2] + 2,
            labels=image.labels[1::2],
            ignored=torch.zeros(len(image.labels[1::2]), dtype=torch.bool),
            areas=torch.full((len(image.labels[1::2]),), 100.0),
            image_id=i,
            size=(80, 112),
        )
        for i, image in enumerate(expected)
    ]
    scores = []
    for answer in (expected, found):
        metric = task.metric()
        metric.update(answer, replace(batch, targets=truth))
        scores.append(metric.compute())
    assert 0.05 < scores[0]["ap"] < 0.9
    for name in ("ap", "ap50", "ap75"):
        assert scores[1][name] == pytest.approx(scores[0][name], abs=1e-3)


class OneLevelMore(TinyDetector):
    """Its coarsest maps have one place at the usual example."""

    def __init__(self) -> None:
        super().__init__("fcos")
        self.heads[1] = nn.Conv2d(3, self.a * (self.k + 4) + 1, 64, stride=64)


def test_a_detector_is_traced_where_no_map_has_one_place():
    module = Deployed(OneLevelMore(), detection(), InputSpec(), "boxes").eval()
    assert large_enough(module, 3, SIZE) == ("fcos", (128, 160))
    assert large_enough(module, 3, (128, 192)) == ("fcos", (128, 192))


def test_the_sizes_that_a_graph_holds_for_are_those_of_its_tracing():
    height, width = 32 * torch.export.Dim("h", min=3, max=9), torch.export.Dim("w", min=50)
    program = torch.export.export(
        nn.Conv2d(3, 4, 1),
        (torch.rand(2, 3, 96, 64),),
        dynamic_shapes={"input": {2: height, 3: width}},
    )
    assert limits_of(program) == ((96, 288), (50, None))
