"""`densekd taps` on names, recipes and saved networks."""

from __future__ import annotations

import json

import pytest
import yaml
from torch import nn

import densekd
from densekd.cli.main import main
from densekd.config.load import make_config
from densekd.errors import UserError
from densekd.workflows.taps import tap_tables
from densekd.workflows.validate import validate


def plain(num_classes: int) -> nn.Module:
    """A network that says nothing of itself."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 4, 1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, 2, 1),
        nn.Conv2d(12, num_classes, 1),
    )


def large_windows(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, num_classes, 7))


def test_a_name_with_options():
    (table,) = tap_tables("fpn_timm", {"model.options.backbone": "test_resnet"}, (64, 96))
    assert (table.role, table.name, table.size) == ("model", "fpn_timm", (64, 96))
    rows = {row.path: row for row in table.rows}
    assert (rows["fuse"].shape, rows["fuse"].stride) == ((1, 128, 16, 24), 4)
    assert "default" in table.marks["fuse"]


@pytest.mark.parametrize(
    ("name", "options"),
    [("fcos_timm", {"backbone": "test_resnet"}), ("depth_timm", {"backbone": "test_resnet"})],
)
def test_every_task(name, options):
    (table,) = tap_tables(name, {f"model.options.{k}": v for k, v in options.items()}, (64, 64))
    assert any("default" in why for why in table.marks.values())


def test_a_recipe_has_two(tiny_tree, tmp_path, capsys):
    tiny_tree["teacher"].update(weights="is/not/read.pth", allow_untrained=False)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(tiny_tree))
    assert main(["taps", str(file), "--size", "64", "64", "--json", "--model.options.q", "2"]) == 0
    model, teacher = json.loads(capsys.readouterr().out)
    assert (model["role"], teacher["role"]) == ("model", "teacher")
    tap = next(tap for tap in model["taps"] if tap["path"] == "b3")
    assert tap == {
        **tap,
        "shape": [1, 256, 8, 8],
        "stride": 8,
        "marks": ["default", "last at stride 8"],
    }


def test_a_saved_run(tiny_tree, tmp_path, capsys):
    tiny_tree["train"]["steps"] = 1
    run = densekd.train(tiny_tree, name="r", out=tmp_path, device="cpu")
    capsys.readouterr()
    assert main(["taps", str(run.folder), "--size", "64", "64"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("model: espnet_c, an image of 64x64\ntap ")
    assert any(line.split()[0] == "b3" and "default" in line for line in out.splitlines())
    with pytest.raises(UserError, match="takes no settings"):
        tap_tables(str(run.folder), {"model.in_channels": 1})


def test_a_dotted_path_and_an_image_it_cannot_see():
    options = {"model.options.weights_backbone": None}
    (table,) = tap_tables("torchvision.models.segmentation.lraspp_mobilenet_v3_large", options)
    assert "backbone:high" in {row.path for row in table.rows}
    with pytest.raises(UserError, match=r"1x1.*--size HEIGHT WIDTH"):
        tap_tables("tests.workflows.test_taps.large_windows", {}, (1, 1))


def test_a_network_without_a_default_tap_is_answered_with_candidates(tiny_tree):
    tiny_tree["model"] = {"name": "tests.workflows.test_taps.plain"}
    with pytest.raises(
        UserError,
        match=r"distill\.pair_wise\.student: Sequential.*\(2, 1 are sensible\).*densekd taps",
    ):
        validate(make_config(tiny_tree, "test"))
    tiny_tree["distill"]["pair_wise"]["student"] = "2"
    assert validate(make_config(tiny_tree, "test")).endswith("valid")
