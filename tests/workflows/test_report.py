"""`densekd report`: what is read from run folders, what the page holds, and what is refused."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from html.parser import HTMLParser

import pytest

import densekd
from densekd.cli.main import main
from densekd.errors import UserError
from densekd.workflows.report import report, try_report
from densekd.workflows.report_runs import collect, find_from, terms_title
from tests.report.made_up import tree, write_run
from tests.workflows.test_functions import TASKS, tree_of


@pytest.fixture
def family(tmp_path):
    """A teacher, a student alone with two seeds, a distilled one with two, all labels."""
    weights = tmp_path / "teacher" / "checkpoints" / "student.safetensors"
    write_run(tmp_path / "teacher", tree(model={"name": "espnet", "options": {}}), miou=0.6)
    for seed in (0, 1):
        write_run(tmp_path / f"alone_{seed}", tree(seed=seed), miou=0.40 + 0.02 * seed)
        taught = tree(teacher=True, seed=seed)
        taught["teacher"]["weights"] = str(weights)
        write_run(tmp_path / f"taught_{seed}", taught, miou=0.46 + 0.04 * seed)
    more = tree()
    more["data"] = {**more["data"], "train_options": {"length": 9}}
    write_run(tmp_path / "more", more, miou=0.44)
    weights.parent.mkdir()
    weights.write_bytes(b"no weights")
    return tmp_path


def folders(root, *names):
    return [root / name for name in names]


def test_runs_become_rows_by_what_they_are(family):
    names = ("taught_1", "more", "alone_0", "taught_0", "alone_1")
    found = collect(folders(family, *names))
    rows = {row.title: (row.role, [run.name for run in row.runs]) for row in found.rows}
    assert rows == {
        "teacher": ("teacher", ["teacher"]),  # found by the weights that the others name
        "student alone": ("alone", ["alone_0", "alone_1"]),
        "+Pi +Pa": ("distilled", ["taught_0", "taught_1"]),
        "alone (more)": ("reference", ["more"]),
    }
    assert found.task == "segmentation"


def test_a_page_without_pictures_says_the_numbers_and_why(family, capsys):
    names = folders(family, "teacher", "alone_0", "alone_1", "taught_0", "taught_1")
    out = family / "page.html"
    assert main(["report", *map(str, names), "--out", str(out), "--no-pictures"]) == 0
    assert str(out) in capsys.readouterr().out
    text = out.read_text()
    for part in ("41.00", "± 1.41", "48.00", "± 2.83", "60.00"):
        assert part in text
    assert "closes 37 % of the gap" in text  # 0.07 of 0.19
    assert "mean of 2 pairs of seeds" in text
    assert "7.00 points higher" in text
    assert "densekd distill my.yaml --name taught_1" in text
    assert "not asked for" in text
    assert "<h2" in text


def test_data_that_is_not_at_hand_is_said_and_the_page_is_made(family):
    for name in ("alone_0", "taught_0"):
        (family / name / "checkpoints").mkdir()
        (family / name / "checkpoints" / "student.safetensors").write_bytes(b"")
    settings = tree(data={"dataset": "camvid", "root": "nowhere", "val_split": "val"})
    (family / "alone_0" / "config.yaml").write_text(json.dumps(settings))
    made = report([family / "alone_0"], family / "a.html", device="cpu", quiet=True)
    assert "data.root is nowhere" in made.without
    assert "data.root is nowhere" in (family / "a.html").read_text()


def test_what_stands_in_a_run_is_escaped(tmp_path):
    evil = "</style><script>alert(1)</script>"
    run = write_run(
        tmp_path / "run",
        tree(note=evil, model={"name": evil, "options": {"backbone": '"><img src=x>'}}),
        iou={evil: 0.5, "b": None},
    )
    (run / "command.txt").write_text(f"densekd train '{evil}'\n")
    (run / "environment.json").write_text(json.dumps({"python": evil}))
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 50, f"task/{evil}": 1.0}) + "\n")
    text = report([run], tmp_path / "a.html", pictures=False).path.read_text()
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert text.count("<script>") == 1
    assert "&lt;script&gt;alert(1)" in text


def test_a_page_stands_alone(family):
    text = report([family / "taught_0"], pictures=False).path.read_text()
    assert not re.search(r"(?:src|href)=(?![\"']?(?:#|data:))", text)
    assert not re.search(r"@import|url\((?!data:)", text)
    assert "default-src 'none'" in text

    class Parser(HTMLParser):
        def __init__(self):
            super().__init__()
            self.ids, self.open = [], []

        def handle_starttag(self, tag, attrs):
            self.ids += [v for k, v in attrs if k == "id"]
            if tag not in ("meta", "link", "input", "br", "img", "wbr"):
                self.open.append(tag)

        def handle_startendtag(self, tag, attrs):
            pass

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    parser = Parser()
    parser.feed(text)
    assert not parser.open
    assert len(parser.ids) == len(set(parser.ids))


def test_nothing_of_the_users_is_replaced(family):
    own = family / "notes.html"
    own.write_text("my notes")
    with pytest.raises(UserError, match="was not written by densekd report"):
        report([family / "alone_0"], own, pictures=False)
    assert own.read_text() == "my notes"
    page = report([family / "alone_0"], pictures=False).path
    assert page == family / "alone_0" / "report.html"
    report([family / "alone_0"], pictures=False)  # its own it replaces


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{root}/none"], "does not exist"),
        (["{root}"], "is not a run folder"),
        (["{root}/alone_0", "--images", "0"], "expected at least 1"),
        (["{root}/alone_0", "--train.steps", "5"], "a report reads finished runs"),
        (["{root}/alone_0", "--out", "{root}"], "is a folder"),
    ],
)
def test_mistakes(family, capsys, words, message):
    assert main(["report", *(w.format(root=family) for w in words)]) == 2
    assert message in capsys.readouterr().err


def test_runs_of_two_tasks_are_two_pages(family):
    write_run(family / "depth", tree(task={"name": "depth"}))
    with pytest.raises(UserError, match="different tasks"):
        collect(folders(family, "alone_0", "depth"))


def test_an_ablation_and_a_demo_are_read_whole(tmp_path):
    root = tmp_path / "demo" / "ablation"
    settings = tree(teacher=True)
    for key, distil in (("student", False), ("pi", True), ("pi_pa", True)):
        for seed in (0, 1):
            write_run(root / key / f"seed{seed}", tree(teacher=distil, seed=seed), miou=0.4)
            (root / "configs").mkdir(exist_ok=True)
            (root / "configs" / f"{key}_seed{seed}.yaml").write_text("")
    (root / "config.yaml").write_text(json.dumps(settings))
    (root / "constant_guess.json").write_text(json.dumps({"miou": 0.03}))
    (root / "teacher.json").write_text(
        json.dumps({"scores": {"miou": 0.6}, "parameters": 5, "macs": 7})
    )
    expected = ["constant guess", "teacher", "student alone", "+Pi", "+Pi +Pa"]
    assert [row.title for row in collect([root]).rows] == expected
    write_run(tmp_path / "demo" / "teacher", tree(), miou=0.6)
    (tmp_path / "demo" / "teacher.yaml").write_text("")
    found = collect([tmp_path / "demo"])
    assert [row.title for row in found.rows] == expected
    assert [run.name for run in found.rows[1].runs] == ["teacher"]
    with pytest.raises(UserError, match="reported alone"):
        collect([root, root / "pi" / "seed0"])


def test_values_of_a_setting_are_rows_in_their_order(tmp_path):
    for value in ("4", "16"):
        key = f"distill.pair_wise.granularity={value}"
        write_run(tmp_path / key / "seed0", tree(teacher=True))
        (tmp_path / "configs").mkdir(exist_ok=True)
        (tmp_path / "configs" / f"{key}_seed0.yaml").write_text("")
    (tmp_path / "config.yaml").write_text(json.dumps(tree(teacher=True)))
    titles = [row.title for row in collect([tmp_path]).rows]
    assert titles == [f"distill.pair_wise.granularity = {v}" for v in (4, 16)]


def test_paths_are_found_from_the_run(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    monkeypatch.chdir("/")
    assert find_from(run, "data") == tmp_path / "data"
    assert find_from(run, tmp_path / "other") is None


def test_terms_are_named_as_in_the_papers_table(family):
    (run,) = collect([family / "taught_0"]).rows[1].runs
    assert terms_title(run) == "+Pi +Pa"


def test_a_failed_report_fails_no_run(tmp_path):
    line = try_report(tmp_path / "none")
    assert "not written" in line
    assert "densekd report" in line


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Per task: the runs of a teacher, a student alone and, for segmentation, a distilled one."""
    out = tmp_path_factory.mktemp("trained")
    found = {}
    for task in TASKS:
        settings = tree_of(task)
        if task == "detection":
            settings["task"]["shown_above"] = 0.0
        settings["train"] = {"steps": 2, "log_every": 1}
        run = densekd.train(settings, name=task, out=out, device="cpu")
        found[task] = [run.folder]
        if task == "segmentation":
            taught = deepcopy(settings)
            weights = str(run.folder / "checkpoints" / "student.safetensors")
            taught["teacher"] = {**settings["model"], "weights": weights}
            taught["distill"] = {"pixel_wise": {"weight": 1}}
            found[task].append(densekd.distill(taught, name="taught", out=out, device="cpu").folder)
    return found


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_pictures(trained, tmp_path, task):
    made = report(trained[task], tmp_path / "a.html", device="cpu", quiet=True)
    text = made.path.read_text()
    assert made.without == ""
    assert made.bytes < 3_000_000
    assert 'class="wipe"' in text
    assert "Size and latency" in text
    assert ("Reliability" in text) is (task == "segmentation")
    assert ("<rect x=" in text) or task != "detection"
    assert ('aria-label="errors of' in text) is (task != "detection")


