"""A tiny pair of every family distils: the loss is finite and falls, and the student loads into its own library."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model

import densekd
from densekd.engine.folder import RunFolder
from densekd.errors import UserError
from densekd.scenes import BOX_CLASSES, CLASSES
from densekd.types import DetectorOutput
from tests.workflows.tiny_networks import network, saved

STEPS = 6
SEGFORMER, ANYTHING = "SegformerForSemanticSegmentation", "DepthAnythingForDepthEstimation"
DPT, MASK2, MASK1 = (
    "DPTForDepthEstimation", "Mask2FormerForUniversalSegmentation", "MaskFormerForInstanceSegmentation",
)  # fmt: skip
FCOS = {"backbone": "test_resnet", "pyramid_channels": 32, "head_convs": 1, "extra_levels": 0}
PRETRAINED = "transformers.AutoModelForSemanticSegmentation.from_pretrained"


@dataclass
class Pair:
    """A student and its teacher, by functions of the folder where their files are made.

    Attributes:
        original: the student's own library builds it anew, and gives what the loaded run predicts; None for ours.
    """

    student: Callable[[Path], dict]
    teacher: Callable[[Path], dict]
    terms: dict[str, Any] = field(default_factory=lambda: {"pixel_wise": {}, "pair_wise": {}})
    task: Any = "segmentation"
    size: tuple[int, int] = (64, 64)
    original: Callable[[], tuple[nn.Module, Callable[[Any], Tensor]]] | None = None


def hf(
    kind: str, name: str, labels: int | None = None, options: dict | None = None, **more: Any
) -> Callable:
    def made(folder: Path) -> dict:
        path = saved(kind, folder / name, labels, **more)
        return {"name": "hf", "options": {"path": str(path), **(options or {})}}

    return made


def plain(name: str, **options: Any) -> Callable[[Path], dict]:
    return lambda _: {"name": name, "options": options, "allow_untrained": True}


def pretrained(name: str, labels: int) -> Callable[[Path], dict]:
    def made(folder: Path) -> dict:
        path = saved(SEGFORMER, folder / name, labels)
        return {"name": PRETRAINED, "options": {"pretrained_model_name_or_path": str(path)}}

    return made


def merged(teacher: Callable[[Path], dict], more: int) -> Callable[[Path], dict]:
    """The same teacher with `more` classes, which belong to the student's first."""
    first = [0, *range(len(CLASSES), len(CLASSES) + more)]
    groups = {name: [i] for i, name in enumerate(CLASSES)} | {CLASSES[0]: first}
    return lambda folder: {**teacher(folder), "classes": groups}


def segformer() -> tuple[nn.Module, Callable[[Any], Tensor]]:
    return network(SEGFORMER, len(CLASSES)), lambda y: y.logits


def metric_depth() -> tuple[nn.Module, Callable[[Any], Tensor]]:
    built = network(ANYTHING, None)
    built.config.depth_estimation_type = "metric"
    built.config.max_depth = 80
    return type(built)(built.config), lambda y: y.predicted_depth[:, None]


def torchvision_detector(arch: str) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """Built as its users build it, with SSD's background as a class."""
    count = len(BOX_CLASSES) + arch.startswith("ssd")
    return get_model(arch, weights=None, weights_backbone=None, num_classes=count), raw_boxes


