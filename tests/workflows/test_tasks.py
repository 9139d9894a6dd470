"""Detection and depth through the whole house: all terms, resume, scores, tables, bad input."""

import json
from copy import deepcopy

import pytest
import torch
from PIL import Image

from densekd.build.data import build_reader
from densekd.build.distiller import build_distiller
from densekd.build.networks import build_network
from densekd.build.task import build_task
from densekd.cli.main import main
from densekd.config.load import dump_config, make_config
from densekd.engine.checkpoint import load_checkpoint
from densekd.engine.folder import RunFolder
from densekd.engine.log import read_metrics
from densekd.engine.trainer import Training
from densekd.errors import UserError
from densekd.models.weights import read_weights, save_weights
from densekd.scenes import write_cityscapes
from densekd.types import Batch
from densekd.workflows.ablate import ablate
from densekd.workflows.baseline import constant_guess_scores
from densekd.workflows.evaluate import evaluate_weights
from densekd.workflows.run import run
from tests.cli.helpers import torchrun, write_recipe

DETECTOR = {"name": "fcos_timm", "options": {"backbone": "test_resnet", "pyramid_channels": 32,
            "head_convs": 1, "extra_levels": 0}}  # fmt: skip
DEPTH = {"name": "depth_timm", "options": {"backbone": "test_resnet", "pyramid_channels": 16}}


def wider(model: dict) -> dict:
    """A teacher: the same network with twice the channels above the backbone."""
    teacher = deepcopy(model)
    teacher["options"]["pyramid_channels"] *= 2
    return {**teacher, "allow_untrained": True}


@pytest.fixture
def trees(tiny_tree) -> dict[str, dict]:
    """A recipe a task, with every term it has."""
    detection, depth, bins = (deepcopy(tiny_tree) for _ in range(3))
    for tree, task, model in (
        (detection, "detection", DETECTOR),
        (depth, "depth", DEPTH),
        (bins, "depth", DEPTH),
    ):
        tree.update(task=task, model=deepcopy(model), teacher=wider(model))
        tree["data"]["options"]["target"] = "boxes" if task == "detection" else "depth"
        tree["distill"]["feature_mimic"] = {"weight": 1}
        tree["optim"] = {"name": "adam", "lr": 1e-3}
    depth["task"] = {"name": "depth", "min_depth": 1, "max_depth": 80}
    bins["task"] = {"name": "depth", "min_depth": 1, "max_depth": 80, "bins": 8}
    bins["distill"]["metres"] = {
        "loss": "pixel_wise", "form": "regression", "weight": 1, "student": "depth", "teacher": "depth",
    }  # fmt: skip
    return {"detection": detection, "depth": depth, "depth bins": bins}


SUPERVISED = {
    "detection": {"task/classification", "task/box", "task/centerness"},
    "depth": {"task/silog"},
    "depth bins": {"task/cross_entropy", "task/virtual_normal"},
}
MAIN = {"detection": "ap", "depth": "abs_rel", "depth bins": "abs_rel"}


def go(tree, folder, **options):
    config = make_config(tree, "test")
    return run(config, distil=True, folder=folder, command="test", device="cpu", **options)


@pytest.mark.parametrize("kind", SUPERVISED)
def test_every_term_then_stopped_and_resumed_bit_for_bit(trees, kind, tmp_path, monkeypatch):
    tree = trees[kind]
    assert go(tree, tmp_path / "whole") == 0
    whole = RunFolder(tmp_path / "whole")
    rows = read_metrics(whole.metrics)
    terms = {f"distill/{name}" for name in tree["distill"]}
    assert SUPERVISED[kind] | terms | {"discriminator/penalty"} <= set(rows[0])
    assert all(rows[0][term] > 0 for term in terms - {"distill/holistic"})
    result = json.loads(whole.result.read_text())
    assert result["scores"][MAIN[kind]] == rows[-1][f"val/{MAIN[kind]}"]
    assert not any(key.startswith(("adapters", "terms")) for key in read_weights(whole.student))

    # Stop after 2 of 4 steps as a kill would: between a save and the next step.
    original = Training.save

    def die(self):
        original(self)
        if self.done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Training, "save", die)
    with pytest.raises(KeyboardInterrupt):
        go(tree, tmp_path / "parts")
    monkeypatch.undo()
    parts = RunFolder(tmp_path / "parts")
    saved = load_checkpoint(parts.last)["terms"]["feature_mimic"]
    assert "adapter.weight" in saved, "the mimic's adapter is part of the run"
    assert go(tree, tmp_path / "parts", resume=True) == 0
    assert whole.student.read_bytes() == parts.student.read_bytes()
    a, b = load_checkpoint(whole.last), load_checkpoint(parts.last)
    parts_of = [*((name, "terms") for name in a["terms"]), ("discriminator", None)]
    for name, group in parts_of:
        one, two = ((x if group is None else x[group])[name] for x in (a, b))
        assert all(torch.equal(v, two[k]) for k, v in one.items()), name