def test_the_networks_answers_give_the_runs_own_scores(trained, tmp_path):
    runs = trained["segmentation"]
    text = report(runs, tmp_path / "a.html", device="cpu", quiet=True).path.read_text()
    for run, title in zip(runs, ("teacher", "+Pi"), strict=True):
        score = json.loads((run / "result.json").read_text())["scores"]["miou"]
        assert f"{100 * score:.2f} ({title})" in text
    limited = report(runs, tmp_path / "b.html", images=1, device="cpu", quiet=True)
    assert "among the first 1 of 2" in limited.path.read_text()


def test_several_teachers_are_the_teachers_of_a_run_and_of_an_ablation(family):
    weights = str(family / "teacher" / "checkpoints" / "student.safetensors")
    section = {"name": "espnet", "options": {}, "weights": weights}
    taught = tree(teacher=True, seed=5)
    taught |= {"teacher": None, "teachers": {"a": section, "b": {**section, "weights": None}}}
    write_run(family / "by_two", taught, miou=0.5)
    rows = {row.title: row.role for row in collect(folders(family, "by_two", "alone_0")).rows}
    assert rows == {"teacher": "teacher", "student alone": "alone", "+Pi +Pa": "distilled"}

    ablation = family / "ablation_of_two"
    (ablation / "configs").mkdir(parents=True)
    measured = {"parameters": 7, "macs": None}
    lessons = {
        "a": {"scores": {"miou": 0.6}, **measured},
        "b": {"scores": {"miou": 0.7}, **measured},
    }
    (ablation / "teacher.json").write_text(json.dumps({"digest": {}, "rows": lessons}))
    (ablation / "config.yaml").write_text("not: read")
    for key, settings in (("student", tree()), ("pi", taught)):
        (ablation / "configs" / f"{key}_seed0.yaml").write_text("{}")
        write_run(ablation / key / "seed0", settings, miou=0.5)
    found = collect([ablation]).rows
    assert [(r.title, r.mean("miou")) for r in found if r.role == "teacher"] == [
        ("teacher a", 0.6),
        ("teacher b", 0.7),
    ]
    assert [r.role for r in found if r.title == "pi"] == ["distilled"]


def test_code_that_the_runs_name_is_said_before_it_is_imported(family, capsys):
    foreign = tree(model={"name": "my_nets.Net", "options": {}}, seed=3)
    write_run(family / "foreign", foreign, miou=0.4)
    report([family / "foreign"], family / "f.html", pictures=False)
    said = capsys.readouterr().err
    assert "names code, which is imported and run: model.name my_nets.Net" in " ".join(said.split())
    report([family / "alone_0"], family / "a.html", pictures=False)
    assert capsys.readouterr().err == ""
