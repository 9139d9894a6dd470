"""`densekd evaluate` from a recipe and a weights file to a score file: real readers, official oracle, two processes."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from densekd.cli.main import main
from densekd.config.load import make_config
from densekd.data import Cityscapes, to_label_ids
from densekd.errors import UserError
from densekd.models.espnet import espnet_c
from densekd.models.weights import load_weights, save_weights
from densekd.scenes import write_cityscapes
from densekd.workflows.evaluate import check_output, evaluate_weights
from tests.cli.helpers import torchrun, write_recipe

IMAGES = 5  # odd: two processes share them unevenly


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tree in the Cityscapes layout, a recipe over it, and weights that are random but not blind."""
    folder = tmp_path_factory.mktemp("evaluate")
    root = folder / "data"
    write_cityscapes(
        root, splits={"train": 1, "val": IMAGES}, height=64, width=96, depth=False, boxes=False
    )
    tree = {
        "model": {"name": "espnet_c", "options": {"p": 1, "q": 1}},
        "data": {"dataset": "cityscapes", "root": str(root), "workers": 0},
        "note": "made up",
    }
    torch.manual_seed(0)
    network = espnet_c(num_classes=19, p=1, q=1)
    with torch.no_grad():  # an untrained network says one class everywhere
        for parameter in network.parameters():
            if parameter.ndim == 4:
                parameter.mul_(2)
    weights = folder / "student.safetensors"
    save_weights(network, weights, {})
    return tree, weights, root, write_recipe(folder / "recipe.yaml", tree)