@pytest.mark.parametrize("kind", ["detection", "depth"])
def test_evaluate_writes_the_tasks_scores(trees, kind, tmp_path, capsys):
    tree = trees[kind]
    assert go(tree, tmp_path / "run") == 0
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_config(make_config(tree, "test")))
    output, results = tmp_path / "scores.json", tmp_path / "results.json"
    words = [
        "evaluate", str(recipe), "--weights", str(RunFolder(tmp_path / "run").student),
        "--device", "cpu", "--output", str(output),
    ]  # fmt: skip
    if kind == "depth":
        assert main([*words, "--results", str(results)]) == 2
        assert "--results" in capsys.readouterr().err
        assert main(words) == 0
        scores = json.loads(output.read_text())
        assert {"abs_rel", "rmse", "silog", "delta1", "delta2", "delta3"} <= scores.keys()
        return
    assert main([*words, "--results", str(results)]) == 0
    scores = json.loads(output.read_text())
    assert {"ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "per_class"} <= scores.keys()
    found = json.loads(results.read_text())
    assert all(set(row) == {"image_id", "category_id", "bbox", "score"} for row in found)
    assert main([*words, "--results", str(results)]) == 2
    assert "exists" in capsys.readouterr().err


# densekd, which names its threads when it is done.
NAMING_THREADS = """
import sys
from pathlib import Path
from densekd.cli.main import main
status = main(sys.argv[1:])
names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
print("threads at the end:", *sorted(names), file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.slow  # two processes with torch in each
@pytest.mark.dist
@pytest.mark.parametrize("kind", ["detection", "depth"])
def test_two_processes_distil_and_give_the_scores_of_one(trees, kind, tmp_path):
    tree = trees[kind]
    tree["train"]["steps"] = 2
    recipe = write_recipe(tmp_path / "recipe.yaml", tree)
    result = torchrun(
        "distill", recipe, "--out", tmp_path, "--name", "run", "--device", "cpu", command=NAMING_THREADS
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("threads at the end") == 2, result.stderr
    assert "gloo" not in result.stderr, (
        "a thread of the group outlives it, and may abort the process"
    )
    weights, output = RunFolder(tmp_path / "run").student, tmp_path / "scores.json"
    result = torchrun(
        "evaluate", recipe, "--weights", weights, "--output", output, "--device", "cpu"
    )
    assert result.returncode == 0, result.stderr
    # Three images over two processes: none is lost or doubled.
    alone = evaluate_weights(make_config(tree, "test"), weights, "val", device="cpu", quiet=True)
    together = json.loads(output.read_text())
    assert together.keys() == alone.keys()
    for key, value in alone.items():
        expected = pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
        assert together[key] == expected, key
    assert together["images"] == 3
    assert together["objects" if kind == "detection" else "pixels"] > 0


@pytest.mark.slow  # two processes with torch in each
@pytest.mark.dist
def test_two_processes_write_the_results_of_one(trees, tmp_path):
    tree = trees["detection"]
    # Untrained, but every box is kept.
    tree["task"] = {"name": "detection", "score_threshold": 0.0, "detections_per_image": 20}
    recipe = write_recipe(tmp_path / "recipe.yaml", tree)
    config = make_config(tree, "test")
    reader = build_reader(config.data, "val", training=False)
    network, _ = build_network(config.model, build_task(config, reader), "model")
    weights = tmp_path / "weights.safetensors"
    save_weights(network, weights, {})
    words = ["evaluate", recipe, "--weights", weights, "--device", "cpu", "--results"]
    result = torchrun(*words, tmp_path / "two.json")
    assert result.returncode == 0, result.stderr
    assert main([*map(str, words), str(tmp_path / "one.json")]) == 0
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "two"))
    assert len(one) == 60

    def by_image(rows):
        return sorted(rows, key=lambda r: (r["image_id"], -r["score"], r["bbox"]))

    for mine, theirs in zip(by_image(one), by_image(two), strict=True):
        assert (mine["image_id"], mine["category_id"]) == (
            theirs["image_id"],
            theirs["category_id"],
        )
        assert mine["bbox"] == pytest.approx(theirs["bbox"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["detection", "depth"])
def test_a_table_of_each_task(trees, kind, tmp_path):
    tree = trees[kind]
    teacher = deepcopy(tree)
    teacher["model"] = {k: v for k, v in tree["teacher"].items() if k != "allow_untrained"}
    assert go(teacher, tmp_path / "teacher") == 0
    tree["teacher"]["weights"] = str(RunFolder(tmp_path / "teacher").student)
    tree["distill"] = {"pixel_wise": {"weight": 1}}
    config = make_config(tree, "test")
    status, table = ablate(config, folder=tmp_path / "ablation", jobs=2, device="cpu")
    assert status == 0
    titles = [line.split("|")[1].strip() for line in table.splitlines()[2:6]]
    assert titles[0] == "constant guess"
    assert titles[2:] == ["student alone", "+Pi"]
    heading = "AP on val" if kind == "detection" else "AbsRel on val"
    assert heading in table.splitlines()[0]


@pytest.mark.parametrize("kind", SUPERVISED)
def test_a_student_equal_to_its_teacher_has_zero_terms(trees, kind):
    tree = trees[kind]
    # Unfolded, so that it can be given the student's weights.
    tree["teacher"] = {**deepcopy(tree["model"]), "allow_untrained": True, "fold_norms": False}
    del tree["distill"]["holistic"]  # judges, and does not compare
    config = make_config(tree, "test")
    reader = build_reader(config.data, "train", training=True)
    task = build_task(config, reader)
    cpu = torch.device("cpu")
    distiller, _ = build_distiller(config, task, distil=True, device=cpu)
    assert all(t.adapter is None for t in distiller.terms), "equal widths need no adapter"
    distiller.teacher.network.model.load_state_dict(distiller.student.model.state_dict())
    distiller.student.eval()
    build_size = (48, 80)  # no multiple of the stride
    batch = Batch(
        images=torch.rand(2, 3, *build_size),
        targets=task.example_targets(2, build_size, cpu),
        labelled=torch.ones(2, dtype=torch.bool),
        inside=torch.ones(2, *build_size, dtype=torch.bool),
        names=["a", "b"],
    )
    losses, _ = distiller.student_phase(batch)
    for name in tree["distill"]:
        assert losses[f"distill/{name}"].item() == pytest.approx(0, abs=1e-6), name
    assert sum(v.item() for k, v in losses.items() if k.startswith("task/")) > 0


@pytest.mark.parametrize("kind", ["detection", "depth"])
def test_the_constant_guess_has_a_score(trees, kind):
    scores = constant_guess_scores(make_config(trees[kind], "test"))
    assert 0 <= scores[MAIN[kind]] < 1


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("detection", {"model": {"name": "fpn_timm", "options": {"backbone": "test_resnet"}}},
         ["student", "fcos_timm"]),
        ("detection", {"data": {"options": {"target": "depth"}}}, ["task is detection", "depth"]),
        ("detection", {"loss": {"name": "ohem"}}, ["loss.name", "segmentation"]),
        ("detection", {"train": {"best": "miou"}}, ["train.best", "ap50"]),
        ("detection", {"evaluate": {"flip": True}}, ["evaluate.flip"]),
        ("depth", {"model": {"name": "espnet_c", "options": {"p": 1, "q": 1}}}, ["metres", "depth_timm"]),
        ("depth", {"task": {"min_depth": 5, "max_depth": 2}}, ["depth", "5"]),
        ("depth", {"task": {"losses": {"silogg": 1}}}, ["silogg", "silog"]),
        ("depth", {"task": {"losses": {"cross_entropy": 1}}}, ["cross_entropy", "bins"]),
        ("depth", {"task": {"nms_threshold": 0.3}}, ["task.nms_threshold", "of the task depth"]),
        ("depth", {"task": {"min_dept": 1}}, ["task.min_dept", "did you mean 'min_depth'"]),
        ("depth", {"task": {"min_depth": -1}}, ["task.min_depth: must be above 0; got -1"]),
        ("depth", {"task": {"losses": {"silog": -1}}}, ["task.losses.silog: must be 0 or more; got -1"]),
        ("depth", {"task": {"bins": True}}, ["task.bins: expected a whole number; got True"]),
        ("detection", {"data": {"cache": "device"}}, ["data.cache: device knows no boxes"]),
        ("depth", {"detection": {"nms_threshold": 0.3}}, ["detection.nms_threshold", "depth"]),
        ("depth", {"data": {"cat_max_ratio": 0.75}}, ["cat_max_ratio"]),
    ],
)  # fmt: skip
def test_bad_settings_end_before_a_folder_is_made(trees, kind, change, words, tmp_path):
    tree = trees[kind]
    for section, values in change.items():
        if section == "model":
            tree["model"] = values
            continue
        for key, value in values.items():
            old = tree.setdefault(section, {}).get(key)
            tree[section][key] = {**old, **value} if isinstance(old, dict) else value
    with pytest.raises(UserError) as error:
        go(tree, tmp_path / "r")
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not (tmp_path / "r").exists()


def test_weights_of_another_task_or_range_are_named(trees, tmp_path):
    assert go(trees["depth"], tmp_path / "r") == 0
    weights = str(RunFolder(tmp_path / "r").student)
    other = trees["detection"]
    other["model"]["weights"] = weights
    with pytest.raises(UserError):
        go(other, tmp_path / "s")
    farther = trees["depth"]
    farther["model"]["weights"] = weights
    farther["task"]["max_depth"] = 100
    with pytest.raises(UserError, match=r"80\.0.*100"):
        go(farther, tmp_path / "s")


# --- what a review found --------------------------------------------------------------------------------------------


def test_an_image_twice_in_the_first_batch_is_no_matter(trees, tmp_path):
    tree = trees["detection"]
    tree["data"]["batch_size"] = 8  # of 6 images
    tree["train"]["steps"] = 1
    assert go(tree, tmp_path / "r") == 0


def test_a_mimic_named_like_a_tap_leaves_the_tap_alone(trees):
    tree = trees["depth"]
    tree["distill"] = {
        "pair_wise": {"weight": 1},
        "fuse": {"loss": "feature_mimic", "weight": 1},
    }
    config = make_config(tree, "test")
    task = build_task(config, build_reader(config.data, "train", training=True))
    distiller, _ = build_distiller(config, task, distil=True, device=torch.device("cpu"))
    output = distiller.student(torch.rand(1, 3, 64, 64))
    assert output.features["fuse"].shape[1] == 16
    compared = {term.name: term.student_maps(output, task)[0].shape[1] for term in distiller.terms}
    assert compared == {"pair_wise": 16, "fuse": 32}


def test_a_softmax_over_metres_is_refused(trees, tmp_path):
    tree = trees["depth bins"]
    tree["distill"] = {"pixel_wise": {"weight": 1, "student": "depth", "teacher": "depth"}}
    with pytest.raises(UserError, match="regression"):
        go(tree, tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.fixture
def blind(trees, tmp_path) -> dict:
    """A depth recipe on files without cameras."""
    root = tmp_path / "scenes"
    write_cityscapes(root, splits={"train": 3, "val": 3}, height=64, width=128)
    tree = trees["depth bins"]
    tree["data"].update(dataset="depth_folder", root=str(root), train_options={}, val_options={})
    tree["data"]["options"] = {
        "images": "leftImg8bit", "image_ending": "_leftImg8bit.png", "depth_ending": "_depth.png",
        "unit": "m/256",
    }  # fmt: skip
    return tree


def test_virtual_normals_without_cameras_end_before_a_folder_is_made(blind, tmp_path):
    with pytest.raises(UserError, match="intrinsics"):
        go(blind, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_range_without_any_truth_is_remarked_and_no_score(blind, tmp_path, capsys):
    blind["task"].update(min_depth=300, max_depth=400)  # the unit allows 256 m
    blind["distill"] = {"pixel_wise": {"weight": 1}}
    assert go(blind, tmp_path / "r") == 0
    assert "the supervised loss of a first batch" in capsys.readouterr().out
    text = RunFolder(tmp_path / "r").result.read_text()
    assert "NaN" not in text
    assert json.loads(text)["scores"]["abs_rel"] is None


def test_the_constant_guess_of_grey_images_of_mixed_sizes_with_a_bad_file(blind, tmp_path):
    files = sorted((tmp_path / "scenes/leftImg8bit").rglob("*.png"))
    for path in files:
        Image.open(path).convert("L").save(path)
    depth = sorted((tmp_path / "scenes/depth/val").rglob("*.png"))
    for path in (files[-1], depth[-1]):  # the last of val is narrower
        Image.open(path).crop((0, 0, 96, 64)).save(path)
    next(iter((tmp_path / "scenes/depth/train").rglob("*.png"))).write_bytes(b"no picture")
    blind["model"]["in_channels"] = 1
    blind["data"]["options"]["channels"] = 1
    blind["data"]["on_bad_file"] = "skip"
    blind["evaluate"] = {"batch_size": 3}
    scores = constant_guess_scores(make_config(blind, "test"))
    assert scores["images"] == 3
    assert scores["abs_rel"] > 0
