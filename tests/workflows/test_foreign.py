"""Pairs of other libraries' networks distil; what is saved loads into the library's own network with strict=True."""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import segmentation_models_pytorch as library
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import segmentation

import densekd
from densekd.config.load import make_config
from densekd.engine.folder import RunFolder
from densekd.errors import UserError
from densekd.models import Taps
from densekd.models.foreign.exported import exported
from densekd.models.foreign.hf import hf
from densekd.models.foreign.smp import smp
from densekd.types import InputSpec
from densekd.workflows.validate import validate

CLASSES = 9  # of the scenes
STEPS = 10
IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def recipe(model: dict, teacher: dict, pair_wise: dict | None = None) -> dict:
    return {
        "model": model,
        "teacher": {"allow_untrained": True, **teacher},
        "data": {
            "dataset": "scenes",
            "options": {"height": 64, "width": 96},
            "train_options": {"length": 2},
            "val_options": {"length": 1},
            "batch_size": 2,
            "workers": 0,
            "crop": [64, 96],
            "hflip": 0,
        },
        "distill": {
            "pixel_wise": {"weight": 1},
            **({} if pair_wise is None else {"pair_wise": {"weight": 1, **pair_wise}}),
        },
        "optim": {"name": "adamw", "lr": 1e-3},
        "train": {"steps": STEPS, "log_every": 1},
    }


def distilled(tree: dict, out: Path) -> dict:
    """The student's weights, after the losses were found finite and falling."""
    result = densekd.distill(tree, name="run", out=out, device="cpu")
    folder = RunFolder(result.folder)
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == STEPS
    assert torch.tensor(losses).isfinite().all()
    assert sum(losses[-3:]) < sum(losses[:3])
    return load_file(folder.student)


def same_as(
    network: nn.Module, state: dict, run: Path, spec: InputSpec, output=lambda y: y, images=IMAGES
) -> None:
    """The bare library's network with the weights says what the loaded run says."""
    network.load_state_dict(state, strict=True)
    loaded = densekd.load(run)
    with torch.no_grad():
        wanted = loaded(images).prediction
        found = output(network.eval()(spec.normalize(images)))
    assert wanted.shape[1] == CLASSES
    torch.testing.assert_close(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "encoder"), [("DeepLabV3Plus", "mobilenet_v2"), ("unet", "tu-test_resnet")]
)
def test_smp(arch, encoder, tmp_path):
    options = {"arch": arch, "encoder": encoder, "weights": None}
    teacher = {"name": "smp", "options": {"arch": "FPN", "encoder": "resnet18"}}
    tree = recipe({"name": "smp", "options": options}, teacher, {})
    state = distilled(tree, tmp_path)
    network = library.create_model(arch, encoder, None, classes=CLASSES)
    same_as(network, state, tmp_path / "run", InputSpec())


@pytest.mark.slow
def test_torchvision(tmp_path):
    student = {"name": "torchvision", "options": {"arch": "lraspp_mobilenet_v3_large"}}
    teacher = {"name": "torchvision", "options": {"arch": "deeplabv3_mobilenet_v3_large"}}
    state = distilled(recipe(student, teacher, {}), tmp_path)
    network = segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=CLASSES)
    same_as(network, state, tmp_path / "run", InputSpec(), lambda y: y["out"])


@pytest.mark.slow
def test_a_dotted_path_with_classes_and_a_vit_teacher(tmp_path):
    options = {"encoder_name": "resnet18", "encoder_weights": None}
    student = {"name": "segmentation_models_pytorch.Linknet", "options": options}
    teacher = {"name": "fpn_timm", "options": {"backbone": "test_vit", "pyramid_channels": 32}}
    taps = {"student": "encoder:4", "teacher": "backbone.body.model.blocks.3"}
    tree = recipe(student, teacher, taps)
    result = densekd.distill(tree, name="run", out=tmp_path, device="cpu")
    state = load_file(RunFolder(result.folder).student)
    network = library.Linknet("resnet18", encoder_weights=None, classes=CLASSES)
    network.load_state_dict(state, strict=True)


