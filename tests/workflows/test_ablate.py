"""The ablation: its rows, a real one end to end, and its table."""

import json

import pytest

from densekd.config.load import make_config
from densekd.engine.folder import RunFolder
from densekd.errors import UserError
from densekd.models.espnet import espnet
from densekd.models.weights import save_weights
from densekd.scenes import CLASSES
from densekd.workflows.ablate import ablate
from densekd.workflows.ablation_table import CONSTANT, write_table
from densekd.workflows.variants import Variant, setting_variants, term_variants

ROWS = ["constant guess", "teacher (espnet)", "student alone", "+Pi", "+Pi +Pa", "+Pi +Pa +Ho"]


def titles(table: str) -> list[str]:
    rows = [line for line in table.splitlines() if line.startswith("|")]
    return [row.split("|")[1].strip() for row in rows[2:]]


# --- rows -----------------------------------------------------------------------------------------------------------


def test_rows_add_the_papers_terms_in_its_order(tiny_tree):
    tiny_tree["distill"] = {
        "holistic": {"weight": 0.1},
        "mine": {"weight": 2, "loss": "densekd.losses.PixelWise"},
        "pair_wise": {"weight": 10},
        "pixel_wise": {"weight": 10},
    }
    variants = term_variants(make_config(tiny_tree, "test"))
    assert [v.title for v in variants] == [
        "student alone", "+Pi", "+Pi +Pa", "+Pi +Pa +mine", "+Pi +Pa +mine +Ho",
    ]  # fmt: skip
    assert [v.distil for v in variants] == [False, True, True, True, True]
    assert list(variants[2].config.distill.terms) == ["pair_wise", "pixel_wise"]
    assert variants[3].config.distill.holistic is None
    assert variants[4].config.distill.holistic is not None
    assert len({v.key for v in variants}) == 5


def test_no_term_is_an_error(tiny_tree):
    tiny_tree["distill"] = {}
    with pytest.raises(UserError, match="no term to ablate"):
        term_variants(make_config(tiny_tree, "test"))


def test_over_has_a_row_a_value(tiny_tree):
    config = make_config(tiny_tree, "test")
    variants = setting_variants(config, "distill.pair_wise.granularity=1,2", True)
    assert [v.title for v in variants] == [
        "distill.pair_wise.granularity = 1",
        "distill.pair_wise.granularity = 2",
    ]
    values = [v.config.distill.terms["pair_wise"].options["granularity"] for v in variants]
    assert values == [1, 2]
    assert [v.key for v in variants] == [
        "distill.pair_wise.granularity=1",
        "distill.pair_wise.granularity=2",
    ]
    crops = setting_variants(config, "data.crop=[32, 64],[64, 64]", True)
    assert [v.config.data.crop for v in crops] == [(32, 64), (64, 64)]
    assert len({v.key for v in crops}) == 2
    # one pixel and the whole map: not the same value twice
    assert len(setting_variants(config, "distill.pair_wise.granularity=1,1.0", True)) == 2


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ("seed=1,2", "--seeds"),
        ("teacher.weights=a,b", "share"),
        ("train.steps", "KEY=value"),
        ("train.steps=", "KEY=value"),
        ("train.stepps=1,2", "train.stepps"),
        ("train.steps=one", "'one'"),
        ("train.steps=[", "--over"),
        ("train.steps=3,3", "twice"),
    ],
)
def test_a_wrong_over_is_a_user_error(tiny_tree, over, words):
    with pytest.raises(UserError, match=words.replace("[", r"\[")):
        setting_variants(make_config(tiny_tree, "test"), over, True)


# --- the table ------------------------------------------------------------------------------------------------------


def make_result(folder, key, seed, miou):
    result = RunFolder(folder / key / f"seed{seed}").result
    result.parent.mkdir(parents=True)
    content = {"scores": {"miou": miou}, "parameters": 1234567, "macs": 2.5e9, "seconds": 3.0}
    result.write_text(json.dumps(content))


