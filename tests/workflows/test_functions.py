"""The package's functions on real runs of all three tasks: train, load, predict, evaluate."""

import json
import os
import signal
from copy import deepcopy

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import densekd
from densekd.config.load import make_config
from densekd.engine.folder import RunFolder
from densekd.errors import UserError, WeightsError
from densekd.models.weights import read_metadata
from densekd.types import DenseOutput
from densekd.workflows.evaluate import evaluate_weights
from tests.workflows.test_tasks import DEPTH, DETECTOR

TASKS = ("segmentation", "detection", "depth")


def tree_of(task: str) -> dict:
    """A recipe that trains in a second."""
    tree = {
        "task": {"name": task},
        "model": {"name": "espnet_c", "options": {"p": 1, "q": 1}},
        "data": {
            "dataset": "scenes",
            "options": {"height": 64, "width": 96},
            "train_options": {"length": 4},
            "val_options": {"length": 2},
            "batch_size": 2,
            "workers": 0,
            "crop": [64, 96],
        },
        "train": {"steps": 1},
        "note": "a note",
    }
    if task == "detection":
        tree["model"] = deepcopy(DETECTOR)
        tree["data"]["options"]["target"] = "boxes"
        tree["task"].update(score_threshold=0.001, detections_per_image=7)
    if task == "depth":
        tree["model"] = deepcopy(DEPTH)
        tree["data"]["options"]["target"] = "depth"
        tree["task"].update(min_depth=2, max_depth=60, bins=8)
    return tree


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run a task."""
    out = tmp_path_factory.mktemp("runs")
    return {task: densekd.train(tree_of(task), name=task, out=out, device="cpu") for task in TASKS}


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Of a size that no stride divides."""
    return np.random.default_rng(0).integers(0, 256, (51, 70, 3), dtype=np.uint8)


def test_a_run_says_what_came_out(runs):
    for task, result in runs.items():
        assert result.finished
        assert result.stopped_by is None
        assert result.step == 1
        assert result.folder.name == task
        written = json.loads(RunFolder(result.folder).result.read_text())
        assert written["scores"] == json.loads(json.dumps(result.scores))
    assert (
        RunFolder(result.folder).command.read_text().startswith("densekd.train(RECIPE, {}, name=")
    )


@pytest.mark.parametrize("task", TASKS)
def test_a_loaded_model_is_the_runs_student(runs, task, image):
    model = densekd.load(runs[task].folder)
    assert not model.training
    assert model.task.name == task
    saved = load_file(RunFolder(runs[task].folder).student)
    assert all(torch.equal(value, saved[name]) for name, value in model.model.state_dict().items())
    output = model(torch.rand(2, 3, 64, 96))
    assert isinstance(output, DenseOutput)
    assert model.about["note"] == "a note"
    if task != "depth":
        assert model.classes[0] in ("road", "car")
        assert len(model.palette) == len(model.classes)
    else:
        assert model.classes == []


@pytest.mark.parametrize("task", TASKS)
def test_predictions_have_the_images_size_whatever_it_is_given_as(runs, task, image, tmp_path):
    model = densekd.load(runs[task].folder / "checkpoints" / "student.safetensors")
    Image.fromarray(image).save(tmp_path / "a.png")
    random_state = torch.get_rng_state()
    answers = [
        model.predict(given)
        for given in (image, Image.fromarray(image), tmp_path / "a.png", str(tmp_path / "a.png"))
    ]
    assert torch.equal(torch.get_rng_state(), random_state)
    first = answers[0]
    if task == "detection":
        assert {k: v.shape[1:] for k, v in first.items()} == {
            "boxes": (4,),
            "scores": (),
            "labels": (),
        }
        assert 0 < len(first["boxes"]) <= 7  # the recipe's own limits came along
        assert (first["boxes"] <= [70, 51, 70, 51]).all()
        for other in answers[1:]:
            assert all(np.array_equal(other[k], v) for k, v in first.items())
        return
    assert first.shape == (51, 70)
    assert all(np.array_equal(other, first) for other in answers[1:])
    if task == "segmentation":
        assert first.dtype == np.uint8
        assert first.max() < len(model.classes)
    else:
        assert first.dtype == np.float32
        assert (first >= 2).all()
        assert (first <= 60).all()


def test_a_prediction_is_what_is_scored(runs):
    """The same pixels as `evaluate` counts, found by hand."""
    from densekd.build.data import build_reader

    model = densekd.load(runs["segmentation"].folder)
    data = make_config(tree_of("segmentation"), "test").data
    reader = build_reader(data, "val", training=False)
    right = total = 0
    for index in range(len(reader)):
        sample = reader.read(index)
        known = sample.target != reader.ignore_index
        right += int((model.predict(sample.image) == sample.target)[known].sum())
        total += int(known.sum())
    assert right / total == runs["segmentation"].scores["pixel_accuracy"]


