"""A `torch.export` file of a stranger runs nothing, whichever of PyTorch's ways to code it takes."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from densekd.errors import UserError
from densekd.models.foreign._checked_program import (
    ARITHMETIC,
    _arithmetic,
    _Refused,
    load_program,
)
from densekd.models.foreign.exported import exported
from densekd.types import InputSpec
from densekd.workflows.latency import latency
from densekd.workflows.open_model import open_model

IMAGES = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)
        self.register_buffer("mean", torch.ones(3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        wide = nn.functional.interpolate(images, scale_factor=2.0, mode="bilinear")
        return self.conv(nn.functional.avg_pool2d(wide, 3, 2, 1) - self.mean)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[str, bytes]:
    """The members of a program of any batch and size, and its answer under ``answer``."""
    network = Network().eval()
    free = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        network, (IMAGES,), dynamic_shapes={"images": {0: free, 2: free, 3: free}}
    )
    path = tmp_path_factory.mktemp("good") / "a.pt2"
    torch.export.save(program, path, extra_files={"densekd.json": "{}"})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return {**members, "answer": pickle.dumps(network(IMAGES).detach())}


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return open, (str(self.mark), "w")


def pickled(mark: Path) -> bytes:
    content = io.BytesIO()
    torch.save(Payload(mark), content)
    return content.getvalue()


def write(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if name != "answer":
                archive.writestr(name, content)
    return path


def beside(members: dict[str, bytes], name: str) -> str:
    """The name of a member in the archive's own folder."""
    return f"{next(iter(members)).partition('/')[0]}/{name}"


def member(members: dict[str, bytes], end: str) -> tuple[str, Any]:
    name = next(name for name in members if name.endswith(end))
    return name, json.loads(members[name])


def changed(members: dict, end: str, change: Callable[[Any], None]) -> dict:
    name, tree = member(members, end)
    change(tree)
    return {**members, name: json.dumps(tree).encode()}


def first_operator(target: str) -> Callable[[dict], None]:
    def change(tree: dict) -> None:
        tree["graph_module"]["graph"]["nodes"][0]["target"] = target

    return change


def pickled_weight(members: dict, mark: Path) -> dict:
    def change(tree: dict) -> None:
        tree["config"]["conv.weight"]["use_pickle"] = True
        tree["config"]["conv.weight"]["path_name"] = "weight_0"

    folder = next(n for n in members if n.endswith("data/weights/weight_0"))
    return changed(members, "model_weights_config.json", change) | {folder: pickled(mark)}


def opaque_constant(members: dict, mark: Path) -> dict:
    def change(tree: dict) -> None:
        entry = next(iter(member(members, "model_weights_config.json")[1]["config"].values()))
        tree["config"]["x"] = {**entry, "path_name": "opaque_obj_0"}

    more = changed(members, "model_constants_config.json", change)
    return more | {beside(members, "data/constants/opaque_obj_0"): pickle.dumps(Payload(mark))}


def guard(members: dict, mark: Path) -> dict:
    def change(tree: dict) -> None:
        tree["guards_code"] = [f"open({str(mark)!r}, 'w') is not None"]

    return changed(members, "models/model.json", change)


def symbol(members: dict, mark: Path) -> dict:
    name = next(n for n in members if n.endswith("models/model.json"))
    text = members[name].decode()
    _, _, rest = text.partition('"expr_str": "')
    old = rest.partition('"')[0]
    return {**members, name: text.replace(old, f"open('{mark}', 'w')", 1).encode()}


def tree_of(kind: str, context: str) -> Callable[[dict, Path], dict]:
    def change(tree: dict) -> None:
        signature = tree["graph_module"]["module_call_graph"][0]["signature"]
        leaf = {"type": None, "context": None, "children_spec": []}
        spec = {"type": kind, "context": context, "children_spec": [leaf]}
        signature["out_spec"] = json.dumps([1, spec])

    return lambda members, mark: changed(members, "models/model.json", change)


def code(mark: Path) -> str:
    """An expression that makes a file, without a quote."""
    path = list(str(mark).encode())
    return f"open(bytes({path}).decode(),bytes([119]).decode())"


