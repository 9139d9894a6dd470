"""Which code runs: what is installed, and what a recipe names after that was said."""

import sys

import pytest

from densekd.build.resolve import resolve
from densekd.cli.main import main
from densekd.config.code import code_named
from densekd.config.load import make_config
from densekd.config.names import DATASETS, LOSSES, MODELS, TASKS
from densekd.errors import UserError
from tests.cli.helpers import ENVIRONMENT, write_recipe
from tests.reliability.runs import small_tree


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder, and no trace of it afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def run_python(*words, cwd):
    import subprocess

    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_file_named_as_a_package_is_not_run(tmp_path):
    for name in ("timm", "h5py", "yaml", "tyro", "torch", "rich"):
        (tmp_path / f"{name}.py").write_text("open('it_ran', 'w')\nraise SystemExit(3)\n")
    result = run_python(
        "-m", "densekd", "config", "validate", "demo/segmentation_student", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "it_ran").exists()


def test_a_name_of_ours_never_searches_the_working_folder(folder):
    for name in ("espnet", "fpn_timm"):
        resolve(name, MODELS, "model.name")
    assert str(folder) not in sys.path
    (folder / "own_part.py").write_text("class Net:\n    def forward(self): ...\n")
    assert resolve("own_part.Net", MODELS, "model.name", ("forward",)).__name__ == "Net"
    assert sys.path[-1] == str(folder)  # after all that is installed


def test_an_installed_package_comes_first_and_the_message_says_so(folder):
    (folder / "numpy.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(UserError, match="The numpy of this folder is not it"):
        resolve("numpy.MyNet", MODELS, "model.name")


@pytest.mark.parametrize("path", ["os.system", "subprocess.run", "shutil.rmtree", "builtins.exec"])
@pytest.mark.parametrize("table", [MODELS, LOSSES, DATASETS, TASKS])
def test_python_itself_is_no_part_of_a_recipe(path, table):
    with pytest.raises(UserError, match="Python's own library"):
        resolve(path, table, "distill.x")


def test_what_a_path_gives_has_the_documented_shape(folder):
    (folder / "shapes.py").write_text(
        "number = 3\nclass Empty: ...\nclass Loss:\n    def __call__(self, s, t, mask=None): return 0\n"
        "class Set:\n    def read(self, i): ...\n    def __len__(self): return 1\n"
    )
    for name, needs in (
        ("number", ()),
        ("Empty", ("__call__",)),
        ("Loss", ("forward",)),
        ("Empty", ("read", "__len__")),
    ):
        with pytest.raises(UserError, match=r"expected a class|lacks"):
            resolve(f"shapes.{name}", {}, "x", needs)
    resolve("shapes.Loss", {}, "x", ("__call__",))
    resolve("shapes.Set", {}, "x", ("read", "__len__"))
    with pytest.raises(UserError, match=r"builtin_function"):
        resolve("numpy.empty", {}, "x")


def test_show_and_validate_run_no_code_unless_told(folder, capsys):
    (folder / "my_part.py").write_text(
        "open('it_ran', 'w')\nfrom densekd.models import espnet_c\n"
        "def net(num_classes, in_channels=3):\n    return espnet_c(num_classes, p=1, q=1)\n"
    )
    tree = small_tree()
    tree["model"] = {"name": "my_part.net"}
    tree["task"] = {"name": "my_part.Task", "some": 1}
    recipe = write_recipe(folder / "recipe.yaml", tree)
    assert code_named(make_config(tree, "x")) == [
        "task.name my_part.Task",
        "model.name my_part.net",
    ]
    assert main(["config", "show", str(recipe)]) == 0
    assert main(["config", "validate", str(recipe)]) == 2
    said = capsys.readouterr().err
    assert "names code: task.name my_part.Task, model.name my_part.net" in said
    assert "--run-code" in said
    assert not (folder / "it_ran").exists()
    del tree["task"]
    write_recipe(recipe, tree)
    assert main(["config", "validate", str(recipe), "--run-code"]) == 0
    assert (folder / "it_ran").exists()
    assert (
        "names code, which is imported and run: model.name my_part.net" in capsys.readouterr().err
    )


def test_a_command_in_a_recipe_is_not_run(folder, capsys):
    tree = small_tree()
    tree["teacher"] = {"name": "espnet", "options": {"p": 1, "q": 1}, "allow_untrained": True}
    tree["distill"] = {"evil": {"loss": "os.system", "weight": 1, "command": "touch it_ran"}}
    recipe = write_recipe(folder / "recipe.yaml", tree)
    for words in (["config", "validate"], ["distill"]):
        assert main([*words, str(recipe), *(["--run-code"] if words[0] == "config" else [])]) == 2
        assert "os.system" in capsys.readouterr().err
    assert not (folder / "it_ran").exists()
