"""What the terminal shows: completion, colours, usage, near names, quiet runs, first and last lines."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import warnings

import pytest

import densekd
from densekd.cli import completion
from densekd.cli import main as main_module
from densekd.cli.main import COMMANDS, main
from densekd.config.load import setting_names
from tests.cli.helpers import ENVIRONMENT, write_recipe

COLOUR = "\x1b["


@pytest.fixture(scope="module")
def script():
    return completion.bash()


def completed(script: str, *words: str) -> list[str]:
    """What bash offers for the last of the words."""
    code = (
        f"{script}\nCOMP_WORDS=({' '.join(repr(w) for w in words)})\nCOMP_CWORD={len(words) - 1}\n_densekd\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        [shutil.which("bash") or "bash", "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_options_settings_and_names(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").touch()
    assert completed(script, "densekd", "di") == ["distill"]
    assert set(COMMANDS) <= set(completed(script, "densekd", ""))
    assert "--resume" in completed(script, "densekd", "train", "--re")
    assert completed(script, "densekd", "train", "camvid/espnet_c_") == [
        "camvid/espnet_c_from_espnet",
        "camvid/espnet_c_from_espnetv2_cityscapes",
    ]
    assert completed(script, "densekd", "train", "mi") == ["mine.yaml"]
    assert completed(script, "densekd", "train", "x", "--train.st") == ["--train.steps"]
    assert completed(script, "densekd", "list", "mo") == ["models"]
    assert "pspnet_resnet18" in completed(script, "densekd", "taps", "psp")
    assert completed(script, "densekd", "data", "check", "--sp") == ["--split"]


def test_completion_has_every_command_and_setting(capsys):
    for shell in ("bash", "zsh", "fish"):
        assert main(["completion", shell]) == 0
        out = capsys.readouterr().out
        assert all(name in out for name in COMMANDS)
        assert all(name in out for name in setting_names())
        assert COLOUR not in out


def on_a_terminal(*words: str, **more: str) -> str:
    """What a process prints that believes to have a terminal."""
    main_end, other = pty.openpty()
    environment = {k: v for k, v in ENVIRONMENT.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "densekd", *words], stdout=other, stderr=other,
        env={**environment, "TERM": "xterm", **more},
    )  # fmt: skip
    os.close(other)
    text = b""
    while True:
        try:
            part = os.read(main_end, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        text += part
    process.wait()
    os.close(main_end)
    return text.decode()


@pytest.mark.parametrize("words", [["train", "--help"], ["list", "modles"]])
def test_no_color_is_obeyed_in_help_and_errors(words):
    assert COLOUR in on_a_terminal(*words)
    assert COLOUR not in on_a_terminal(*words, NO_COLOR="1")


@pytest.mark.parametrize("name", [*sorted({*COMMANDS} - {"data"}), "data check", "data synthesize"])
def test_usage_keeps_its_verb(name, capsys):
    with pytest.raises(SystemExit):
        main([*name.split(), "--help"])
    assert capsys.readouterr().out.startswith(f"usage: densekd {name} ")


@pytest.mark.parametrize(
    ("words", "three"),
    [
        (["config", "show", "camvid/espne"], ["camvid/espnet", "camvid/espnet_c"]),
        (["config", "validate", "camvid/espnet", "--model.name", "pspnet"],
         ["'pspnet_resnet18'", "'pspnet_resnet101'"]),
        (["config", "validate", "camvid/espnet", "--data.dataset", "cityscape"], ["'cityscapes'"]),
        (["config", "validate", "camvid/espnet_c_from_espnet", "--distill.pixelwise.weight", "1"],
         ["'pixel_wise'", "'pair_wise'"]),
        (["taps", "espne"], ["'espnet'", "'espnet_c'"]),
    ],
)  # fmt: skip
def test_an_unknown_name_is_answered_with_the_nearest(words, three, capsys):
    assert main(words) == 2
    said = capsys.readouterr().err
    assert all(name in said for name in three)
    assert re.search("[Dd]id you mean", said)


@pytest.fixture
def recipe(tiny_tree, tmp_path):
    tiny_tree["train"]["steps"] = 1
    return str(write_recipe(tmp_path / "tiny.yaml", tiny_tree))


def test_a_run_says_what_it_does_and_what_to_do_next(recipe, tmp_path, capsys):
    assert (
        main(["distill", recipe, "--out", str(tmp_path / "runs"), "--name", "r", "--device", "cpu"])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "distil espnet_c from espnet for 1 steps on scenes"
    assert lines[1] == "terms: the task's own, pixel_wise x 10, pair_wise x 10, holistic x 0.1"
    assert lines[-2].startswith("val mIoU")
    folder = tmp_path / "runs" / "r"
    for verb in ("predict", "export", "report"):
        assert f"densekd {verb} {folder}" in lines[-1]


def test_a_teacher_comes_with_its_score(tiny_tree, tmp_path, capsys):
    alone = {**tiny_tree, "model": tiny_tree["teacher"] | {}, "train": {"steps": 1}}
    alone["model"] = {k: v for k, v in alone["model"].items() if k != "allow_untrained"}
    options = {"out": tmp_path, "device": "cpu"}
    teacher = densekd.train(alone, name="teacher", quiet=True, **options)
    settings = {
        "teacher.weights": teacher.folder / "checkpoints" / "student.safetensors",
        "train.steps": 1,
    }
    densekd.distill(tiny_tree, settings, name="student", **options)
    assert f"miou {teacher.scores['miou']:.4f} on val" in capsys.readouterr().out


def test_quiet_prints_only_what_came_out(recipe, tmp_path, capsys):
    out = ["--out", str(tmp_path / "runs"), "--name", "r", "--device", "cpu", "--quiet"]
    assert main(["train", recipe, *out]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["val", "next:"]
    assert (
        json.loads((tmp_path / "runs" / "r" / "metrics.jsonl").read_text().splitlines()[0])["loss"]
        > 0
    )
    weights = str(tmp_path / "runs" / "r" / "checkpoints" / "student.safetensors")
    assert main(["evaluate", recipe, "--weights", weights, "--device", "cpu", "--quiet"]) == 0
    said = capsys.readouterr()
    assert "mIoU" in said.out
    assert said.err == ""


def test_the_bar_shows_the_terms(tmp_path, monkeypatch):
    from rich.console import Console

    from densekd.engine import log as module

    console = Console(force_terminal=True, width=100, file=(tmp_path / "screen").open("w"))
    monkeypatch.setattr(module, "Console", lambda **_: console)
    log = module.Log(tmp_path / "metrics.jsonl", active=True, total=100)
    for _ in range(8):
        log.count(4)
    log.steps(8, {"loss": 3.0, "task/ce": 1.0, "distill/pixel_wise": 2.0}, 0.1)
    log.close()
    console.file.close()
    screen = (tmp_path / "screen").read_text()
    assert "ce 1.000  pixel_wise 2.000" in screen
    assert re.search(r"about \d+ s for 100 steps, without evaluations", screen)


def test_a_duration_is_in_the_unit_that_fits():
    from densekd.engine.log import duration

    assert [duration(s) for s in (3, 89, 600, 5399, 9000)] == [
        "3 s",
        "89 s",
        "10 min",
        "90 min",
        "2.5 h",
    ]


def test_notes_of_libraries_to_their_developers_are_left_out(monkeypatch):
    monkeypatch.setattr(sys, "warnoptions", [])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        main_module.leave_out_warnings()
        for module, category in (
            ("torch.nn.x", FutureWarning),
            ("densekd.x", FutureWarning),
            ("torch.y", UserWarning),
        ):
            warnings.warn_explicit("a note", category, "file.py", 1, module=module)
    assert [(str(w.message), w.category) for w in seen] == [
        ("a note", FutureWarning),
        ("a note", UserWarning),
    ]


def test_no_more_workers_than_cores(tiny_tree, monkeypatch):
    """torch warns of more, which a recipe for another machine cannot know."""
    import torch

    from densekd.build import data as module
    from densekd.config.load import make_config
    from densekd.engine.launch import Process

    tiny_tree["data"]["workers"] = 64
    config = make_config(tiny_tree, "test")
    reader = module.build_reader(config.data, "train", training=True)
    augment = module.build_augment(
        config.data, reader, densekd.find_public("load").__globals__["InputSpec"]()
    )
    monkeypatch.setattr(module, "available_cores", lambda: 1)
    loader = module.build_train_loader(
        config, reader, augment, Process(0, 1, torch.device("cpu")), 0
    )
    assert loader._loader.num_workers == 1


def test_list_models_shows_what_there_is(capsys):
    assert main(["list", "models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "task", "M", "stride", "tap", "weights"]
    assert max(map(len, lines)) <= 84
    rows = {line.split()[0]: line for line in lines[1:]}
    assert set(rows) == {row.name for row in densekd.list_models()}
    assert rows["espnet"].split()[1:5] == ["segmentation", "0.36", "8", "b3"]
    assert rows["fpn_timm"].split() == ["fpn_timm", "segmentation", "ImageNet"]
    assert main(["list", "models", "--json"]) == 0
    (espnet,) = [row for row in json.loads(capsys.readouterr().out) if row["name"] == "espnet"]
    assert espnet["parameters"] == 363_462
    assert espnet["path"] == "densekd.models.espnet.espnet"
