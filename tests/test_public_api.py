"""The public names: frozen in public_api.json, imported when used, found by editors and type checkers.

A name or signature is changed on purpose, with the file: ``python -m tests.test_public_api > tests/public_api.json``.
"""

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import densekd

FROZEN = Path(__file__).with_name("public_api.json")
PACKAGE = Path(densekd.__file__).parent


def surface() -> dict[str, str]:
    """Public name -> its signature."""
    objects = {name: densekd.find_public(name) for name in densekd._PUBLIC}
    return {name: str(inspect.signature(value)) for name, value in sorted(objects.items())}


def test_names_and_signatures_are_the_frozen_ones():
    assert surface() == json.loads(FROZEN.read_text(encoding="utf-8"))


def test_every_name_is_listed_and_documented():
    assert set(densekd.__all__) == {*densekd._PUBLIC, "__version__"}
    assert set(densekd.__all__) <= set(dir(densekd))
    for name in densekd._PUBLIC:
        assert inspect.getdoc(densekd.find_public(name)), name


def test_type_checkers_see_the_same_names():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(
        n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"
    )
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == densekd._PUBLIC
    assert (PACKAGE / "py.typed").is_file()


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        densekd.distil  # noqa: B018


def python(code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_the_package_loads_nothing_and_takes_no_time():
    heavy = (
        "torch",
        "torchvision",
        "timm",
        "numpy",
        "cv2",
        "PIL",
        "pydantic",
        "yaml",
        "rich",
        "tyro",
    )
    code = (
        "import sys, time\n"
        "before = time.process_time()\n"
        "import densekd\n"
        "print(time.process_time() - before)\n"
        f"print(*(set({heavy!r}) & set(sys.modules)))"
    )
    seconds = []
    for _ in range(3):  # processor time, and the best of three: other processes may be busy
        took, *loaded = python(code)
        assert loaded == []
        seconds.append(float(took))
        if min(seconds) < 0.1:
            break
    assert min(seconds) < 0.1, seconds


def test_lists_of_names_import_no_torch():
    code = (
        "import sys, densekd\n"
        "assert {'espnet', 'vnl'} <= {row.name for row in densekd.list_models()}\n"
        "assert {'pair_wise', 'holistic'} <= {row.name for row in densekd.list_losses()}\n"
        "print(*({'torch', 'numpy'} & set(sys.modules)))"
    )
    assert python(code) == []


def test_distill_is_a_room_and_a_function():
    """However it was imported: the room's files are found, and the name can be called."""
    import densekd.distill.distiller
    from densekd import distill

    assert distill is densekd.distill
    assert densekd.distill.distiller.Distiller is densekd.Distiller
    with pytest.raises(densekd.find_public("distill").__globals__["UserError"], match="no_such"):
        densekd.distill("no_such_recipe")


if __name__ == "__main__":
    print(json.dumps(surface(), indent=2))