@pytest.mark.parametrize("task", TASKS)
def test_evaluate_gives_the_commands_scores(runs, task):
    folder, tree = runs[task].folder, tree_of(task)
    expected = evaluate_weights(
        make_config(tree, "test"), RunFolder(folder).student, "val", device="cpu", quiet=True
    )
    loaded = densekd.load(folder)
    without_model = {**tree, "model": {"name": "pspnet_resnet18"}}  # the file knows better
    assert densekd.evaluate(folder, device="cpu") == expected
    assert densekd.evaluate(expected["weights"], without_model, device="cpu") == expected
    assert densekd.evaluate(loaded, without_model, device="cpu") == expected
    bare = densekd.evaluate(densekd.Taps(loaded.model, {}, loaded.input_spec), tree, device="cpu")
    names = {"weights": type(loaded.model).__name__}
    assert bare == {**expected, **names}
    assert not loaded.model.training


def test_evaluate_says_which_data_and_which_classes(runs, image):
    with pytest.raises(UserError, match="which data"):
        densekd.evaluate(RunFolder(runs["depth"].folder).student)
    with pytest.raises(UserError, match="was trained for depth"):
        densekd.evaluate(densekd.load(runs["depth"].folder), tree_of("segmentation"), device="cpu")


@pytest.mark.parametrize("task", TASKS)
def test_files_of_before_still_load(runs, task, image, tmp_path):
    """Files once had neither the task's settings nor what it takes from the data."""
    file = RunFolder(runs[task].folder).student
    about = json.loads(read_metadata(file)["densekd"])
    for new in ("task_section", "palette", "ignore_index", "category_ids"):
        about.pop(new, None)
    old = tmp_path / "old.safetensors"
    save_file(load_file(file), old, metadata={"densekd": json.dumps(about)})
    model, now = densekd.load(old), densekd.load(file)
    assert model.task.network_arguments == now.task.network_arguments
    if task == "detection":
        assert set(model.predict(image)) == {"boxes", "scores", "labels"}
    else:
        assert np.array_equal(model.predict(image), now.predict(image))


def test_folders(runs, tmp_path):
    file = RunFolder(runs["segmentation"].folder).student
    alone = tmp_path / "shared"
    alone.mkdir()
    with pytest.raises(WeightsError, match="neither a run folder"):
        densekd.load(alone)
    (alone / "model.safetensors").write_bytes(file.read_bytes())
    assert densekd.load(alone).task.name == "segmentation"
    begun = tmp_path / "begun"
    (begun / "checkpoints").mkdir(parents=True)
    (begun / "config.yaml").write_text("")
    with pytest.raises(WeightsError, match="has not finished"):
        densekd.load(begun)
    with pytest.raises(WeightsError, match="has not been scored"):
        densekd.load(begun, best=True)
    RunFolder(begun).best.write_bytes(file.read_bytes())
    with pytest.raises(WeightsError, match="best=True"):
        densekd.load(begun)
    assert densekd.load(begun, best=True).path == RunFolder(begun).best


def test_damaged_and_foreign_files_say_what_to_do(runs, tmp_path):
    file = RunFolder(runs["segmentation"].folder).student
    state, about = load_file(file), json.loads(read_metadata(file)["densekd"])

    def written(metadata) -> str:
        save_file(state, tmp_path / "x.safetensors", metadata=metadata)
        return str(tmp_path / "x.safetensors")

    with pytest.raises(WeightsError, match="no such weights file"):
        densekd.load(tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match="cut short"):
        densekd.load(tmp_path / "cut.safetensors")
    torch.save(state, tmp_path / "foreign.pth")
    for foreign in (tmp_path / "foreign.pth", written({}), written({"format": "pt"})):
        with pytest.raises(WeightsError, match=r"evaluate RECIPE --weights"):
            densekd.load(foreign)
    with pytest.raises(WeightsError, match="copy the file again"):
        densekd.load(written({"densekd": "{not JSON"}))
    for key in ("task", "model", "classes", "input", "arguments", "task_section"):
        with pytest.raises(WeightsError, match=f"lacks {key}"):
            densekd.load(written({"densekd": json.dumps({**about, key: 7})}))
    with pytest.raises(WeightsError, match="lacks task"):
        densekd.load(written({"densekd": "[1]"}))
    for key, value in (
        ("classes", [1, {}]),
        ("palette", 3),
        ("arguments", {}),
        ("input", {"x": 1}),
    ):
        with pytest.raises(WeightsError):
            densekd.load(written({"densekd": json.dumps({**about, key: value})}))
    other = {**about, "model": {**about["model"], "options": {"p": 2, "q": 1}}}
    with pytest.raises(WeightsError, match="missing"):
        densekd.load(written({"densekd": json.dumps(other)}))
    other["model"]["options"] = {"pp": 1}
    with pytest.raises(WeightsError, match=r"cannot be built: model\.options\.pp"):
        densekd.load(written({"densekd": json.dumps(other)}))