def test_scoring_loads_no_compiler_and_no_torchvision(made):
    """Each takes as long to import as torch itself, and a segmentation network needs neither."""
    _, weights, _, recipe = made
    heavy = ("torch._dynamo", "torch._inductor", "sympy", "torchvision", "timm", "torch.onnx")
    code = (
        "import sys\n"
        "from densekd.cli.main import main\n"
        f"assert main(['evaluate', {str(recipe)!r}, '--weights', {str(weights)!r}]) == 0\n"
        f"print('loaded:', *(set({heavy!r}) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.splitlines()[-1].split() == ["loaded:"]


def test_the_score_file_equals_cityscapesscripts(made, tmp_path, monkeypatch, capsys):
    _, weights, root, recipe = made
    output = tmp_path / "scores.json"
    words = ["evaluate", str(recipe), "--weights", str(weights), "--output", str(output)]
    assert main([*words, "--device", "cpu"]) == 0
    scores = json.loads(output.read_text())
    assert scores["images"] == IMAGES
    assert scores["note"] == "made up"
    said = capsys.readouterr().out
    assert re.search(rf"mIoU  {scores['miou']:.4f}  on 5 images of val  \(made up\)", said)

    # The predictions, made here from the bare network, as labelIds.
    network = espnet_c(num_classes=19, p=1, q=1)
    load_weights(network, weights)
    network.eval()
    reader = Cityscapes(root, "val")
    guesses, truths = [], []
    for i in range(IMAGES):
        image = torch.from_numpy(reader.read(i).image).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            logits = network(network.input_spec.normalize(image))
        logits = logits[0] if isinstance(logits, tuple) else logits
        classes = torch.nn.functional.interpolate(
            logits, image.shape[-2:], mode="bilinear", align_corners=True
        ).argmax(1)[0]
        guesses.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(to_label_ids(classes.numpy())).save(guesses[-1])
        truths.append(str(reader.paths(i)[1]))
    # NumPy 2.4 dropped the older name that the script uses.
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    monkeypatch.setenv("CITYSCAPES_DATASET", str(root))
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official

    for name, value in (("quiet", True), ("JSONOutput", False), ("evalInstLevelScore", False)):
        monkeypatch.setattr(official.args, name, value)
    theirs = official.evaluateImgLists(guesses, truths, official.args)
    for name, iou in scores["iou"].items():
        if iou is not None:
            assert iou == pytest.approx(theirs["classScores"][name], abs=1e-6), name
    assert scores["miou"] == pytest.approx(theirs["averageScoreClasses"], abs=1e-6)
    assert sum(iou is not None and iou > 0 for iou in scores["iou"].values()) > 1


@pytest.mark.slow  # two processes with torch in each
@pytest.mark.dist
def test_two_processes_give_the_score_of_one(made, tmp_path):
    tree, weights, _, recipe = made
    output = tmp_path / "scores.json"
    result = torchrun(
        "evaluate", recipe, "--weights", weights, "--output", output, "--device", "cpu"
    )
    assert result.returncode == 0, result.stderr
    config = make_config(tree, "test")
    alone = evaluate_weights(config, weights, "val", device="cpu", quiet=True)
    assert json.loads(output.read_text()) == alone


@pytest.mark.parametrize(
    "view",
    [
        {"flip": True},
        {"scales": [0.75, 1.0], "flip": True},
        {"window": [32, 48], "overlap": 0.5},
        {"window": [48, 64], "scales": [1.0, 1.25]},
    ],
)
def test_views_run_and_change_the_score(made, view):
    tree, weights, *_ = made
    plain = evaluate_weights(make_config(tree, "t"), weights, "val", device="cpu", quiet=True)
    config = make_config({**tree, "evaluate": view}, "t")
    scores = evaluate_weights(config, weights, "val", device="cpu", quiet=True)
    assert scores["pixels"] == plain["pixels"]
    assert scores["pixel_accuracy"] != plain["pixel_accuracy"]
    batched = make_config({**tree, "evaluate": {**view, "batch_size": 3}}, "t")
    again = evaluate_weights(batched, weights, "val", device="cpu", quiet=True)
    assert again["miou"] == pytest.approx(scores["miou"], abs=1e-4)


def test_an_output_of_ours_is_replaced_and_no_other(made, tmp_path, capsys):
    _, weights, _, recipe = made
    precious = tmp_path / "thesis.json"
    precious.write_text('{"chapters": 5}')
    words = ["evaluate", str(recipe), "--weights", str(weights), "--device", "cpu", "--output"]
    assert main([*words, str(precious)]) == 2
    assert "no score file" in capsys.readouterr().err
    assert precious.read_text() == '{"chapters": 5}'
    ours = tmp_path / "old.json"
    ours.write_text('{"miou": 0.1, "weights": "old", "split": "val", "images": 3}')
    assert main([*words, str(ours)]) == 0
    assert json.loads(ours.read_text())["images"] == IMAGES


@pytest.mark.parametrize("text", ["", "[1", "5", '["miou"]', "\x00"])
def test_check_output_takes_nothing_else_for_a_score_file(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match="no score file"):
        check_output(path)
    check_output(tmp_path / "new.json")


def test_weights_are_needed(made):
    tree, *_ = made
    with pytest.raises(UserError, match="--weights FILE"):
        evaluate_weights(make_config(tree, "t"), None, "val", device="cpu")


@pytest.mark.parametrize(
    ("config", "file", "miou"),
    [
        ("camvid/espnet", "espnet_camvid/ESPNet_base.pth", 0.8343),
    ],
)
@pytest.mark.slow
def test_a_published_checkpoint_has_its_score(shared, config, file, miou, tmp_path):
    """The whole validation split of CamVid, on one core: about half a minute."""
    weights = shared / "checkpoints" / file
    root = shared / "camvid"
    if not weights.is_file() or not root.is_dir():
        pytest.skip(f"needs {weights} and {root}")
    output = tmp_path / "scores.json"
    words = ["--data.root", str(root), "--weights", str(weights), "--output", str(output)]
    assert main(["evaluate", config, "--split", "val", *words, "--device", "cpu"]) == 0
    assert json.loads(output.read_text())["miou"] == pytest.approx(miou, abs=2e-4)
