"""Exported files read again, quantised and converted: a tiny ONNX file made by hand, in the real runtimes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from densekd.build.provenance import teacher_note
from densekd.config.schema import Teacher
from densekd.errors import UserError, WeightsError
from densekd.export import (
    ExportedFile,
    Program,
    onnx_runner,
    open_exported,
    quantise,
    save_openvino,
)
from densekd.models.foreign._runtimes import program_about
from densekd.models.taps import Taps
from densekd.ops.tiling import Views
from densekd.tasks import Depth, Segmentation
from densekd.types import Batch, DecodedBoxes, InputSpec

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CLASSES = ["a", "b", "c"]
ABOUT = {
    "task": "segmentation",
    "model": {
        "task": "segmentation",
        "classes": CLASSES,
        "input": InputSpec().as_dict(),
        "arguments": {},
    },
    "end": "none",
    "kind": "",
    "multiple_of": "1",
}
WEIGHTS = np.random.default_rng(0).normal(size=(3, 3, 3, 3)).astype(np.float32)


def tiny(about: dict | None = None) -> bytes:
    """A 3x3 convolution from images to the logits of three classes."""
    make = onnx.helper
    sizes = ["n", 3, "h", "w"]
    graph = make.make_graph(
        [make.make_node("Conv", ["images", "weights"], ["prediction"], pads=[1, 1, 1, 1])],
        "tiny",
        [make.make_tensor_value_info("images", onnx.TensorProto.FLOAT, sizes)],
        [make.make_tensor_value_info("prediction", onnx.TensorProto.FLOAT, sizes)],
        [onnx.numpy_helper.from_array(WEIGHTS, "weights")],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=8)
    for key, value in (ABOUT if about is None else about).items():
        text = value if isinstance(value, str) else json.dumps(value)
        model.metadata_props.add(key=key, value=text)
    return model.SerializeToString()


def images(count: int = 1, height: int = 12, width: int = 20) -> np.ndarray:
    return np.random.default_rng(1).random((count, 3, height, width), np.float32)


def expected(given: np.ndarray) -> np.ndarray:
    return functional.conv2d(torch.from_numpy(given), torch.from_numpy(WEIGHTS), padding=1).numpy()


def test_what_weights_saw_is_read_from_files_of_all_formats(tmp_path):
    about = {**ABOUT, "note": "saw val"}
    paths = [tmp_path / name for name in ("a.onnx", "a.xml", "a.pt2", "other.onnx")]
    paths[0].write_bytes(tiny(about))
    if importlib.util.find_spec("openvino") is None:
        paths.remove(tmp_path / "a.xml")
    else:
        save_openvino(paths[0], paths[1], about)
    program = torch.export.export(torch.nn.Identity(), (torch.rand(1),))
    torch.export.save(program, tmp_path / "a.pt2", extra_files={"densekd.json": json.dumps(about)})
    paths[-1].write_bytes(tiny({}))
    notes = [teacher_note(Teacher("exported", options={"path": str(path)})) for path in paths]
    assert notes == ["teacher saw val"] * (len(paths) - 1) + [""]
    assert program_about(tmp_path / "none.onnx") == {}


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny())
    return path


def test_a_file_says_what_it_is_and_runs(file):
    found = open_exported(file)
    assert (found.end, found.multiple_of, found.runtime) == ("none", 1, "ONNX Runtime")
    assert found.model["classes"] == CLASSES
    assert np.allclose(found.run(images(2)), expected(images(2)), atol=1e-5)


def test_openvino_holds_the_same(file, tmp_path):
    pytest.importorskip("openvino")
    xml = tmp_path / "tiny.xml"
    save_openvino(file, xml, ABOUT)
    found = open_exported(xml, threads=1)
    assert found.about == open_exported(file).about
    assert [path.name for path in found.files()] == ["tiny.xml", "tiny.bin"]
    for shape in ((1, 12, 20), (2, 9, 17), (1, 32, 8)):
        assert np.allclose(found.run(images(*shape)), expected(images(*shape)), atol=1e-4)


def test_int8_keeps_the_metadata_and_nearly_the_answer(file):
    content, count = quantise(tiny(), (images(1, 12, 20) for _ in range(3)))
    assert count == 3
    model = onnx.load_from_string(content)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}
    weights = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    scales = [t for t in model.graph.initializer if list(t.dims) == [3]]
    assert weights
    assert scales  # one a channel
    assert {p.key: p.value for p in model.metadata_props}["end"] == "none"
    answer, exact = onnx_runner(content)(images()), expected(images())
    error = np.abs(answer - exact).max() / np.abs(exact).max()
    assert 0 < error < 0.03


def test_int8_without_images_is_refused():
    with pytest.raises(UserError, match="no image to calibrate on"):
        quantise(tiny(), [])


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"nonsense", "cannot be read"), (tiny({}), "no model, end, multiple_of in its metadata")],
)
def test_files_of_others_are_refused(tmp_path, content, said):
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=said):
        open_exported(path)


def program(end: str, run, *, kind: str = "", multiple: int = 1) -> Program:
    about = {**ABOUT, "end": end, "kind": kind, "multiple_of": str(multiple)}
    return Program(ExportedFile(Path("a.onnx"), run, about))


def batch_of(pixels: torch.Tensor) -> Batch:
    n, _, height, width = pixels.shape
    return Batch(
        images=pixels,
        targets=torch.zeros(n, height, width, dtype=torch.int64),
        labelled=torch.ones(n, dtype=torch.bool),
        inside=torch.ones(n, height, width, dtype=torch.bool),
        names=[""] * n,
    )


def test_classes_and_logits_give_one_answer():
    task = Segmentation(CLASSES, [(0, 0, 0)] * 3)
    batch = batch_of(torch.from_numpy(images(2)))

    def answer(end, run):
        network = program(end, run)
        return task.predict(Taps(network, {}, network.input_spec), batch, Views())

    classes = answer("argmax", lambda x: expected(x).argmax(1).astype(np.uint8))
    assert torch.equal(classes, answer("none", expected))
    assert classes.unique().tolist() == [0, 1, 2]


def test_sizes_are_padded_with_the_mean_colour_and_cut():
    seen = []

    def run(given):
        seen.append(given)
        return given.argmax(1).astype(np.uint8)

    network = program("argmax", run, multiple=8)
    answer = network(torch.from_numpy(images(1, 12, 20)))["out"]
    assert answer.shape == (1, 3, 12, 20)
    assert seen[0].shape == (1, 3, 16, 24)
    assert np.allclose(seen[0][0, :, -1, -1], InputSpec().mean, atol=0.5 / 255)
    assert np.allclose(seen[0][..., :12, :20], images(1, 12, 20), atol=1e-6)
    with pytest.raises(UserError, match="multiples of 8"):
        program("none", run, multiple=8)(torch.from_numpy(images(1, 12, 20)))


def test_metres_are_not_decoded_again():
    task = Depth(min_depth=1, max_depth=10, bins=8)
    network = program("metres", lambda x: np.full((len(x), 1, *x.shape[2:]), 3.5, np.float32))
    batch = batch_of(torch.from_numpy(images(2)))
    metres = task.predict(Taps(network, {}, network.input_spec), batch, Views())
    assert metres.shape == (2, 1, 12, 20)
    assert metres.unique().tolist() == [3.5]


def test_boxes_stay_inside_the_image():
    boxes = np.array([[[0, 0, 24, 16], [1, 2, 3, 4]]], np.float32)
    scores, levels = np.full((1, 2, 3), 0.5, np.float32), np.array([0, 1])
    network = program("boxes", lambda x: (boxes, scores, levels), kind="fcos", multiple=8)
    found = network(torch.from_numpy(images(1, 12, 20)))["out"]
    assert isinstance(found, DecodedBoxes)
    assert found.kind == "fcos"
    assert found.boxes.tolist() == [[[0, 0, 20, 12], [1, 2, 3, 4]]]


def test_a_file_of_one_size_takes_no_other():
    about = {**ABOUT, "end": "argmax"}

    def run(given):
        return expected(given).argmax(1).astype(np.uint8)

    network = Program(ExportedFile(Path("a.tflite"), run, about, (12, 20)))
    assert network.input_spec.size == (12, 20)
    assert network(torch.from_numpy(images(2, 12, 20)))["out"].shape == (2, 3, 12, 20)
    with pytest.raises(
        UserError, match="takes images of 12x20 alone and the image is 12x21; resize"
    ):
        network(torch.from_numpy(images(1, 12, 21)))
    # Larger images are seen through windows of its size.
    task = Segmentation(CLASSES, [(0, 0, 0)] * 3)
    batch = batch_of(torch.from_numpy(images(1, 20, 33)))
    tapped = Taps(network, {}, network.input_spec)
    found = task.predict(tapped, batch, Views(window=(12, 20), overlap=0.5))
    assert found.shape == (1, 20, 33)
    assert torch.equal(found[0, :11, :19], torch.from_numpy(run(images(1, 20, 33)))[0, :11, :19])


def test_a_runtime_that_fails_is_named():
    def run(given):
        raise RuntimeError("no such shape\nand more")

    network = program("argmax", run)
    with pytest.raises(
        UserError, match=r"a\.onnx does not run on \(1, 3, 12, 20\): no such shape\. It"
    ):
        network(torch.from_numpy(images(1, 12, 20)))


def test_a_tflite_file_without_its_runtime_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("densekd.export.tflite.importlib.util.find_spec", lambda name: None)
    (tmp_path / "a.tflite").write_bytes(b"x")
    with pytest.raises(UserError, match=r"needs ai_edge_litert: pip install 'densekd\[tflite\]'"):
        open_exported(tmp_path / "a.tflite")


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("model", "x"), ("model", {"classes": CLASSES}), ("model", {**ABOUT["model"], "classes": 3}),
        ("model", {**ABOUT["model"], "input": {"size": "x", "y": 1}}), ("end", "files"), ("multiple_of", "0"),
        ("multiple_of", "x"), ("kind", ["fcos"]),
    ],
)  # fmt: skip
def test_a_description_that_is_none_of_ours_is_refused(tmp_path, entry, value):
    (tmp_path / "a.onnx").write_bytes(tiny({**ABOUT, entry: value}))
    with pytest.raises(WeightsError, match=r"a\.onnx: its description is not one that densekd"):
        open_exported(tmp_path / "a.onnx")
