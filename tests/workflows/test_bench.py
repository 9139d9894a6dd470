"""`bench` on each task: rows, ratio, advice, and nothing left behind."""

import copy
import json

import pytest

from densekd.cli.main import main
from densekd.config.load import make_config
from densekd.errors import DataError, UserError
from densekd.workflows.bench import bench
from densekd.workflows.bench_text import advice, as_text, rows, shares
from tests.cli.helpers import write_recipe

PAIR = ["distill/pixel_wise", "distill/pair_wise", "distill/holistic"]


@pytest.fixture
def tree(tiny_tree):
    """A recipe that names no weights, as a user's may before the teacher is trained."""
    tiny_tree["data"].update(options={"height": 32, "width": 64}, crop=[32, 64])
    del tiny_tree["teacher"]["allow_untrained"]
    return tiny_tree


def test_a_distillation_with_everything(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree["train"].update(accumulate=2, ema=0.9, channels_last=True)
    tree["optim"]["clip"] = 1.0
    result = bench(make_config(tree, "test"), steps=2, device="cpu")
    assert list(rows(result)) == [
        "data wait", "to the device", "teacher", "student forward", "supervised loss", *PAIR, "backward", "optimizer",
        "discriminator", "other",
    ]  # fmt: skip
    assert sum(shares(result).values()) == pytest.approx(1)
    assert list(result["floor"]) == ["teacher", "student", "discriminator"]
    assert result["ratio"]["count"] == 2
    assert result["batch"] == [2, 3, 32, 64]
    raw = result["raw_seconds"]
    whole = [sum(raw[f"loop {k}"][i] for k in ("wait", "move", "step")) for i in range(2)]
    assert result["images_per_s"]["median"] == pytest.approx(sum(4 / s for s in whole) / 2)
    assert "random teacher" in result["remarks"][0]
    json.dumps(result)
    text = as_text(result)
    assert "espnet_c from espnet, 2 × 2×3×32×64, 9 classes, cpu" in text
    for word in (
        "images/s",
        "over its floor",
        "remark: the recipe names no teacher.weights",
        *PAIR,
    ):
        assert word in text
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) == 1
    assert not list(tmp_path.iterdir())


def test_without_a_teacher(tree):
    del tree["teacher"], tree["distill"]
    result = bench(make_config(tree, "test"), steps=2, device="cpu")
    assert result["ratio"] is None
    assert result["teacher"] is None
    assert "teacher" not in rows(result)
    text = as_text(result)
    assert "espnet_c alone" in text
    assert "floor" not in text


def test_weights_stay(tree, monkeypatch):
    """The rates are 0: what is measured learns nothing, however bad the random teacher."""
    from densekd.workflows import bench as workflow

    seen = []

    def look(step, group, **options):
        seen.append(copy.deepcopy(step.distiller.student.model))
        found = time_step(step, group, **options)
        seen.append(step.distiller.student.model)
        return found

    time_step = workflow.time_step
    monkeypatch.setattr(workflow, "time_step", look)
    tree["optim"] = {"name": "adamw", "lr": 1.0}
    bench(make_config(tree, "test"), steps=1, device="cpu")
    before, after = (dict(network.named_parameters()) for network in seen)
    assert all((value == before[name]).all() for name, value in after.items())


@pytest.mark.parametrize("task", ["detection", "depth"])
def test_other_tasks(tree, task):
    target, model = {
        "detection": ("boxes", "fcos_timm"),
        "depth": ("depth", "depth_timm"),
    }[task]
    options = {"backbone": "test_resnet", "pyramid_channels": 32}
    if task == "detection":
        options.update(head_convs=1, finest_stride=4, extra_levels=0)
        tree["distill"] = {"pixel_wise": {"weight": 1}, "feature_mimic": {"weight": 1}}
    wide = {**options, "pyramid_channels": 64}
    tree.update(task=task, model={"name": model, "options": options})
    tree["teacher"] = {"name": model, "options": wide}
    tree["data"]["options"].update(target=target, height=64, width=64)
    tree["data"]["crop"] = [64, 64]
    result = bench(make_config(tree, "test"), steps=1, device="cpu")
    assert [name for name in rows(result) if name.startswith("distill/")] == [
        f"distill/{name}" for name in tree["distill"]
    ]
    assert result["ratio"]["median"] > 0
    made_up = bench(make_config(tree, "test"), steps=1, device="cpu", made_up=True)
    assert made_up["classes"] == result["classes"]