def test_the_table_has_means_and_deviations(tiny_tree, tmp_path):
    tiny_tree["note"] = "teacher saw val"
    config = make_config(tiny_tree, "test")
    variants = [Variant("a", "first", config, False), Variant("b", "second", config, True)]
    for seed, miou in enumerate((0.50, 0.52, 0.57)):
        make_result(tmp_path, "a", seed, miou)
    make_result(tmp_path, "b", 0, 0.6)
    teacher = {"scores": {"miou": 0.75}, "parameters": 68_000_000, "macs": 250e9}
    (tmp_path / CONSTANT).write_text(json.dumps({"miou": 0.03}))
    table = write_table(config, tmp_path, variants, 3, teacher)
    assert table.splitlines() == [
        "| network | mIoU (%) on val | parameters (M) | MACs (G, 64×128) |",
        "| --- | ---: | ---: | ---: |",
        "| constant guess | 3.00 |  |  |",
        "| teacher (espnet) | 75.00 | 68.000 | 250.000 |",
        # the sample's standard deviation (n - 1): 3.6056
        "| first | 53.00 ± 3.61 | 1.235 | 2.500 |",
        "| second (1 of 3 seeds so far) | 60.00 | 1.235 | 2.500 |",
        "",
        "Student espnet_c, 4 steps of 2 images, last weights, 3 seeds (mean ± std). Note: teacher saw val.",
    ]
    assert (tmp_path / "table.md").read_text() == table
    rows = json.loads((tmp_path / "results.json").read_text())
    assert rows[2]["scores"] == {"miou": [0.5, 0.52, 0.57]}


@pytest.mark.parametrize(
    ("teacher", "said"), [(0.75, False), (0.56, True), (0.40, True), (None, False)]
)
def test_a_teacher_that_is_not_above_the_student_alone(tiny_tree, tmp_path, teacher, said):
    """The deviation of the lone student's three seeds is 3.61 points around 53.00."""
    config = make_config(tiny_tree, "test")
    variants = [Variant("a", "alone", config, False), Variant("b", "+Pi", config, True)]
    for seed, miou in enumerate((0.50, 0.52, 0.57)):
        make_result(tmp_path, "a", seed, miou)
    row = {"scores": {"miou": teacher}, "parameters": 1, "macs": 1}
    table = write_table(config, tmp_path, variants, 3, None if teacher is None else row)
    words = "is not clearly above the student alone (53.00 ± 3.61). Distillation can hardly help"
    assert (words in table) == said
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [words in row.get("remark", "") for row in rows][:1] == [said]
    assert table == (tmp_path / "table.md").read_text()
    # Over the values of a setting there may be no student alone.
    over = [Variant("a", "granularity = 1", config, True)]
    assert words not in write_table(config, tmp_path, over, 3, None if teacher is None else row)


def test_rows_without_a_result_say_so(tiny_tree, tmp_path):
    config = make_config(tiny_tree, "test")
    variants = [Variant("a", "first", config, False), Variant("b", "second", config, True)]
    make_result(tmp_path, "b", 0, 0.6)
    table = write_table(config, tmp_path, variants, 1, None)
    assert titles(table) == ["second", "first (not run yet)"]
    assert "1 seed." in table


# --- a real one -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tiny_tree, tmp_path):
    """A recipe of three steps, with a teacher that has weights."""
    weights = tmp_path / "teacher.safetensors"
    save_weights(espnet(num_classes=9, p=1, q=1), weights, {})
    tiny_tree["teacher"] = {
        "name": "espnet",
        "options": {"p": 1, "q": 1},
        "weights": str(weights),
    }
    tiny_tree["data"].update(options={"height": 32, "width": 64}, crop=[32, 64])
    tiny_tree["train"] = {"steps": 3, "log_every": 1}
    return tiny_tree


def go(tree, folder, **options):
    return ablate(make_config(tree, "test"), folder=folder, jobs=2, device="cpu", **options)


@pytest.mark.slow
def test_a_second_set_and_a_teacher_of_other_classes(small, tmp_path):
    """The student alone sees no unlabelled images, and what has finished is not run again."""
    options = {"height": 32, "width": 64, "length": 4}
    small["data"]["unlabelled"] = {"dataset": "scenes", "split": "test", "options": options}
    small["teacher"]["num_classes"] = 9
    small["teacher"]["classes"] = {name: [i] for i, name in enumerate(CLASSES)}
    small["distill"] = {"pixel_wise": {"weight": 10}}
    folder = tmp_path / "ablation"
    status, table = go(small, folder)
    assert status == 0
    assert titles(table) == ROWS[:4]
    assert "Distilled students see 4 unlabelled images more in a step." in table
    assert "unlabelled: null" in (folder / "student" / "seed0" / "config.yaml").read_text()
    assert go(small, folder) == (0, table)


