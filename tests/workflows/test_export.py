"""`densekd export` and `densekd latency`: files that answer as PyTorch does, and what is refused."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import densekd
from densekd.cli.main import main
from densekd.errors import UserError
from densekd.export import compare, onnx_runner, trace
from densekd.ops.resize import resize_map
from densekd.tasks import Segmentation
from densekd.types import InputSpec
from densekd.workflows.int8 import int8_data, int8_text, measured
from densekd.workflows.open_model import open_model
from tests.workflows.test_functions import TASKS

SIZE = ("--size", "64", "96")


@pytest.fixture(scope="module")
def written_program(runs, tmp_path_factory):
    """The segmentation network as a program, and what was said."""
    file = tmp_path_factory.mktemp("files") / "a.pt2"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert export(runs / "segmentation", "--out", file, *SIZE, "--json") == 0
    return file, json.loads(said.getvalue())


@pytest.fixture(scope="module")
def program_file(written_program):
    return written_program[0]


@pytest.fixture(scope="module")
def onnx_file(runs, tmp_path_factory):
    """The segmentation network as an ONNX file, and what was said."""
    pytest.importorskip("onnx")
    file = tmp_path_factory.mktemp("files") / "a.onnx"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert export(runs / "segmentation", "--out", file, *SIZE) == 0
    return file, said.getvalue()


def export(*words: object) -> int:
    return main(["export", *map(str, words)])


def test_a_program_answers_as_predict_does(runs, written_program):
    file, said = written_program
    assert said["file"] == str(file)
    assert len(said["checks"]) == 3
    assert all(check["error"] <= 1e-3 for check in said["checks"])
    extra = {"densekd.json": ""}
    program = torch.export.load(file, extra_files=extra)
    about = json.loads(extra["densekd.json"])
    model = densekd.load(runs / "segmentation")
    assert about["classes"] == model.classes
    assert "float32 in [0, 1]" in about["input"]
    image = np.random.default_rng(0).integers(0, 256, (75, 101, 3), dtype=np.uint8)
    batch = torch.from_numpy(image.transpose(2, 0, 1).copy())[None].float() / 255
    classes = program.module()(batch)[0].numpy()
    assert classes.dtype == np.uint8
    assert (classes == model.predict(image)).mean() > 0.999


@pytest.mark.slow
def test_depth_is_decoded_to_metres(runs, tmp_path, capsys):
    file = tmp_path / "a.pt2"
    assert export(runs / "depth", "--out", file, *SIZE) == 0
    assert "multiples of 32" in capsys.readouterr().out
    image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    batch = torch.from_numpy(image.transpose(2, 0, 1).copy())[None].float() / 255
    metres = torch.export.load(file).module()(batch)[0, 0].detach().numpy()
    assert np.abs(metres - densekd.load(runs / "depth").predict(image)).max() < 1e-3


def test_the_networks_own_maps_can_be_had(runs, tmp_path):
    file = tmp_path / "a.pt2"
    assert export(runs / "segmentation", "--out", file, *SIZE, "--with", "none") == 0
    images = torch.rand(3, 3, 64, 80)
    maps = torch.export.load(file).module()(images)
    expected = densekd.load(runs / "segmentation")(images).prediction
    assert maps.shape == expected.shape
    assert torch.allclose(maps, expected, atol=1e-4)


@pytest.mark.slow
def test_onnx_answers_as_predict_does(runs, onnx_file, capsys):
    onnx = pytest.importorskip("onnx")
    file, said = onnx_file
    assert said.count("equals PyTorch at") == 3
    model = densekd.load(runs / "segmentation")
    proto = onnx.load(file)
    about = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(about["classes"]) == model.classes
    assert about["task"] == "segmentation"
    assert [
        d.dim_param or d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim
    ] == [
        "batch",
        3,
        "height",
        "width",
    ]
    image = np.random.default_rng(0).integers(0, 256, (75, 101, 3), dtype=np.uint8)
    batch = (image.transpose(2, 0, 1)[None] / 255).astype(np.float32)
    assert (onnx_runner(str(file), 1)(batch)[0] == model.predict(image)).mean() > 0.999
    assert export(runs / "segmentation", "--out", file) == 2  # never overwritten
    assert "exists" in capsys.readouterr().err
    words = ("latency", runs / "segmentation", "--onnx", file, *SIZE, "--runs", 2, "--threads", 1)
    assert main([*map(str, words), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said["milliseconds"]) == {"PyTorch", "ONNX Runtime"}


@pytest.mark.slow
def test_the_authors_checkpoint_as_onnx(shared, tmp_path, capsys):
    pytest.importorskip("onnx")
    weights = shared / "checkpoints" / "espnet_camvid" / "ESPNet_base.pth"
    file = tmp_path / "a.onnx"
    assert export(weights, "--recipe", "camvid/espnet", "--out", file, *SIZE, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["checks"]) == 3
    from densekd.data.files import read_image
    from densekd.workflows.open_model import open_model
    from densekd.workflows.recipe import read_recipe

    image = read_image(min((shared / "camvid" / "val").glob("*.png")))
    batch = (image.transpose(2, 0, 1)[None] / 255).astype(np.float32)
    classes = onnx_runner(str(file), 1)(batch)[0]
    expected = open_model(weights, read_recipe("camvid/espnet")).predict(image)
    assert (classes == expected).mean() > 0.999


@pytest.mark.slow
@pytest.mark.parametrize(("task", "size"), [("segmentation", (70, 70)), ("depth", (64, 96))])
def test_tflite_answers_as_predict_does_at_its_one_size(runs, tmp_path, capsys, task, size):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    pytest.importorskip("litert_torch")
    file = tmp_path / "a.tflite"
    assert export(runs / task, "--out", file, "--size", 32, 64) == 2
    assert "give it, at least 64" in capsys.readouterr().err
    assert export(runs / task, "--out", file, "--size", *size, "--json") == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [check["shape"] for check in said["checks"]] == [[1, 3, *size]] * 3
    with zipfile.ZipFile(file) as archive:
        about = json.loads(archive.read("densekd/densekd.json"))
    model = densekd.load(runs / task)
    assert about["classes"] == model.classes
    assert f"sizes: {size[0]}x{size[1]} alone" in about["input"]
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    network = interpreter.Interpreter(model_path=str(file))
    network.allocate_tensors()
    batch = (image.transpose(2, 0, 1)[None] / 255).astype(np.float32)
    network.set_tensor(network.get_input_details()[0]["index"], batch)
    network.invoke()
    answer = network.get_tensor(network.get_output_details()[0]["index"])
    if task == "segmentation":
        assert (answer[0] == model.predict(image)).mean() > 0.999
    else:
        assert np.abs(answer[0, 0] - model.predict(image)).max() < 1e-3
    again = open_model(file)
    difference = np.abs(again.predict(image).astype(float) - model.predict(image))
    assert (difference > 1e-3).mean() < 1e-3
    with pytest.raises(UserError, match=rf"takes images of {size[0]}x{size[1]} alone and the"):
        again.predict(image[:-1])
    capsys.readouterr()
    assert main(["latency", str(file), str(runs / task), "--runs", "1", "--json"]) == 0
    timed = json.loads(capsys.readouterr().out)
    assert timed["size"] == list(size)
    assert [row["runtime"] for row in timed["rows"]] == ["LiteRT", "PyTorch"]
    if task == "depth":  # the scenes are of this size
        found = densekd.evaluate(file, runs / task / "config.yaml", device="cpu")
        exact = densekd.evaluate(runs / task, device="cpu")
        assert found["abs_rel"] == pytest.approx(exact["abs_rel"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "answers"),
    [("segmentation", ["classes"]), ("detection", ["boxes", "scores", "levels"])],
)
def test_a_core_ml_package_says_what_it_takes_and_gives(
    runs, tmp_path, capsys, monkeypatch, task, answers
):
    tools = pytest.importorskip("coremltools")
    package = tmp_path / "a.mlpackage"
    assert export(runs / task, "--out", package, *SIZE) == 0
    assert "its answers were not checked, since Core ML runs on a Mac" in capsys.readouterr().out
    said = tools.utils.load_spec(str(package)).description
    assert [list(entry.type.multiArrayType.shape) for entry in said.input] == [[1, 3, 64, 96]]
    assert [entry.name for entry in said.output] == answers
    about = said.metadata.userDefined
    assert json.loads(about["classes"]) == densekd.load(runs / task).classes
    assert "sizes: 64x96 alone" in about["input"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.mlpackage"]
    assert export(runs / task, "--out", package, *SIZE) == 2
    assert "exists" in capsys.readouterr().err
    # On a Mac the answers are compared, and a wrong one leaves no package behind.
    monkeypatch.setattr("densekd.workflows.export.runs_here", lambda: True)
    shape = (1, 64, 96) if task == "segmentation" else (1, 7, 4)
    monkeypatch.setattr(
        "densekd.workflows.export.coreml_runner", lambda *_: lambda images: np.zeros(shape)
    )
    assert export(runs / task, "--out", tmp_path / "b.mlpackage", *SIZE) == 2
    assert "Core ML" not in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["a.mlpackage"]


def test_core_ml_without_its_package_and_packages_as_models(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("densekd.export.coreml.importlib.util.find_spec", lambda name: None)
    assert export(tmp_path, "--out", tmp_path / "a.mlpackage") == 2
    assert "densekd[coreml]" in capsys.readouterr().err
    (tmp_path / "b.mlpackage").mkdir()
    with pytest.raises(UserError, match="runs on a Mac alone and is not read by densekd"):
        open_model(tmp_path / "b.mlpackage")


def test_tflite_without_its_packages_names_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("densekd.export.tflite.importlib.util.find_spec", lambda name: None)
    assert export(tmp_path, "--out", tmp_path / "a.tflite") == 2
    assert "densekd[tflite]" in capsys.readouterr().err


def test_latency_counts_and_times(runs, capsys):
    assert main(["latency", str(runs / "segmentation"), *SIZE, "--runs", "2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    network = densekd.load(runs / "segmentation").model
    assert said["parameters"] == sum(p.numel() for p in network.parameters())
    assert said["macs"] > 0
    assert said["size"] == [64, 96]
    row = said["milliseconds"]["PyTorch"]
    assert 0 < row["median"] <= row["p95"]
    threads = torch.get_num_threads()
    assert main(["latency", str(runs / "depth"), *SIZE, "--runs", "1", "--threads", "2"]) == 0
    assert torch.get_num_threads() == threads
    assert "median ms" in capsys.readouterr().out


def test_several_networks_stand_in_one_table_and_one_picture(runs, program_file, tmp_path, capsys):
    file = program_file
    capsys.readouterr()
    plot = tmp_path / "pareto.svg"
    words = ("latency", runs / "segmentation", file, *SIZE, "--runs", 2, "--plot", plot, "--json")
    assert main([*map(str, words)]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["runtime"] for row in rows] == ["PyTorch", "torch.export"]
    result = json.loads((runs / "segmentation" / "result.json").read_text())
    assert rows[0]["score"] == result["scores"]["miou"]
    assert rows[1]["score"] is None  # a file does not know it
    assert plot.read_text().count('r="6"') == 1
    assert main([*map(str, words)]) == 2
    assert "exists" in capsys.readouterr().err
    words = ("latency", runs / "segmentation", runs / "depth", *SIZE, "--runs", 1, "--scores", 1)
    assert main([*map(str, words)]) == 2
    assert "--scores: 1 given for 2 models" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "task"), [*((".onnx", task) for task in TASKS), (".xml", "segmentation")]
)
def test_an_exported_file_scores_and_predicts_as_its_network(
    runs, onnx_file, tmp_path, task, suffix
):
    """A detector with NMS in the graph; boxes before it are asked for in tests/export."""
    pytest.importorskip("onnxruntime" if suffix == ".onnx" else "openvino")
    file = tmp_path / f"a{suffix}"
    if (task, suffix) == ("segmentation", ".onnx"):
        file = onnx_file[0]
    else:
        more = ["--with", "detections"] if task == "detection" else []
        assert export(runs / task, "--out", file, *SIZE, *more) == 0
    config = runs / task / "config.yaml"
    metric = {"segmentation": "miou", "detection": "ap", "depth": "abs_rel"}[task]
    scores = densekd.evaluate(file, config, device="cpu")
    assert scores[metric] == pytest.approx(
        densekd.evaluate(runs / task, device="cpu")[metric], abs=1e-3
    )
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    answer, expected = open_model(file).predict(image), densekd.load(runs / task).predict(image)
    if task == "segmentation":
        assert (answer == expected).mean() > 0.999
    elif task == "depth":
        assert np.abs(answer - expected).max() < 1e-2
    else:
        assert np.allclose(answer["boxes"], expected["boxes"], atol=1e-2)
        assert np.array_equal(answer["labels"], expected["labels"])


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_int8_says_what_the_score_loses(runs, tmp_path, capsys, suffix):
    pytest.importorskip("onnxruntime" if suffix == ".onnx" else "openvino")
    file = tmp_path / f"a{suffix}"
    words = (runs / "segmentation", "--out", file, *SIZE, "--int8", "--calib-images", 2, "--json")
    assert export(*words) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["calibrated"] == "2 images of train"
    before = densekd.evaluate(runs / "segmentation", device="cpu")["miou"]
    after = densekd.evaluate(file, runs / "segmentation" / "config.yaml", device="cpu")["miou"]
    assert said["scores"]["before"] == pytest.approx(before, abs=1e-6)
    assert said["scores"]["after"] == pytest.approx(after, abs=1e-6)


def test_int8_images_come_from_the_run_or_from_a_folder(runs, tmp_path):
    model = densekd.load(runs / "segmentation")
    own = int8_data(model, None, None, 2, None)
    assert own.source == "2 images of train"
    assert [image.shape for image in own.images()] == [(64, 96, 3)] * 2
    exact = densekd.evaluate(runs / "segmentation", device="cpu")["miou"]
    assert own.score is not None
    assert own.score(model) == pytest.approx(exact, abs=1e-6)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    folder = int8_data(model, None, str(tmp_path), 2, None)
    assert folder.source == f"1 images of {tmp_path}"
    assert folder.score is None
    said = int8_text({"calibrated": folder.source})
    assert "the score was not measured" in said[1]
    with pytest.raises(UserError, match="--int8 needs images"):
        int8_data(model, None, str(tmp_path / "none"), 2, None)
    said = int8_text(
        {"calibrated": "x", "scores": measured(own, model, densekd.load(runs / "segmentation"))}
    )
    assert said[1].endswith("change +0.00")


def test_a_file_of_other_classes_is_not_scored(runs, program_file, tmp_path, capsys):
    file = program_file
    words = ["evaluate", str(runs / "segmentation" / "config.yaml"), "--weights", str(file)]
    assert main([*words, "--device", "cpu"]) == 0
    exact = densekd.evaluate(runs / "segmentation", device="cpu")["miou"]
    assert f"{exact:.4f}" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"a\.pt2 was trained for segmentation; the task here"):
        densekd.evaluate(file, runs / "detection" / "config.yaml", device="cpu")
    assert export(file, "--out", tmp_path / "b.pt2") == 2
    assert "is an exported file" in capsys.readouterr().err


@pytest.mark.slow
def test_latency_exports_what_it_measures(runs, capsys):
    pytest.importorskip("openvino")
    words = ("latency", runs / "segmentation", *SIZE, "--runs", 1, "--threads", 1, "--formats")
    assert main([*map(str, words), "onnx", "openvino", "int8", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    runtimes = ["PyTorch", "ONNX Runtime", "OpenVINO", "ONNX Runtime int8"]
    assert [row["runtime"] for row in rows] == runtimes
    assert all(row["median"] > 0 and row["bytes"] > 0 for row in rows)
    assert rows[0]["score"] == rows[1]["score"] is not None
    assert rows[3]["score"] is None  # calibrated on random images
    assert len({row["parameters"] for row in rows}) == 1


def test_an_exported_file_is_compared_and_predicts(runs, program_file, tmp_path, capsys):
    """As its own network does, on the same images."""
    config, run = runs / "segmentation" / "config.yaml", runs / "segmentation"
    words = ("compare", run, program_file, "--recipe", config, "--out", tmp_path / "a.png")
    assert main([*map(str, words), "--device", "cpu", "--json"]) == 0
    one, other = json.loads(capsys.readouterr().out)["models"]
    assert one["scores"]["miou"] == pytest.approx(other["scores"]["miou"], abs=1e-3)
    Image.new("RGB", (96, 64), (90, 120, 60)).save(tmp_path / "b.png")
    words = ("predict", program_file, tmp_path / "b.png", "--out", tmp_path / "out")
    assert main([*map(str, words), "--only", "index"]) == 0
    index = np.asarray(Image.open(tmp_path / "out" / "index" / "b.png"))
    assert (index == densekd.load(run).predict(tmp_path / "b.png")).mean() > 0.999
    words = ("predict", run, tmp_path / "b.png", "--out", tmp_path / "out")
    assert main([*map(str, words), "--only", "index"]) == 2
    assert "another model" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["fcos", "retinanet", "ssd"])
def test_boxes_before_nms_lead_to_the_same_detections(kind):
    """torchvision's own post-processing is the standard."""
    from densekd.tasks import Detection
    from densekd.types import DecodedBoxes, DetectorOutput

    torch.manual_seed(0)
    anchors_a_place, sizes = (1 if kind == "fcos" else 3), [(6, 8), (3, 4)]
    task = Detection(["a", "b"], [(0, 0, 0)] * 2, topk_candidates=20, detections_per_image=15)
    raw = DetectorOutput(
        logits=[torch.randn(2, anchors_a_place * (3 if kind == "ssd" else 2), *s) for s in sizes],
        boxes=[torch.rand(2, anchors_a_place * 4, *s) for s in sizes],
        centerness=[torch.randn(2, 1, *s) for s in sizes] if kind == "fcos" else None,
        anchors=[_anchors(anchors_a_place * h * w) for h, w in sizes],
        kind=kind,
    )
    size = (48, 64)
    expected = task.decode(raw, size)
    found = task.decode(DecodedBoxes(*task.all_boxes(raw, size), kind), size)
    assert len(expected[0].boxes) == 15
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one.boxes, other.boxes, atol=1e-4)
        assert torch.equal(one.labels, other.labels)
        assert torch.allclose(one.scores, other.scores)


