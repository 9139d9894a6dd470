"""ONNX and OpenVINO files as teachers: outputs, taps, types, shapes, and every way in which a file does not fit."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from densekd.build.provenance import identity
from densekd.config import schema
from densekd.errors import UserError
from densekd.models import Taps, list_taps
from densekd.models.foreign._runtimes import parts_of
from densekd.models.foreign.exported import exported
from densekd.tasks import Segmentation
from densekd.types import InputSpec
from densekd.workflows.export import export
from densekd.workflows.load import LoadedModel

WEIGHTS = np.random.default_rng(0).normal(size=(5, 3, 3, 3)).astype(np.float32)
IMAGES = torch.rand(4, 3, 9, 11, generator=torch.Generator().manual_seed(0))
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}


def write(
    folder: Path,
    shape=("n", 3, "h", "w"),
    dtype="float32",
    outputs=("logits", "neck/out.0"),
    metadata=None,
) -> str:
    """A convolution and its absolute values, of images of any type."""
    images = helper.make_tensor_value_info("images", TYPES[dtype], list(shape))
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "weight"], [outputs[0]], pads=[1] * 4),
        helper.make_node("Abs", [outputs[0]], [outputs[-1] if len(outputs) > 1 else "unused"]),
    ]  # fmt: skip
    size = [shape[0], 5, shape[2], shape[3]]
    found = [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name in outputs]
    graph = helper.make_graph(
        nodes, "g", [images], found, [numpy_helper.from_array(WEIGHTS, "weight")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    for key, value in (metadata or {}).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    path = folder / "teacher.onnx"
    onnx.save(model, path)
    return str(path)


def wanted(images: torch.Tensor) -> torch.Tensor:
    return F.conv2d(images, torch.from_numpy(WEIGHTS), padding=1)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_outputs_are_the_prediction_and_taps(runtime, tmp_path):
    pytest.importorskip(runtime)
    network = exported(path=write(tmp_path), runtime=runtime)
    found = Taps(network, {"neck": "neck/out_0"})(IMAGES)
    torch.testing.assert_close(found.prediction, wanted(IMAGES))
    torch.testing.assert_close(found.features["neck"], wanted(IMAGES).abs())
    other = Taps(network, prediction="neck/out_0")(IMAGES)
    torch.testing.assert_close(other.prediction, wanted(IMAGES).abs())
    assert [row.path for row in list_taps(network, IMAGES)] == ["logits", "neck/out_0"]


def test_a_missing_output_is_answered_with_those_there_are(tmp_path):
    network = exported(path=write(tmp_path))
    with pytest.raises(UserError, match=r"no module 'logit'; near it are logits"):
        Taps(network, {"f": "logit"})
    with pytest.raises(UserError, match=r"no 'logit' in a dict with keys logits, neck/out_0"):
        Taps(network, prediction="logit")(IMAGES)


def test_a_file_of_one_image_sees_them_one_by_one(tmp_path):
    network = exported(path=write(tmp_path, shape=(1, 3, 9, 11)))
    torch.testing.assert_close(Taps(network)(IMAGES).prediction, wanted(IMAGES))
    with pytest.raises(
        UserError, match=r"takes images of \(1, 3, 9, 11\) and these are \(4, 3, 9, 9\).*data\.crop"
    ):
        Taps(network)(IMAGES[..., :9])
    pairs = exported(path=write(tmp_path, shape=(2, 3, "h", "w")))
    torch.testing.assert_close(Taps(pairs)(IMAGES).prediction, wanted(IMAGES))
    with pytest.raises(UserError, match=r"\(2, 3, any, any\) and these are \(3, 3, 9, 11\)"):
        Taps(pairs)(IMAGES[:3])


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_other_types_of_input(dtype, tmp_path):
    network = exported(path=write(tmp_path, dtype=dtype))
    images = (255 * IMAGES).round() if dtype == "uint8" else IMAGES
    expected = images if dtype == "uint8" else images.half().float()
    found = Taps(network)(images).prediction
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found, wanted(expected), rtol=1e-4, atol=1e-2 if dtype == "uint8" else 1e-5
    )


def test_it_learns_nothing_and_is_known_by_its_content(tmp_path):
    network = exported(path=write(tmp_path))
    assert not any(p.requires_grad for p in network.parameters())
    images = IMAGES.clone().requires_grad_()
    assert not Taps(network)(images).prediction.requires_grad
    (tmp_path / "other").mkdir()
    other = exported(path=write(tmp_path / "other", outputs=("logits",)))
    assert not torch.equal(network.state_dict()["digest"], other.state_dict()["digest"])


def test_a_file_that_densekd_wrote_normalises_by_itself(tmp_path):
    about = {"densekd": "0.1", "output": "prediction: the network's own maps"}
    assert exported(path=write(tmp_path, metadata=about)).input_spec.mean == (0.0,) * 3
    about["output"] = "classes (N, H, W): the class of each pixel"
    with pytest.raises(UserError, match=r"class of each pixel alone.*export --with none"):
        exported(path=write(tmp_path, metadata=about))


def test_files_that_do_not_load(tmp_path, monkeypatch):
    broken = tmp_path / "broken.onnx"
    broken.write_text(json.dumps({}))
    with pytest.raises(UserError, match=r"broken\.onnx: cannot be loaded"):
        exported(path=str(broken))
    with pytest.raises(UserError, match=r"none\.onnx: no such file"):
        exported(path=str(tmp_path / "none.onnx"))
    script = tmp_path / "script.ts"
    script.write_text("no program")
    with pytest.raises(UserError, match=r"runtime is openvino.*neither \.onnx nor \.xml"):
        exported(path=str(script), runtime="openvino")
    file = write(tmp_path)
    for module, extra in (("onnxruntime", "export"), ("openvino", "openvino")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=rf"{module} is not installed.*densekd\[{extra}\]"):
            exported(path=file, runtime=module)


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_a_teacher_from_an_export_is_the_network_it_was_made_of(suffix, tmp_path):
    if suffix == ".xml":
        pytest.importorskip("openvino")
    torch.manual_seed(0)
    task = Segmentation(["a", "b", "c"], [(0, 0, 0)] * 3)
    network = nn.Conv2d(3, 3, 3, padding=1)
    about = {"name": "x", "classes": task.classes, "input": InputSpec().as_dict()}
    model = LoadedModel(network, task, InputSpec(), about, tmp_path)
    file = tmp_path / f"net{suffix}"
    export(model, file, end="none", size=(64, 96))
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        expected = model.eval()(images).prediction
        for more in [{}, {"runtime": "openvino"}] if suffix == ".onnx" else [{}]:
            teacher = exported(path=str(file), **more)
            spec = teacher.input_spec or InputSpec()  # as `build_input_spec` has it
            found = Taps(teacher, {}, spec)(images).prediction
            assert torch.allclose(found, expected, atol=1e-4)
    decided = tmp_path / f"classes{suffix}"
    export(model, decided, size=(64, 96))
    with pytest.raises(UserError, match="class of each pixel alone"):
        exported(path=str(decided))


def test_weights_that_lie_beside_a_program_are_part_of_it(tmp_path):
    assert parts_of(tmp_path / "a.xml") == [tmp_path / "a.xml"]
    for name in ("a.bin", "a.onnx.data"):
        (tmp_path / name).write_bytes(b"1")
    assert parts_of(tmp_path / "a.xml")[1:] == [tmp_path / "a.bin"]
    assert parts_of(tmp_path / "a.onnx")[1:] == [tmp_path / "a.onnx.data"]
    config = schema.Config(
        schema.Model("espnet"),
        schema.Data("scenes"),
        teacher=schema.Teacher("exported", {"path": str(tmp_path / "a.xml")}),
    )
    (tmp_path / "a.xml").write_text("a program")
    before = identity(config)
    (tmp_path / "a.bin").write_bytes(b"2")
    assert list(before) == list(identity(config)) == ["teacher program"]
    assert before != identity(config)