@pytest.mark.slow
def test_an_ablation_end_to_end_and_again(small, tmp_path, capsys):
    folder = tmp_path / "ablation"
    status, table = go(small, folder)
    assert status == 0
    assert titles(table) == ROWS
    assert table == (folder / "table.md").read_text()
    alone = RunFolder(folder / "student" / "seed0")
    full = RunFolder(folder / "pi_pa_ho" / "seed0")
    assert "distill/pixel_wise" not in alone.metrics.read_text()
    assert "distill/holistic" in full.metrics.read_text()
    # every row names the score its run measured
    row = next(line for line in table.splitlines() if line.startswith("| +Pi +Pa +Ho "))
    assert f"{100 * json.loads(full.result.read_text())['scores']['miou']:.2f}" in row

    def stamps():
        return {
            p: p.stat().st_mtime_ns
            for p in folder.rglob("*")
            if p.is_file() and p.name not in ("table.md", "results.json")
        }

    # The same command again trains nothing.
    before = stamps()
    assert go(small, folder) == (0, table)
    assert stamps() == before

    # A part that was lost is done again, and only that; equal settings give the equal table.
    full.result.unlink()
    full.last.unlink()
    assert go(small, folder) == (0, table)
    touched = {p.relative_to(folder).parts[0] for p, t in stamps().items() if before.get(p) != t}
    assert touched == {"pi_pa_ho"}

    # A finished part of other settings is not taken for this ablation's.
    text = alone.config.read_text()
    alone.config.write_text(text.replace("lr: 0.01", "lr: 0.02"))
    with pytest.raises(UserError, match=r"student/seed0 .*optim\.lr: 0\.02 -> 0\.01"):
        go(small, folder)
    alone.config.write_text(text)

    # Another recipe in the same folder is refused before anything is touched.
    before = stamps()
    small["optim"]["lr"] = 0.5  # settings are compared, not files
    with pytest.raises(UserError, match=r"other settings: optim\.lr: 0\.01 -> 0\.5"):
        go(small, folder)
    assert stamps() == before


@pytest.mark.slow
def test_over_a_setting_with_two_seeds(small, tmp_path):
    small["train"]["steps"] = 1
    del small["distill"]["holistic"]
    status, table = go(small, tmp_path / "over", over="distill.pair_wise.granularity=1,2", seeds=2)
    assert status == 0
    assert titles(table) == [
        "constant guess",
        "teacher (espnet)",
        "distill.pair_wise.granularity = 1",
        "distill.pair_wise.granularity = 2",
    ]
    assert table.count("±") == 3  # two rows and the legend
    for value in (1, 2):
        for seed in (0, 1):
            run = RunFolder(
                tmp_path / "over" / f"distill.pair_wise.granularity={value}" / f"seed{seed}"
            )
            config = json.loads(run.result.read_text())["config"]
            assert config["distill"]["pair_wise"]["granularity"] == value
            assert config["seed"] == seed


def test_a_failing_child_says_why(small, tmp_path, capsys):
    small["data"]["workers"] = 999
    with pytest.raises(UserError) as caught:
        go(small, tmp_path / "bad", over="distill.pair_wise.granularity=0")
    message = str(caught.value)
    assert "distill.pair_wise.granularity = 0 (seed 0) ended with status 2" in message
    assert "densekd: error:" in message
    assert "granularity" in message.split("densekd: error:")[1]
    # What the machine will not do is said once, before the runs.
    assert capsys.readouterr().out.count("data.workers is 999") == 1
    assert "Traceback" not in message


def test_a_folder_of_something_else_is_refused(small, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="no ablation's folder"):
        go(small, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_teacher_without_weights_is_refused_before_the_folder_is_made(small, tmp_path):
    del small["teacher"]["weights"]
    with pytest.raises(UserError, match=r"teacher\.weights"):
        go(small, tmp_path / "ablation")
    assert not (tmp_path / "ablation").exists()
