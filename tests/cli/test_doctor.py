"""`densekd doctor`: its words, its JSON, its exit status."""

import io
import json

import pytest
import torch
from rich.console import Console

from densekd.cli.doctor import show
from densekd.cli.main import main
from densekd.workflows.doctor import machine
from densekd.workflows.doctor.finding import Finding
from tests.cli.helpers import write_recipe


@pytest.fixture
def tree(tiny_tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_tree["data"].update(options={"height": 32, "width": 64}, crop=[32, 64])
    return tiny_tree


def test_the_machine_alone(capsys):
    assert main(["doctor", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert f"torch {torch.__version__}" in out
    assert "in float32" in out
    assert "0 errors" in out.splitlines()[-1]


def test_json_and_status(tree, tmp_path, capsys):
    """Of the same recipe: 1 with a teacher that knows nothing, 0 without one."""
    recipe = str(write_recipe(tmp_path / "recipe.yaml", tree))
    words = ["doctor", recipe, "--device", "cpu", "--images", "1", "--json"]
    assert main(words) == 1
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert (found["recipe"], found["status"]) == (recipe, 1)
    errors = [f for f in found["findings"] if f["level"] == "error"]
    assert "teacher.weights" in {f["setting"] for f in errors}
    assert found["counts"]["error"] == len(errors)

    del tree["teacher"], tree["distill"]
    alone = str(write_recipe(tmp_path / "alone.yaml", tree))
    assert main(["doctor", alone, "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["error"] == 0
    assert {p.name for p in tmp_path.iterdir()} == {"recipe.yaml", "alone.yaml"}


def test_broken_packages_end_before_the_recipe(tree, tmp_path, capsys, monkeypatch):
    facts = {**machine.torchvision_facts(), "fault": "operator torchvision::nms does not exist"}
    monkeypatch.setattr(machine, "torchvision_facts", lambda: facts)
    assert main(["doctor", str(write_recipe(tmp_path / "recipe.yaml", tree))]) == 1
    out = capsys.readouterr().out
    assert "torchvision's operators do not load" in out
    assert "data:" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images", "0"], "--images 0"),
        (["--train.steps", "3"], "none is given"),
        (["no/such/recipe"], "no/such/recipe"),
        (["--device", "nonsense"], "nonsense"),
    ],
)
def test_wrong_use(words, message, capsys):
    assert main(["doctor", *words]) == 2
    assert message in capsys.readouterr().err


FINDINGS = [
    Finding("ok", "data", "train: 367 images"),
    Finding(
        "warning", "terms", "pixel_wise: " + "a long line " * 12, "Lower it", "distill.x.weight"
    ),
    Finding("error", "terms", "pair_wise has a single node"),
]


def test_a_terminal_of_80_columns():
    out = io.StringIO()
    show(FINDINGS, Console(file=out, force_terminal=True, width=80, color_system=None))
    text = out.getvalue()
    assert all(len(line) <= 80 for line in text.splitlines())
    for words in ("data", "terms", "ERROR", "→ Lower it [distill.x.weight]", "1 error, 1 warning"):
        assert words in text


def test_elsewhere_a_line_a_finding(capsys):
    show(FINDINGS, Console(file=io.StringIO()))
    ok, warning, error = capsys.readouterr().out.splitlines()
    assert ok == "ok       data: train: 367 images"
    assert warning.endswith(". Lower it [distill.x.weight]")
    assert error == "error    terms: pair_wise has a single node"