def input_name(members: dict, mark: Path) -> dict:
    """A default of an argument that nothing reads; it is evaluated as soon as the program is read."""

    def change(tree: dict) -> None:
        module = tree["graph_module"]
        graph, bad = module["graph"], f"x={code(mark)}"
        graph["inputs"].append({"as_tensor": {"name": bad}})
        graph["tensor_values"][bad] = graph["tensor_values"]["images"]
        spec = {"user_input": {"arg": {"as_tensor": {"name": bad}}}}
        module["signature"]["input_specs"].append(spec)

    return changed(members, "models/model.json", change)


def argument_name(members: dict, mark: Path) -> dict:
    def change(tree: dict) -> None:
        signature = tree["graph_module"]["module_call_graph"][0]["signature"]
        signature["forward_arg_names"] = [f"images={code(mark)}"]

    return changed(members, "models/model.json", change)


def function_as_argument(members: dict, mark: Path) -> dict:
    def change(tree: dict) -> None:
        node = tree["graph_module"]["graph"]["nodes"][0]
        node["inputs"][0]["arg"] = {"as_operator": "torch.hub.load"}

    return changed(members, "models/model.json", change)


def sample_inputs(members: dict, mark: Path) -> dict:
    return {**members, beside(members, "data/sample_inputs/model.pt"): pickled(mark)}


HOSTILE: dict[str, Callable[[dict, Path], dict]] = {
    "a pickled weight": pickled_weight,
    "an opaque constant": opaque_constant,
    "weights of the old form": lambda m, mark: {**m, beside(m, "data/weights/model.pt"): pickled(mark)},
    "a compiled library": lambda m, mark: {**m, beside(m, "data/aotinductor/model/a.so"): b"\x7fELF"},
    "a second program": lambda m, mark: {**m, beside(m, "models/other.json"): b"{}"},
    "the form of older versions": lambda m, mark: {
        "version": b"8.8", "serialized_exported_program.json": b"{}", "serialized_state_dict.pt": pickled(mark),
        "serialized_constants.pt": pickled(mark), "serialized_example_inputs.pt": pickled(mark),
    },
    "the name of an input": input_name,
    "the name of an argument": argument_name,
    "a function as an argument": function_as_argument,
    "a guard": guard,
    "a symbol": symbol,
    "an operator that writes": lambda m, mark: changed(
        m, "models/model.json", first_operator("torch.ops.aten.save.default")
    ),
    "an operator that maps a file": lambda m, mark: changed(
        m, "models/model.json", first_operator("torch.ops.aten.from_file.default")
    ),
    "a function": lambda m, mark: changed(m, "models/model.json", first_operator("torch.hub.load")),
    "a library to load": lambda m, mark: changed(
        m, "models/model.json", first_operator("torch.ops.load_library")
    ),
    "a factory": tree_of(
        "collections.defaultdict",
        json.dumps({"default_factory_module": "antigravity", "default_factory_name": "x", "dict_context": ["a"]}),
    ),
    "an enumeration": tree_of("builtins.dict", json.dumps([{"__enum__": True, "fqn": "antigravity:x", "name": "y"}])),
    "no object": lambda m, mark: {**m, member(m, "models/model.json")[0]: b"[]"},
    "deep": lambda m, mark: {**m, member(m, "models/model.json")[0]: b"[" * 100_000},
}  # fmt: skip


def test_a_plain_program_is_read(good, tmp_path):
    path = write(tmp_path / "a.pt2", good)
    extra: dict[str, Any] = {"densekd.json": ""}
    program = load_program(path, extra).module()
    torch.testing.assert_close(program(IMAGES), pickle.loads(good["answer"]), rtol=0, atol=1e-6)
    assert extra["densekd.json"] == "{}"


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_program_is_refused_and_runs_nothing(good, tmp_path, kind):
    mark = tmp_path / "mark"
    path = write(tmp_path / "a.pt2", HOSTILE[kind](dict(good), mark))
    with pytest.raises(
        UserError, match=r"a\.pt2: (is no torch\.export file that can be read|neither)"
    ):
        exported(path=str(path))
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [
    "a pickled weight", "the name of an input", "a guard", "a symbol",
])  # fmt: skip
def test_the_same_files_run_code_where_they_are_trusted(good, tmp_path, kind):
    """Else the test above would say nothing."""
    mark = tmp_path / "mark"
    path = write(tmp_path / "a.pt2", HOSTILE[kind](dict(good), mark))
    with suppress(Exception):  # what the payload gives is no tensor
        load_program(path, {}, trusted=True).module()(IMAGES)
    assert mark.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("size", "fits"), [("32*s87", True), ("open", True), ("open('a')", False), ("a@b", False)]
)
def test_sizes_that_ranges_are_of(good, tmp_path, size, fits):
    """A range may be of a multiple of a size, and stands under its text."""

    def change(tree: dict) -> None:
        tree["range_constraints"][size] = {"min_val": 2, "max_val": 9}

    path = write(tmp_path / "a.pt2", changed(dict(good), "models/model.json", change))
    if fits:
        load_program(path, {})
    else:
        with pytest.raises(UserError, match="running code of its own"):
            load_program(path, {})