SEGFORMER = {
    "depths": [1] * 4,
    "hidden_sizes": [8, 16, 24, 32],
    "num_attention_heads": [1] * 4,
    "decoder_hidden_size": 16,
}
SWIN = {
    "embed_dim": 12, "depths": [1] * 4, "num_heads": [1] * 4, "window_size": 2,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}  # fmt: skip


def hf_folder(kind: str, folder: Path, labels: int) -> Path:
    """A tiny random network as `save_pretrained` writes it."""
    hugging = pytest.importorskip("transformers")
    if kind == "Segformer":
        config = hugging.SegformerConfig(**SEGFORMER, num_labels=labels)
    elif kind == "UperNet":
        config = hugging.UperNetConfig(
            backbone_config=hugging.SwinConfig(**SWIN), hidden_size=16, auxiliary_in_channels=48,
            auxiliary_channels=8, num_labels=labels,
        )  # fmt: skip
    else:
        config = hugging.DPTConfig(
            hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
            image_size=64, patch_size=16, backbone_out_indices=[0, 1, 2, 3], is_hybrid=False,
            neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16, num_labels=labels,
        )  # fmt: skip
    torch.manual_seed(1)
    network = getattr(hugging, f"{kind}ForSemanticSegmentation")(config)
    network.save_pretrained(folder)
    about = {"do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Segformer", "UperNet", "DPT"])
def test_hugging_face(kind, tmp_path):
    student = hf_folder(kind, tmp_path / "student", 4)  # its classifier begins anew
    teacher = hf_folder("Segformer", tmp_path / "teacher", CLASSES)
    tree = recipe(
        {"name": "hf", "options": {"path": str(student)}},
        {"name": "hf", "options": {"path": str(teacher)}, "allow_untrained": False},
        {},
    )
    if kind == "DPT":  # transformers' own takes square images only
        tree["data"].update(options={"height": 64, "width": 64}, crop=[64, 64])
    state = distilled(tree, tmp_path)
    hugging = pytest.importorskip("transformers")
    config = hugging.AutoConfig.from_pretrained(student, num_labels=CLASSES)
    network = getattr(hugging, f"{kind}ForSemanticSegmentation")(config)
    half = InputSpec((0.5,) * 3, (0.5,) * 3)
    same_as(network, state, tmp_path / "run", half, lambda y: y.logits, IMAGES[..., :64])