def test_loader_processes(tree):
    tree["data"]["workers"] = 1
    result = bench(make_config(tree, "test"), steps=2, device="cpu")
    assert result["loop"]["data wait"]["median"] >= 0


def test_the_cache_is_the_runs(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEKD_CACHE", str(tmp_path / "cache"))
    tree["data"]["cache"] = "device"
    result = bench(make_config(tree, "test"), steps=1, device="cpu")
    assert result["loop"]["data wait"]["median"] > 0
    assert (tmp_path / "cache").is_dir()


def test_made_up_images_need_no_data(tree):
    tree["data"].update(dataset="camvid", options={}, train_options={}, val_options={})
    with pytest.raises(UserError, match=r"data\.root.*\n.*--made-up"):
        bench(make_config(tree, "test"), steps=1, device="cpu")
    tree["data"]["root"] = "/no/such/folder"
    with pytest.raises(DataError, match=r"/no/such/folder.*\n.*--made-up"):
        bench(make_config(tree, "test"), steps=1, device="cpu")
    result = bench(make_config(tree, "test"), steps=1, device="cpu", made_up=True)
    assert result["classes"] == 11
    assert "data wait" not in rows(result)
    assert any("made up" in remark for remark in result["remarks"])
    tree["data"]["crop"] = None
    with pytest.raises(UserError, match=r"data\.crop"):
        bench(make_config(tree, "test"), steps=1, device="cpu", made_up=True)


# --- advice ---------------------------------------------------------------------------------------------------------


def row(median: float) -> dict:
    return {"median": median, "interval": [median, median]}


def made(wait=0.0, teacher=1.0, ratio=1.0, beside=2.0, device="cpu") -> dict:
    return {
        "loop": {"data wait": row(wait), "to the device": row(0.0), "step": row(beside)},
        "parts": {"teacher": row(teacher), "distill/pixel_wise": row(0.1), "distill/mine": row(0.2), "other": row(0.7)},
        "step": row(2.0),
        "ratio": row(ratio),
        "device": device,
    }  # fmt: skip


def test_advice_follows_from_numbers(tree):
    config = make_config(tree, "test")
    assert advice(config, made()) == []
    (line,) = advice(config, made(wait=1.0))
    assert line.startswith("data wait is 33% of the step: ")
    assert "set data.cache" in line
    (line,) = advice(config, made(ratio=1.2))
    assert "20% more than its floor; the dearest term is distill/mine (200.0 ms forward)" in line
    (line,) = advice(config, made(beside=3.0))
    assert "1.5 times as long" in line
    (line,) = advice(config, made(device="cuda"))
    assert "teacher.precision bf16" in line
    tree["train"]["amp"] = "bf16"
    assert advice(make_config(tree, "test"), made(device="cuda")) == []


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command(tree, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path / "recipe.yaml", tree)
    words = ["bench", str(recipe), "--steps", "1", "--device", "cpu", "--data.batch_size", "3"]
    assert main([*words, "--output", "a/b.json"]) == 0
    said = capsys.readouterr()
    assert "3×3×32×64" in said.out
    found = json.loads((tmp_path / "a/b.json").read_text())
    assert found["config"]["data"]["batch_size"] == 3
    assert found["environment"]["versions"]["torch"]
    assert found["steps"] == 1
    # Said before anything is measured, and the file is as it was.
    assert main([*words, "--output", "a/b.json"]) == 2
    said = capsys.readouterr()
    assert "a/b.json exists" in said.err
    assert said.out == ""
    assert json.loads((tmp_path / "a/b.json").read_text()) == found
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml", "a"}