@pytest.mark.filterwarnings("ignore")
def test_sample_inputs_are_left_out(good, tmp_path):
    mark = tmp_path / "mark"
    path = write(tmp_path / "a.pt2", sample_inputs(good, mark))
    with suppress(Exception):
        load_program(path, {}, trusted=True)
    assert mark.exists()
    mark.unlink()
    program = load_program(path, {}).module()
    torch.testing.assert_close(program(IMAGES), pickle.loads(good["answer"]), rtol=0, atol=1e-6)
    assert not mark.exists()


def test_a_file_that_is_opened_again_is_trusted_no_more_than_before(good, tmp_path):
    mark = tmp_path / "mark"
    about = {
        "model": {
            "task": "segmentation",
            "classes": ["a", "b"],
            "palette": [[0, 0, 0], [1, 1, 1]],
            "input": InputSpec().as_dict(),
            "arguments": {},
        },
        "end": "none",
        "kind": "",
        "multiple_of": "1",
    }
    extra = {beside(good, "extra/densekd.json"): json.dumps(about).encode()}
    path = write(tmp_path / "a.pt2", {**sample_inputs(good, mark), **extra})
    found = latency([open_model(path)], ["a"], size=(32, 48), runs=1)
    assert found["rows"][0]["runtime"] == "torch.export"
    assert not mark.exists()


class Kept(nn.Module):
    """Boxes after NMS: an operator of torchvision, and an assertion whose message has quotes."""

    def forward(self, Images: torch.Tensor) -> torch.Tensor:
        boxes = Images[0, 0] * 10
        boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:4].abs()], 1)
        kept = boxes[torchvision.ops.nms(boxes, boxes[:, 0], 0.5)].mean(0)
        return torch.einsum("c,bdhw->bc", kept, Images)


def test_a_program_with_nms_is_read(tmp_path):
    free = torch.export.Dim.DYNAMIC
    program = torch.export.export(Kept(), (IMAGES,), dynamic_shapes={"Images": {0: free, 2: free}})
    assert "on node 'ge'" in str(program.graph)
    torch.export.save(program, tmp_path / "a.pt2")
    found = load_program(tmp_path / "a.pt2", {}).module()
    torch.testing.assert_close(found(IMAGES), Kept()(IMAGES), rtol=0, atol=1e-6)


def test_torchvision_is_imported_for_its_operators(tmp_path):
    program = torch.export.export(Kept(), (IMAGES,))
    torch.export.save(program, tmp_path / "a.pt2")
    words = (
        "import pathlib, sys; from densekd.models.foreign._checked_program import load_program\n"
    )
    words += "assert 'torchvision' not in sys.modules\nload_program(pathlib.Path('a.pt2'), {})"
    subprocess.run([sys.executable, "-c", words], cwd=tmp_path, check=True)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_stands_twice(good, tmp_path):
    path = write(tmp_path / "a.pt2", good)
    name = member(good, "models/model.json")[0]
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, good[name])
    with pytest.raises(UserError, match="it holds"):
        load_program(path, {})


@pytest.mark.parametrize(
    "text",
    [
        "Pow(Integer(10), Integer(10000000))", "10**10**10", "Symbol('a').__class__", "Symbol(\"__import__('os')\")",
        "eval('1')", "[x for x in y]", "lambda: 1", "f'{x}'", "(x := 1)", "x" * 30_000, "s0.size()", "1e400",
        "(1 #\" + x\n)", "(1\n+ 1)", 'Symbol("a")',
    ],
)  # fmt: skip
def test_no_arithmetic(text):
    with pytest.raises(_Refused):
        _arithmetic(text, ARITHMETIC)
