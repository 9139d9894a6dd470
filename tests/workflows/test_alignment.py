"""A run says at its start what is made equal between student and teacher; a teacher may see a larger image."""

import pytest

import densekd
from densekd.cli.main import main
from densekd.errors import UserError
from tests.cli.helpers import write_recipe


def settings(tiny_tree):
    # Two networks of one input, whose sizes and widths differ.
    teacher = {"name": "fpn_timm", "options": {"backbone": "test_vit", "pyramid_channels": 24}}
    tiny_tree["teacher"] = {**teacher, "allow_untrained": True, "scale": 2}
    tiny_tree["distill"] = {
        "pixel_wise": {"weight": 1},
        "fitnet": {"weight": 1, "student": "b3", "teacher": "backbone.body.model.blocks.0"},
    }
    tiny_tree["train"] = {"steps": 2, "log_every": 1}
    return tiny_tree


def test_a_run_says_what_is_aligned(tiny_tree, tmp_path, capsys):
    tree = settings(tiny_tree)
    height, width = tree["data"]["crop"]
    densekd.distill(tree, name="run", out=tmp_path, device="cpu")
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("aligned: ") == 2  # both predictions have stride 8: nothing is said of them
    assert "aligned: the teacher sees its own input: order rgb instead of bgr" in said
    assert f"{2 * height}x{2 * width} pixels instead of {height}x{width}" in said
    tokens = (2 * height // 16) * (2 * width // 16) + 1
    assert f"blocks.0: {tokens} tokens become a map {height // 8}x{width // 8}, without" in said
    assert "256 -> 64 channels by a 1x1 convolution that trains with the student" in said
    state = densekd.load(tmp_path / "run").model.state_dict()
    assert not any("adapter" in key for key in state)


def test_nothing_is_said_of_a_pair_that_fits(tiny_tree, tmp_path, capsys):
    network = {"name": "espnet_c", "options": {"p": 1, "q": 1}}
    tiny_tree["model"] = network
    tiny_tree["teacher"] = {**network, "allow_untrained": True}
    tiny_tree["train"] = {"steps": 1}
    densekd.distill(tiny_tree, name="run", out=tmp_path, device="cpu")
    assert "aligned" not in capsys.readouterr().out


def test_a_teacher_is_scored_at_its_own_scale(tiny_tree, tmp_path, capsys):
    tree = settings(tiny_tree)
    scores = []
    for scale in (1, 2):
        tree["teacher"]["scale"] = scale
        recipe = write_recipe(tmp_path / f"{scale}.yaml", tree)
        assert main(["evaluate", str(recipe), "--teacher", "--device", "cpu", "--quiet"]) == 0
        scores.append(capsys.readouterr().out)
    assert scores[0] != scores[1]


def test_a_detector_sees_the_images_as_they_are(tmp_path):
    network = {"name": "fcos_timm", "options": {"backbone": "test_resnet", "pyramid_channels": 32}}
    tree = {
        "task": "detection",
        "model": network,
        "teacher": {**network, "allow_untrained": True, "scale": 1.5},
        "data": {"dataset": "scenes", "options": {"target": "boxes", "height": 64, "width": 64}},
        "distill": {"pair_wise": {"weight": 1}},
    }
    with pytest.raises(UserError, match=r"teacher\.scale: is 1\.5; leave it out with boxes"):
        densekd.distill(tree, name="run", out=tmp_path, device="cpu")
    assert not (tmp_path / "run").exists()
