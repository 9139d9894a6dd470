"""Messages name settings that exist."""

import ast
import re

import pytest

from densekd.build.task import task_setting_names
from densekd.config.load import setting_names
from densekd.config.names import LOSSES
from tests.test_layers import FILES, PACKAGE

SETTING = re.compile(
    r"(?<![\w./{-])(?:model|teacher|data|distill|optim|train|evaluate|task|loss|depth|detection)\.[a-z_]+(?![\w(])"
)
# Module paths of transformers' networks, which look like settings.
MODULES = {"model.encoder", "model.pixel_level_module"}
FILE = (".txt", ".json", ".yaml", ".py", ".safetensors", ".npy")


def messages(tree):
    """Every text in the code but docstrings."""
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            yield str(node.value)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_message_names_settings_that_exist(path):
    terms = {f"distill.{name}" for name in LOSSES}
    known = {*setting_names(), *task_setting_names(), *terms, *MODULES}
    found = {
        name
        for text in messages(ast.parse(path.read_text(encoding="utf-8")))
        for name in SETTING.findall(text)
        if not name.endswith(FILE)
    }
    assert found <= known
