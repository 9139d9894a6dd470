"""A detector's boxes teach images without labels: of FCOS, and of RT-DETR, whose queries no map compares with."""

import json

import pytest
import torch

import densekd
from densekd.distill import Distiller, PseudoBoxes
from densekd.engine.folder import RunFolder
from densekd.errors import UserError
from densekd.models import espnet_c, fcos_timm
from densekd.scenes import BOX_CLASSES
from densekd.tasks import Detection, Segmentation
from densekd.types import Batch, Boxes, SetPrediction
from tests.workflows.tiny_networks import saved

FCOS = {"backbone": "test_resnet", "pyramid_channels": 32, "head_convs": 1, "extra_levels": 0}
SCENES = {"height": 64, "width": 96, "target": "boxes"}


def recipe(teacher: dict, **distill) -> dict:
    return {
        "task": "detection",
        "model": {"name": "fcos_timm", "options": FCOS},
        "teacher": teacher,
        "data": {
            "dataset": "scenes",
            "options": SCENES,
            "train_options": {"length": 2},
            "val_options": {"length": 1},
            "batch_size": 1,
            "unlabelled": {
                "dataset": "scenes",
                "options": {**SCENES, "length": 2},
                "batch_size": 1,
            },
            "workers": 0,
            "crop": [64, 96],
        },
        "distill": {"pseudo_boxes": {"score": 0.01}, **distill},
        "optim": {"name": "adamw", "lr": 2e-3},
        "train": {"steps": 4, "log_every": 1},
    }


def fcos_teacher(folder) -> dict:
    return {"name": "fcos_timm", "options": FCOS, "allow_untrained": True}


def rt_detr_teacher(folder) -> dict:
    """Of two classes more, which belong to the student's first."""
    count = len(BOX_CLASSES)
    path = saved("RTDetrForObjectDetection", folder / "detr", count + 2)
    groups = {name: [i] for i, name in enumerate(BOX_CLASSES)}
    groups[BOX_CLASSES[0]] = [0, count, count + 1]
    return {"name": "hf", "options": {"path": str(path)}, "classes": groups}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("teacher", [fcos_teacher, rt_detr_teacher])
def test_boxes_teach_images_without_labels(teacher, tmp_path, capsys):
    if teacher is rt_detr_teacher:
        pytest.importorskip("transformers")
    tree = recipe(teacher(tmp_path))
    result = densekd.distill(tree, name="run", out=tmp_path, device="cpu")
    assert "boxes of score 0.01 and more as labels x 1" in capsys.readouterr().out
    rows = [json.loads(line) for line in RunFolder(result.folder).metrics.read_text().splitlines()]
    values = [row["distill/pseudo_boxes"] for row in rows if "loss" in row]
    assert len(values) == 4
    assert torch.tensor(values).isfinite().all()
    assert min(values) > 0


def batch(n: int) -> Batch:
    """One image with a box and the others without a label; the last is padded on the right."""
    task = detection()
    targets = task.example_targets(n, (64, 96), torch.device("cpu"))
    targets[-1].size = (64, 48)
    labelled = torch.zeros(n, dtype=torch.bool)
    labelled[0] = True
    inside = torch.ones(n, 64, 96, dtype=torch.bool)
    return Batch(torch.rand(n, 3, 64, 96), targets, labelled, inside, [""] * n)


def detection() -> Detection:
    return Detection(["cat", "dog"], [(0, 0, 0), (1, 1, 1)])


def test_targets_are_the_sure_boxes_inside_of_the_image():
    logits = torch.tensor([[[4.0, -9.0], [-9.0, 0.5], [-9.0, -2.0], [3.0, -9.0]]]).repeat(2, 1, 1)
    boxes = torch.tensor([[[0.5, 0.5, 0.5, 0.5], [0.25, 0.5, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0],
                           [0.75, 0.5, 0.25, 0.5]]]).repeat(2, 1, 1)  # fmt: skip
    whole, narrow = detection().pseudo_targets(SetPrediction(logits, boxes), batch(2), 0.6)
    # By score: sigmoid of 4, of 3, of 0.5 (0.62); the third box (0.12) is unsure.
    assert whole.labels.tolist() == [0, 0, 1]
    assert whole.boxes.tolist() == [[24, 16, 72, 48], [60, 16, 84, 48], [0, 0, 48, 64]]
    assert whole.areas.tolist() == [48 * 32, 24 * 32, 48 * 64]
    assert not whole.ignored.any()
    # 48 pixels wide: the first is cut, the second lies in the padding.
    assert narrow.labels.tolist() == [0, 1]
    assert narrow.boxes.tolist() == [[24, 16, 48, 48], [0, 0, 48, 64]]
    more = SetPrediction(torch.zeros(2, 4, 5), boxes)
    with pytest.raises(ValueError, match=r"predicts 5 classes and this data has 2.*classes"):
        detection().pseudo_targets(more, batch(2), 0.5)


def test_the_term_is_the_tasks_loss_on_the_teachers_boxes():
    torch.manual_seed(0)
    student, teacher = fcos_timm(2, **FCOS), fcos_timm(2, **FCOS)
    given = batch(2)
    distiller = Distiller(
        student, detection(), teacher=teacher, pseudo_boxes=PseudoBoxes(weight=3, score=0.01)
    )
    distiller.student.eval()
    losses, _ = distiller.student_phase(given)
    task, output = detection(), distiller.student(given.images)
    raw = distiller.teachers[""](given.images).prediction
    targets: list[Boxes] = task.pseudo_targets(raw, given, 0.01)
    assert len(targets[1].boxes) > 0
    wanted = task.loss(
        output, Batch(given.images, targets, torch.tensor([False, True]), given.inside, given.names)
    )
    torch.testing.assert_close(losses["distill/pseudo_boxes"], 3 * sum(wanted.values()))
    # Where every image has a label, the teacher's boxes say nothing, and the graph stays whole.
    given.labelled[:] = True
    none = distiller.student_phase(given)[0]["distill/pseudo_boxes"]
    assert none.item() == 0
    assert none.requires_grad


def test_where_boxes_cannot_teach(tmp_path):
    network = espnet_c(5, p=1, q=1)
    segmentation = Segmentation(list("abcde"), [(0, 0, 0)] * 5)
    with pytest.raises(ValueError, match="for detection; segmentation compares maps"):
        Distiller(network, segmentation, teacher=network, pseudo_boxes=PseudoBoxes())
    tree = recipe(fcos_teacher(tmp_path))
    several = {**tree, "teacher": None, "teachers": {"a": tree["teacher"]}}
    stored = recipe(tree["teacher"], teacher_cache={})
    stored["data"]["augment_epochs"] = 1
    maps = {"model": {"name": "espnet_c"}, "teacher": {"name": "espnet", "allow_untrained": True}}
    maps |= {"task": "segmentation", "data": {"dataset": "scenes"}}
    for wrong, message in (
        (several, "teachers is set, and boxes are those of one teacher"),
        (stored, r"distill\.teacher_cache is set, and boxes are not stored"),
        ({**tree, **maps}, r"distill\.pseudo_boxes: is for detection"),
    ):
        with pytest.raises(UserError, match=message):
            densekd.distill(wrong, name="run", out=tmp_path, device="cpu")
    assert not (tmp_path / "run").exists()