def test_a_file_runs_no_code_that_it_names(runs, tmp_path):
    file = RunFolder(runs["segmentation"].folder).student
    about = json.loads(read_metadata(file)["densekd"])
    about["model"]["name"] = "densekd.models.espnet.espnet_c"  # a dotted path, as of a user's own
    path = tmp_path / "x.safetensors"
    save_file(load_file(file), path, metadata={"densekd": json.dumps(about)})
    with pytest.raises(WeightsError, match="trusted=True"):
        densekd.load(path)
    with pytest.raises(WeightsError, match="trusted=True"):
        densekd.evaluate(path, tree_of("segmentation"), device="cpu")
    assert densekd.load(path, trusted=True).classes == about["classes"]


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), None]
)
def test_what_is_no_image_is_refused(runs, wrong):
    with pytest.raises(
        UserError, match=r"expected a file, a Pillow image, or a NumPy array \(H, W, 3\)"
    ):
        densekd.load(runs["segmentation"].folder).predict(wrong)


def test_a_signal_stops_a_run_which_goes_on(tmp_path, monkeypatch):
    import densekd.engine.trainer as trainer

    whole = densekd.train(tree_of("segmentation"), {"train.steps": 3}, name="whole", out=tmp_path)
    original = trainer.seed_step

    def interrupted(seed, step, rank):
        original(seed, step, rank)
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trainer, "seed_step", interrupted)
    options = {"name": "r", "out": tmp_path, "device": "cpu"}
    stopped = densekd.train(tree_of("segmentation"), {"train.steps": 3}, **options)
    assert (stopped.stopped_by, stopped.step, stopped.scores) == ("SIGINT", 2, None)
    assert not stopped.finished
    with pytest.raises(WeightsError, match="has not finished"):
        stopped.load()
    monkeypatch.undo()
    again = densekd.train(tree_of("segmentation"), {"train.steps": 3}, resume=True, **options)
    assert again.finished
    assert again.scores == whole.scores
    # Once more: there is nothing left to do.
    assert (
        densekd.train(tree_of("segmentation"), {"train.steps": 3}, resume=True, **options) == again
    )


def test_distill_and_its_settings(tiny_tree, tmp_path):
    settings = {"train.steps": 1, "distill.pair_wise.granularity": 2}
    result = densekd.distill(make_config(tiny_tree, "test"), settings, out=tmp_path, device="cpu")
    assert result.folder == tmp_path / "espnet_c-distill"
    assert "granularity: 2" in RunFolder(result.folder).config.read_text()
    with pytest.raises(UserError, match=r"'train' is a whole section.*'train\.steps': 5"):
        densekd.distill(tiny_tree, {"train": {"steps": 5}}, out=tmp_path)
    with pytest.raises(UserError, match=r"train\.stepps"):
        densekd.distill(tiny_tree, {"train.stepps": 5}, out=tmp_path)
    with pytest.raises(UserError, match="already exists"):
        densekd.distill(tiny_tree, settings, out=tmp_path, device="cpu")
    with pytest.raises(UserError, match="expected the name of a shipped recipe"):
        densekd.distill(7)
    with pytest.raises(UserError, match="plain folder name"):
        densekd.distill(tiny_tree, name="../x", out=tmp_path)
    assert "granularity" not in tiny_tree["distill"]["pair_wise"]  # what was given is as it was


def test_details_of_the_networks():
    rows = {row.name: row for row in densekd.list_models(details=True)}
    assert rows["espnet"].parameters == 363_462
    assert (rows["espnet"].tap, rows["espnet"].stride, rows["espnet"].pretrained) == (
        "b3",
        8,
        False,
    )
    assert (rows["fcos_resnet50"].task, rows["fcos_resnet50"].stride) == ("detection", 8)
    assert rows["vnl"].required == ("backbone",)
    assert rows["vnl"].parameters is None


def test_the_table_of_networks_says_what_is_built():
    """`python docs/make_model_table.py` makes it anew."""
    built = {row.name: row for row in densekd.list_models(details=True)}
    assert {row.name: row for row in densekd.list_models()} == built
    assert all(row.weights for row in built.values())