def test_a_folder_that_is_no_hugging_face_network(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        hf(5, path=str(tmp_path))
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(UserError, match=r"is of BertModel; expected a \.+ForSemanticSegmentation"):
        hf(5, path=str(tmp_path))


def test_without_transformers_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'densekd\[hf\]'"):
        hf(5, path="folder")


def script(folder: Path, network: nn.Module) -> Path:
    file = folder / "teacher.ts"
    torch.jit.trace(network, IMAGES).save(str(file))
    return file


def program(folder: Path, network: nn.Module) -> Path:
    file = folder / "teacher.pt2"
    batch = torch.export.Dim("batch")
    made = torch.export.export(network, (IMAGES,), dynamic_shapes=({0: batch},))
    torch.export.save(made, file)
    return file


@pytest.fixture(scope="module")
def teacher_network() -> nn.Module:
    torch.manual_seed(0)
    return library.FPN("resnet18", encoder_weights=None, classes=CLASSES).eval()


@pytest.mark.parametrize("write", [script, pytest.param(program, marks=pytest.mark.slow)])
def test_an_exported_teacher(write, teacher_network, tmp_path):
    teacher = {"name": "exported", "options": {"path": str(write(tmp_path, teacher_network))}}
    student = {"name": "espnet_c", "options": {"p": 1, "q": 1}}
    tree = recipe(student, {**teacher, "allow_untrained": False})
    distilled(tree, tmp_path)

    network = exported(**teacher["options"])
    with torch.no_grad():
        found = Taps(network).eval()(IMAGES).prediction
        torch.testing.assert_close(found, teacher_network(IMAGES))
    with pytest.raises(UserError, match=r"tap 'encoder': an exported program.*predictions"):
        Taps(network, {"f": "encoder"})
    tapped = deepcopy(tree)
    tapped["distill"]["pair_wise"] = {"weight": 1, "teacher": "program.encoder"}
    with pytest.raises(UserError, match="an exported program"):
        validate(make_config(tapped, "test"))
    with pytest.raises(UserError, match=r"model\.name: 'exported'.*only be a teacher"):
        densekd.distill(recipe(teacher, teacher), name="x", out=tmp_path, device="cpu")


def test_a_file_that_is_no_program(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        exported(path=str(tmp_path / "none.pt2"))
    (tmp_path / "text.pt2").write_text("no program")
    with pytest.raises(UserError, match="neither a TorchScript file nor a program"):
        exported(path=str(tmp_path / "text.pt2"))
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="neither a TorchScript file nor a program"):
        exported(path=str(tmp_path / "weights.pth"))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"name": "smp", "options": {"arch": "DeepLabV3Pluss"}}, "did you mean 'DeepLabV3Plus'"),
        ({"name": "smp", "options": {"arch": "FPN", "encoder": "resnet81"}}, "'resnet18'"),
        ({"name": "smp", "options": {"arch": "FPN", "options": {"depht": 1}}}, "no option 'depht'"),
        ({"name": "torchvision", "options": {"arch": "fcn_resnet5"}}, "did you mean 'fcn_resnet50'"),
        (
            {"name": "torchvision", "options": {"arch": "fcn_resnet50", "weights": "DEFAULT"}},
            "for 21 classes; the task has 9",
        ),
        ({"name": "torchvision", "options": {"arch": "fcn_resnet50", "weights": "BEST"}}, "'BEST' are unknown"),
        (
            {"name": "torchvision", "options": {"arch": "lraspp_mobilenet_v3_large", "aux_head": True}},
            "no auxiliary head",
        ),
    ],
)  # fmt: skip
def test_mistakes(model, expected):
    teacher = {"name": "espnet", "options": {"p": 1, "q": 1}}
    with pytest.raises(UserError, match=expected):
        validate(make_config(recipe(model, teacher, {}), "test"))


def test_a_missing_package_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(
        UserError,
        match=r"segmentation-models-pytorch is not installed: pip install 'densekd\[smp\]'",
    ):
        smp(5, arch="FPN")


def test_a_folder_of_save_pretrained_is_the_networks_weights(tmp_path):
    torch.manual_seed(0)
    network = library.FPN("tu-test_resnet", encoder_weights=None, classes=4)
    network.save_pretrained(tmp_path / "fpn")
    built = smp(4, arch="fpn", encoder="tu-test_resnet", weights=str(tmp_path / "fpn"))
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in built.state_dict().items())


def test_weights_of_a_checkpoint_with_a_prefix_and_more_keys(tmp_path):
    """As training frameworks save them: the network under a name, beside what it was trained with."""
    torch.manual_seed(0)
    network = library.FPN("tu-test_resnet", encoder_weights=None, classes=CLASSES)
    file = str(tmp_path / "w.safetensors")
    state = {f"net.{k}": v for k, v in network.state_dict().items()}
    save_file({**state, "net.head.aux.0.weight": torch.zeros(2)}, file)
    model = {
        "name": "smp",
        "options": {"arch": "FPN", "encoder": "tu-test_resnet"},
        "weights": file,
    }
    student = {"name": "espnet_c", "options": {"p": 1, "q": 1}}

    def run(**more: object):
        tree = recipe(student, {**model, **more, "allow_untrained": False})
        tree["train"]["steps"] = 1
        return densekd.distill(tree, name="run", out=tmp_path, device="cpu")

    with pytest.raises(UserError, match=r"begin with 'net\.'.*weights_prefix"):
        run()
    with pytest.raises(UserError, match=r"unexpected \(1\): head\.aux\.0\.weight.*weights_ignore"):
        run(weights_prefix="net.")
    assert run(weights_prefix="net.", weights_ignore=["head.aux.*"]).finished