def _anchors(count: int) -> torch.Tensor:
    corners = torch.rand(count, 2) * torch.tensor([40.0, 30.0])
    return torch.cat([corners, corners + 4 + torch.rand(count, 2) * 16], dim=1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "a.mlpackage", "--int8"], "--int8: writes .onnx or .xml"),
        (["--out", "a.tflite", "--int8"], "--int8: writes .onnx or .xml"),
        ([], "give --out FILE or --format"),
        (["--out", "a.onnx", "--format", "pt2"], "pt2 ends with .pt2"),
        (["--out", "a.pt2", "--int8"], "--int8: writes .onnx or .xml"),
        (["--out", "a.onnx", "--calib", "x"], "--calib: is of --int8"),
    ],
)
def test_formats_that_are_not_written_are_named(runs, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert export(runs / "segmentation", *words) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("task", "words", "expected"),
    [
        ("detection", ["--with", "none"], "a detector is exported with boxes"),
        ("detection", ["--with", "detections"], "has no NMS for batches"),
        ("depth", ["--with", "argmax"], "--with argmax: is of segmentation; this is depth"),
        ("segmentation", ["--size", "32", "96"], "at least 64"),
    ],
)
def test_what_cannot_be_exported_is_said(runs, tmp_path, capsys, task, words, expected):
    file = tmp_path / "a.pt2"
    assert export(runs / task, "--out", file, *words) == 2
    assert expected in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_onnx_without_its_packages_names_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("densekd.export.onnx.importlib.util.find_spec", lambda name: None)
    assert export(tmp_path, "--out", tmp_path / "a.onnx") == 2
    assert "densekd[export]" in capsys.readouterr().err


