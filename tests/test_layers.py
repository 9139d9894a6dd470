"""The house's layering: rooms import only from the rows below, and the command line starts without torch."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "densekd"
CONTRACT = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
    "contracts"
][0]
# Top to bottom; the rooms of one row stand in one set.
ROWS = [
    {room.strip().removeprefix("densekd.") for room in row.split("|")} for row in CONTRACT["layers"]
]
ROOMS = {room: depth for depth, row in enumerate(ROWS) for room in row}
FREE = {"__init__", "__main__"}  # the package's own face and `python -m densekd`


def room_of(module: str) -> str:
    """``densekd.losses.pixel_wise`` -> ``losses``; the package itself -> ``""``."""
    return module.partition(".")[2].partition(".")[0]


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, module) of every import in a file, those inside functions and type checks too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are written in full"
            # `from densekd import losses` imports a room
            names = [f"{node.module}.{a.name}" for a in node.names]
            found += [(node.lineno, n if node.module == "densekd" else node.module) for n in names]
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


def own_room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_every_room_has_a_row():
    rooms = {own_room(path) for path in FILES} - FREE
    assert rooms == set(ROOMS)


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_only_from_the_rows_below(room):
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in FILES
        if own_room(path) == room
        for line, module in imports(path)
        if module.split(".")[0] == "densekd" and room_of(module) in ROOMS
        if room_of(module) != room and ROOMS[room_of(module)] <= ROOMS[room]
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_below_the_engine_knows_engine_config_or_log():
    below = {room for room, depth in ROOMS.items() if depth > ROOMS["engine"]}
    above = {room for room, depth in ROOMS.items() if depth <= ROOMS["engine"]}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in FILES
        if own_room(path) in below
        for line, module in imports(path)
        if module.startswith("densekd.") and room_of(module) in above
    ]
    assert not wrong, "\n".join(wrong)


def test_only_ops_collectives_calls_the_collectives():
    """torch.distributed's primitives stand in one file; `launch` makes and leaves the process group."""
    allowed = {PACKAGE / "ops" / "collectives.py", PACKAGE / "engine" / "launch.py"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in FILES
        if path not in allowed
        for line, module in imports(path)
        if module.startswith("torch.distributed")
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_below_the_trainer_prints():
    below = {room for room, depth in ROOMS.items() if depth > ROOMS["engine"]}
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in FILES
        if own_room(path) in below
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("print", "input", "breakpoint")
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_is_unpickled():
    """torch.load is called with weights_only=True, and nothing else reads pickles."""
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            call = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert call not in ("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load")
            if call == "torch.load":
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert given.get("weights_only") == "True", f"{path}:{node.lineno}"


def test_the_import_linter_contract_holds():
    linter = pytest.importorskip("importlinter")
    assert linter is not None
    result = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 kept, 0 broken" in result.stdout


def test_command_line_and_settings_import_no_torch():
    heavy = ("torch", "torchvision", "timm", "numpy", "cv2", "PIL", "matplotlib")
    code = (
        "import sys, densekd, densekd.cli.main, densekd.config.load, densekd.config.names\n"
        f"print(*(set({heavy!r}) & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.split() == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_every_file_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