METRIC = {"depth_estimation_type": "metric", "max_depth": 80}
LRASPP, SSDLITE = "lraspp_mobilenet_v3_large", "ssdlite320_mobilenet_v3_large"
DETR_TERMS = {"pair_wise": {"student": "fpn:*"}}
PAIRS = {
    "torchvision, odd size, strides 8 and 16, 9 of 13 classes": Pair(
        plain("torchvision", arch=LRASPP),
        merged(plain("psp_timm", backbone="test_resnet", output_stride=16), 4),
        size=(61, 93),
        original=lambda: (
            get_model(LRASPP, weights=None, weights_backbone=None, num_classes=len(CLASSES)), lambda y: y["out"],
        ),
    ),
    "stride 8 from stride 8": Pair(
        plain("psp_timm", backbone="test_resnet", output_stride=8),
        plain("psp_timm", backbone="test_resnet", output_stride=8, psp_channels=48),
        size=(61, 93),
    ),
    "torchvision's SSDlite": Pair(
        plain("torchvision", arch=SSDLITE),
        plain("torchvision", arch=SSDLITE),
        task="detection",
        size=(96, 128),
        original=lambda: torchvision_detector(SSDLITE),
    ),
    "torchvision's FCOS from its RetinaNet": Pair(
        plain("torchvision", arch="fcos_resnet50_fpn"),
        plain("torchvision", arch="retinanet_resnet50_fpn_v2"),
        task="detection",
        original=lambda: torchvision_detector("fcos_resnet50_fpn"),
    ),
    "torchvision's RetinaNet from a smaller FCOS": Pair(
        plain("torchvision", arch="retinanet_resnet50_fpn"),
        plain("fcos_timm", backbone="test_resnet", pyramid_channels=32, head_convs=1),
        task="detection",
        original=lambda: torchvision_detector("retinanet_resnet50_fpn"),
    ),
    "Mask2Former": Pair(hf(SEGFORMER, "s", 4), hf(MASK2, "t", len(CLASSES)), original=segformer),
    "MaskFormer, 9 of 12 classes": Pair(
        hf(SEGFORMER, "s", 4), merged(hf(MASK1, "t", len(CLASSES) + 3), 3), original=segformer
    ),
    "from_pretrained": Pair(
        pretrained("s", 4), merged(pretrained("t", len(CLASSES) + 2), 2), original=segformer
    ),
    "Depth Anything, metric from relative": Pair(
        hf(ANYTHING, "s", **METRIC), hf(ANYTHING, "t"), {"ssi": {}}, "depth", (61, 93), metric_depth
    ),
    "DPT": Pair(
        hf(DPT, "s"), plain("depth_timm", backbone="test_resnet", pyramid_channels=16),
        task={"name": "depth", "losses": {"l1": 1}},
        original=lambda: (network(DPT, None), lambda y: y.predicted_depth[:, None]),
    ),
    "GLPN": Pair(
        hf("GLPNForDepthEstimation", "s"), hf("GLPNForDepthEstimation", "t"), {"pixel_wise": {}}, "depth", (64, 96),
        lambda: (network("GLPNForDepthEstimation", None), lambda y: y.predicted_depth[:, None]),
    ),
    "RT-DETR": Pair(
        plain("fcos_timm", **FCOS), hf("RTDetrForObjectDetection", "t", 7), DETR_TERMS, "detection", (64, 96)
    ),
    "D-FINE": Pair(
        plain("fcos_timm", **FCOS), hf("DFineForObjectDetection", "t", 7), DETR_TERMS, "detection", (64, 96)
    ),
}  # fmt: skip


# Each costs seconds, and a fast one does the same: detectors in tests/models/foreign, queries and sets here.
SLOW = (
    "torchvision, odd size, strides 8 and 16, 9 of 13 classes", "torchvision's SSDlite", "Mask2Former",
    "torchvision's FCOS from its RetinaNet", "torchvision's RetinaNet from a smaller FCOS",
    "D-FINE", "GLPN",
)  # fmt: skip


def raw_boxes(raw: DetectorOutput) -> Tensor:
    return torch.cat([level.flatten(1) for level in raw.logits], 1)


def recipe(pair: Pair, folder: Path) -> dict:
    name = pair.task if isinstance(pair.task, str) else pair.task["name"]
    kind = {"segmentation": {}, "detection": {"target": "boxes"}, "depth": {"target": "depth"}}[
        name
    ]
    student = {k: v for k, v in pair.student(folder).items() if k != "allow_untrained"}
    height, width = pair.size
    return {
        "task": pair.task,
        "model": student,
        "teacher": pair.teacher(folder),
        "data": {
            "dataset": "scenes",
            "options": {"height": height, "width": width, **kind},
            "train_options": {"length": 2},
            "val_options": {"length": 1},
            "batch_size": 2,
            "workers": 0,
            "crop": list(pair.size),
            "hflip": 0,
        },
        "distill": {name: {"weight": 1, **more} for name, more in pair.terms.items()},
        "optim": {"name": "adamw", "lr": 2e-3},
        "train": {"steps": STEPS, "log_every": 1},
    }