class Branches(nn.Module):
    """Asks for the size's remainder, as padding by hand does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        x = self.conv(x)
        return x[..., :-1, :] if x.shape[-2] % 4 else x


class Asks(Branches):
    """Depends on a value, which no graph can."""

    def forward(self, x):
        return self.conv(x) if x.sum().item() > 0 else x


def segmentation() -> Segmentation:
    return Segmentation(["a", "b", "c", "d"], [(0, 0, 0)] * 4)


def test_a_network_whose_sizes_branch_is_exported_for_multiples():
    graph = trace(Branches(), segmentation(), InputSpec(), "argmax", (64, 96))
    assert graph.divisor == 32
    assert all(h % 32 == w % 32 == 0 for _, _, h, w in graph.shapes())


def test_a_network_that_cannot_be_traced_is_an_error():
    with pytest.raises(UserError, match="Asks cannot be exported"):
        trace(Asks(), segmentation(), InputSpec(), "argmax", (64, 96))


@pytest.mark.parametrize("end", ["argmax", "none"])
def test_another_answer_is_refused(end):
    graph = trace(nn.Conv2d(3, 4, 1), segmentation(), InputSpec(), end, (64, 96))
    module = graph.program.module()

    def right(images):
        return module(torch.from_numpy(images)).detach().numpy()

    assert all(gap.error <= 1e-3 for gap in compare(graph, right, "the file"))
    with pytest.raises(UserError, match="off PyTorch"):
        compare(graph, lambda images: (right(images) + 1) % 4, "the file")
    with pytest.raises(UserError, match="off PyTorch"):
        compare(graph, lambda images: right(images)[..., :-1], "the file")
    with pytest.raises(UserError, match="fails at"):
        compare(graph, lambda images: right(images[..., :0]), "the file")


def test_an_exported_program_resizes_at_every_size():
    """Equal sizes at the example must not leave the resizing out at others."""

    class Fit(nn.Module):
        def forward(self, x, y):
            return resize_map(x, (y.shape[-2], y.shape[-1]))

    a, b = torch.export.Dim("a", min=4), torch.export.Dim("b", min=4)
    shapes = {"x": {2: a}, "y": {2: b}}
    x = torch.rand(1, 1, 8, 8)
    program = torch.export.export(Fit(), (x, torch.rand(1, 1, 8, 8)), dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(program, file)
    assert torch.equal(program.module()(x, torch.rand(1, 1, 8, 8)), x)
    assert program.module()(x, torch.rand(1, 1, 12, 8)).shape == (1, 1, 12, 8)
