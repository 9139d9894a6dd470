"""A frozen teacher as a program of another runtime: its maps, what it refuses, and what int8 changes."""

import pytest
import torch
from torch import nn

from densekd.errors import UserError
from densekd.export.teacher import TeacherProgram, check_runtime, filled, map_errors, named_maps
from densekd.models.label_space import LabelSpace
from densekd.models.taps import Taps
from densekd.types import DenseOutput, DetectorOutput, InputSpec, SetPrediction

SIZE = (16, 24)


class Small(nn.Module):
    """A network with two maps inside."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, images):
        return self.head(self.body(images))


class Detector(Small):
    """The maps of a detector of two levels."""

    def forward(self, images):
        x = self.body(images)
        levels = [x, nn.functional.avg_pool2d(x, 2)]
        return DetectorOutput(
            logits=[self.head(level) for level in levels],
            boxes=[level[:, :4] for level in levels],
            centerness=None,
            anchors=[torch.full((level.shape[-2] * level.shape[-1], 4), 3.0) for level in levels],
            kind="retinanet",
        )


class Choosing(Small):
    """A network whose way depends on what it sees, which no graph holds."""

    def forward(self, images):
        x = self.body(images)
        return self.head(x if bool(x.sum() > 0) else -x)


def tapped(network: nn.Module, **options) -> Taps:
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return Taps(network, {"inside": "body"}, InputSpec(), **options).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def runtime(request):
    pytest.importorskip("onnxscript")
    pytest.importorskip(request.param)
    return request.param


@torch.no_grad()
def test_prediction_and_features_of_any_batch_are_pytorchs(runtime, images):
    space = LabelSpace([[0, 2], [1], []], 5)
    network = tapped(Small(), label_space=space, scale=1.5)
    program = TeacherProgram(network, images[:2], runtime=runtime)
    for batch in (images[:1], images):
        expected, found = network(batch), program(batch)
        assert found.aux is None
        assert max(map_errors(expected, found).values()) < 1e-5
        assert set(map_errors(expected, found)) == {"prediction", "features.inside"}
    again = program(images)
    assert torch.equal(again.prediction, found.prediction), "equal threads give equal bits"
    strided = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(program(strided).prediction, found.prediction)
    with pytest.raises(UserError, match=r"exported for images of \(3, 16, 24\) and these are"):
        program(images[..., :16])


@torch.no_grad()
def test_features_alone_and_detectors(images):
    runtime = "onnxruntime"
    pytest.importorskip("onnxscript")
    network = tapped(Detector())
    output = TeacherProgram(network, images, runtime=runtime)(images)
    expected = network(images)
    assert max(map_errors(expected, output).values()) < 1e-5
    assert len(output.prediction.logits) == 2
    assert output.prediction.kind == "retinanet"
    assert torch.equal(output.prediction.anchors[1], expected.prediction.anchors[1])
    alone = TeacherProgram(network, images, runtime=runtime, prediction=False)(images)
    assert alone.prediction is None
    assert torch.equal(alone.features["inside"], output.features["inside"])


@torch.no_grad()
def test_int8_is_another_function_that_is_near(images):
    pytest.importorskip("onnxscript")
    pytest.importorskip("openvino")
    network = tapped(Small())
    program = TeacherProgram(
        network, images, runtime="openvino", calibration=[images[:2], images[2:]]
    )
    errors = map_errors(network(images), program(images))
    assert 1e-4 < errors["prediction"] < 0.1


def test_what_cannot_be_exported_is_refused(images):
    pytest.importorskip("onnxscript")
    with pytest.raises(UserError, match="Choosing cannot be exported: "):
        TeacherProgram(tapped(Choosing()), images, runtime="onnxruntime")


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    found = {"onnx", "onnxscript", "onnxruntime"}
    there = lambda name: object() if name in found else None  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", there)
    check_runtime("onnxruntime")
    with pytest.raises(UserError, match=r"densekd\[openvino\]"):
        check_runtime("openvino")
    found.clear()
    with pytest.raises(UserError, match=r"densekd\[export\]"):
        check_runtime("onnxruntime")


def test_an_output_is_taken_apart_and_put_together():
    boxes = SetPrediction(logits=torch.rand(1, 4, 3), boxes=torch.rand(1, 4, 4))
    output = DenseOutput(boxes, aux=None, features={"a": torch.rand(1), "all": [torch.rand(2)]})
    maps = named_maps(output)
    assert [name for name, _ in maps] == [
        "prediction.logits", "prediction.boxes", "features.a", "features.all.0",
    ]  # fmt: skip
    twice = filled(output, iter([2 * value for _, value in maps]))
    assert torch.equal(twice.prediction.boxes, 2 * boxes.boxes)
    assert torch.equal(twice.features["all"][0], 2 * output.features["all"][0])
    with pytest.raises(UserError, match="holds a tuple, which another runtime cannot give"):
        named_maps(DenseOutput((torch.rand(1),)))


def test_errors_of_maps():
    def error(a, b):
        return map_errors(DenseOutput(torch.tensor(a)), DenseOutput(torch.tensor(b)))["prediction"]

    infinity = float("inf")
    assert error([1.0, -4.0], [1.0, -3.0]) == pytest.approx(0.25)
    assert error([1.0, 2.0], [1.0, float("nan")]) == infinity
    assert error([1.0, 2.0], [1.0]) == infinity
    # Classes that a teacher does not know.
    assert error([1.0, -4.0, -infinity], [1.0, -3.0, -infinity]) == pytest.approx(0.25)
    assert error([1.0, 2.0, -infinity], [1.0, 2.0, 3.0]) == infinity