def refused(tree: dict, folder: Path, message: str) -> None:
    """The recipe is refused before a run folder is made."""
    with pytest.raises(UserError, match=message):
        densekd.distill(tree, name="refused", out=folder, device="cpu")
    assert not (folder / "refused").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "pair",
    [
        pytest.param(pair, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, pair in PAIRS.items()
    ],
)
def test_a_pair_distils_and_loads_into_its_own_library(pair, tmp_path):
    result = densekd.distill(recipe(pair, tmp_path), name="run", out=tmp_path, device="cpu")
    folder = RunFolder(result.folder)
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    losses = [row["loss"] for row in rows]
    assert len(losses) == STEPS
    assert torch.tensor(losses).isfinite().all()
    assert sum(losses[-2:]) < sum(losses[:2])
    assert all(row[f"distill/{name}"] != 0 for row in rows[:1] for name in pair.terms)
    if pair.original is None:
        return
    loaded = densekd.load(folder.path, trusted=True)
    images = torch.rand(2, 3, *pair.size, generator=torch.Generator().manual_seed(0))
    original, output = pair.original()
    original.load_state_dict(load_file(folder.student), strict=True)
    x = loaded.input_spec.normalize(images)
    with torch.no_grad():
        wanted = loaded(images).prediction
        if isinstance(wanted, DetectorOutput):
            head = original.eval().head(list(original.backbone(x).values()))["cls_logits"]
            parts = [
                level.unflatten(1, (len(a) // level[0, 0].numel(), -1))
                .permute(0, 3, 4, 1, 2)
                .flatten(1, 3)
                for level, a in zip(wanted.logits, wanted.anchors, strict=True)
            ]
            torch.testing.assert_close(head, torch.cat(parts, 1))
        else:
            torch.testing.assert_close(output(original.eval()(x)), wanted)


def test_a_prediction_by_name_travels_with_the_weights(tmp_path):
    pair = Pair(
        plain("torchvision", arch=LRASPP),
        plain("psp_timm", backbone="test_resnet", output_stride=16),
        {"pixel_wise": {}},
    )
    tree = recipe(pair, tmp_path)
    tree["model"]["prediction"] = (
        "classifier.low_classifier"  # a module: one of the two parts of LR-ASPP's sum
    )
    tree["teacher"]["prediction"] = "nowhere"
    refused(tree, tmp_path, r"prediction 'nowhere': no 'nowhere' in a tensor")
    del tree["teacher"]["prediction"]
    tree["train"]["steps"] = 1
    result = densekd.distill(tree, name="run", out=tmp_path, device="cpu")
    loaded = densekd.load(result.folder)
    with torch.no_grad():
        found = loaded(torch.rand(1, 3, 64, 64)).prediction
    assert found.shape == (1, len(CLASSES), 8, 8)


def test_a_teacher_of_one_yes_teaches_two_classes(tmp_path):
    options = {"encoder_name": "tu-test_resnet", "encoder_weights": None, "classes": 1}
    pair = Pair(
        plain("espnet_c", p=1, q=1),
        plain("segmentation_models_pytorch.FPN", **options),
        {"pixel_wise": {}},
    )
    tree = recipe(pair, tmp_path)
    groups = {name: [] for name in CLASSES} | {CLASSES[0]: [-1], CLASSES[1]: [0]}
    tree["teacher"].update(activation="sigmoid", num_classes=1, classes=groups)
    tree["train"]["steps"] = 2
    assert densekd.distill(tree, name="run", out=tmp_path, device="cpu").finished
    tree["teacher"]["classes"] = None
    refused(tree, tmp_path, r"teacher\.num_classes: 1 channels.*the student has 9")


@pytest.mark.parametrize(
    ("teacher", "terms", "message"),
    [
        (hf(ANYTHING, "t"), {"pixel_wise": {}}, r"distill\.pixel_wise: .*relative inverse depth.*distill\.ssi"),
        (hf(DPT, "t"), {"ssi": {}}, r"teacher\.options\.depth: missing; DPTForDepthEstimation"),
        (hf(ANYTHING, "t", **METRIC), {"ssi": {}}, r"distill\.ssi\.form: is inverse.*gives metres"),
    ],
)  # fmt: skip
def test_depth_of_another_form_is_refused(teacher, terms, message, tmp_path):
    student = plain("depth_timm", backbone="test_resnet", pyramid_channels=16)
    tree = recipe(Pair(student, teacher, terms, "depth"), tmp_path)
    refused(tree, tmp_path, message)


def test_mistakes_of_classes_and_sets(tmp_path):
    student = plain("espnet_c", p=1, q=1)
    tree = recipe(Pair(student, hf(SEGFORMER, "t", 12), {"pixel_wise": {}}), tmp_path)
    refused(tree, tmp_path, r"teacher: its weights are for 12 classes.*teacher\.classes")
    tree["distill"] = {"ssi": {"weight": 1}}
    tree["teacher"]["allow_untrained"] = True
    refused(tree, tmp_path, r"distill\.ssi: ssi compares depth, which segmentation has not")
    detr = hf("RTDetrForObjectDetection", "d", 7)
    tree = recipe(Pair(plain("fcos_timm", **FCOS), detr, {"pixel_wise": {}}, "detection"), tmp_path)
    refused(tree, tmp_path, r"queries are no places of the image")
    tree["model"] = detr(tmp_path)
    refused(tree, tmp_path, r"student predicts a set of boxes")


def test_a_folder_of_save_pretrained_is_weights(tmp_path):
    folder = saved(SEGFORMER, tmp_path / "s", len(CLASSES))
    teacher = hf(SEGFORMER, "t", len(CLASSES), {"weights": False})
    tree = recipe(Pair(plain("espnet_c", p=1, q=1), teacher, {"pixel_wise": {}}), tmp_path)
    tree["teacher"]["weights"] = str(folder)
    tree["train"]["steps"] = 1
    assert densekd.distill(tree, name="run", out=tmp_path, device="cpu").finished


def test_an_onnx_file_teaches_by_its_prediction_and_by_another_output(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, len(CLASSES), 1))
    file = tmp_path / "teacher.onnx"
    write_onnx(network, file)
    pair = Pair(
        plain("espnet_c", p=1, q=1),
        lambda _: str(file),
        {"pixel_wise": {}, "pair_wise": {"student": "b3", "teacher": "wide"}},
    )
    tree = recipe(pair, tmp_path)
    result = densekd.distill(tree, name="run", out=tmp_path, device="cpu")
    rows = [json.loads(line) for line in RunFolder(result.folder).metrics.read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert sum(losses[-2:]) < sum(losses[:2])
    tree["distill"]["pair_wise"]["teacher"] = "widest"
    refused(tree, tmp_path, r"no module 'widest'; near it are wide")
    tree["model"] = {"name": str(file)}
    refused(tree, tmp_path, r"model\.name: 'exported'.*only be a teacher")


def write_onnx(network: nn.Sequential, file: Path) -> None:
    """A convolution, a ReLU and a convolution, with the ReLU's map as a second output."""
    names = ("w1", "b1", "w2", "b2")
    stored = [
        numpy_helper.from_array(p.detach().numpy(), n)
        for n, p in zip(names, network.parameters(), strict=True)
    ]
    nodes = [
        helper.make_node("Conv", ["images", "w1", "b1"], ["x"], pads=[1] * 4),
        helper.make_node("Relu", ["x"], ["wide"]),
        helper.make_node("Conv", ["wide", "w2", "b2"], ["logits"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, "h", "w"])
    found = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", c, "h", "w"])
        for n, c in (("logits", len(CLASSES)), ("wide", 8))
    ]
    graph = helper.make_graph(nodes, "g", [images], found, stored)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), file)


def test_relative_depth_has_no_score_of_metres(tmp_path, capsys):
    student = plain("depth_timm", backbone="test_resnet", pyramid_channels=16)
    tree = recipe(Pair(student, hf(ANYTHING, "t"), {"ssi": {}}, "depth"), tmp_path)
    tree["train"]["steps"] = 1
    densekd.distill(tree, name="run", out=tmp_path, device="cpu")
    assert "teacher's delta1" not in capsys.readouterr().out
