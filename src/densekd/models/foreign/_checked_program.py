"""A `torch.export` file of a stranger: what it holds is checked before PyTorch reads it.

`torch.export.load` believes its file. It unpickles what the file says to unpickle, evaluates expressions and guards as
Python, calls what operators are named (``torch.ops.aten.save`` writes a file), and loads compiled libraries. So a file
is read here first: tensors as plain bytes, operators that PyTorch's dispatcher knows, arithmetic on sizes. PyTorch then
gets a copy that holds what was checked and nothing else, since two readers of zip archives can see two files in one.
"""

from __future__ import annotations

import ast
import importlib
import io
import json
import re
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from densekd.errors import UserError

PROGRAM = "models/model.json"
SAMPLES = "data/sample_inputs/model.pt"
# The files of an archive, below its first folder. All that PyTorch writes for a plain program is among them.
PLAIN = re.compile(
    r"models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)|data/sample_inputs/model\.pt|"
    r"data/constants/(tensor_\d+|model_constants_config\.json)|extra/[\w.-]+|archive_format|archive_version|byteorder|"
    r"\.data/(version|serialization_id)|\.format_version|\.storage_alignment"
)
TENSORS = re.compile(r"(weight|tensor)_\d+")
# Namespaces of operators that compute.
OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|torchvision|quantized_decomposed|densekd)\.([a-z_]\w*)\.([A-Za-z]\w*)"
)
SIZES = re.compile(
    r"_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pos|pow|eq|ne|lt|le|gt|ge|and_|or_|not_)|"
    r"math\.(ceil|floor|trunc|sqrt)|torch\.sym_(max|min|not|ite|int|float|sum)"
)
FORBIDDEN = ("from_file",)  # opens any file, and can make it longer
# PyTorch writes Python from a graph. Names of values and arguments stand in it as they are, attributes between quotes.
NAMED = ("name", "as_name", "forward_arg_names")
NAME = re.compile(r"\w*")
WORDS = re.compile(r"[\w.:/+\- ]{0,2000}")
TEXTS = ("as_string", "as_strings")  # arguments of operators, as the letters of einsum
TEXT = re.compile(r"[\w.,:;/+\-\[\]()<>=* ]{0,2000}")  # no quotes, no backslashes and no lines
ASSERTIONS = re.compile(r"torch\.ops\.aten\._(functional_)?assert_\w+\.\w+")
REFUSED = ("as_custom_obj", "as_graph", "as_operator", "as_string_to_argument")
TREES = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
SYMBOL = re.compile(r"[a-z]\w*")
EXPRESSION = re.compile(
    r"[\w .,()\[\]'+\-*/%<>=!&|~]*"
)  # no comments and no lines, which hide what is behind them
ARITHMETIC = frozenset([
    "Symbol", "Integer", "Float", "Rational", "Mul", "Add", "Pow", "Max", "Min", "Abs", "Mod", "PythonMod",
    "FloorDiv", "CeilDiv", "CleanDiv", "ModularIndexing", "Where", "ToFloat", "TruncToInt", "TruncToFloat",
    "FloorToInt", "CeilToInt", "RoundToInt", "IntTrueDiv", "FloatTrueDiv", "PowByNatural", "FloatPow", "Equality",
    "Unequality", "StrictLessThan", "StrictGreaterThan", "LessThan", "GreaterThan", "Eq", "Ne", "Lt", "Le", "Gt",
    "Ge", "And", "Or", "Not",
])  # fmt: skip
OF_TENSORS = ("size", "stride", "storage_offset", "numel", "dim")
OPERATIONS = (
    ast.Expression, ast.Call, ast.Constant, ast.Name, ast.Load, ast.keyword, ast.BinOp, ast.UnaryOp, ast.Compare,
    ast.BoolOp, ast.Attribute, ast.Subscript, ast.Tuple, ast.operator, ast.unaryop, ast.cmpop, ast.boolop,
)  # fmt: skip
LONGEST = 20_000  # characters of an expression


class _Refused(Exception):
    """What stands in the file and may not."""


# What a file that is no such archive, or a damaged one, raises while it is checked.
_BROKEN = (
    _Refused, zipfile.BadZipFile, ValueError, LookupError, TypeError, AttributeError, RecursionError, SyntaxError,
    NotImplementedError, EOFError,
)  # fmt: skip


def load_program(file: Path, extra: dict[str, Any], *, trusted: bool = False) -> Any:
    """What `torch.export.load` gives.

    Args:
        extra: filled with the files beside the program, as `torch.export.load` does.
        trusted: let PyTorch read the file as it is, with whatever code it holds.

    Raises:
        ValueError: the file is no such archive.
        UserError: the file holds more than plain tensors and known operators.
    """
    if trusted:
        return torch.export.load(file, extra_files=extra)
    with zipfile.ZipFile(file) as archive:
        if not any(name.partition("/")[2] == PROGRAM for name in archive.namelist()):
            raise ValueError(f"it has no {PROGRAM}")
    try:
        content = _checked_copy(file)
    except _BROKEN as error:
        raise UserError(
            f"{file}: is no torch.export file that can be read without running code of its own ({error}). Where you "
            "know who made it, --trusted (of a teacher, options: {trusted: true}) reads it all the same"
        ) from error
    return torch.export.load(io.BytesIO(content), extra_files=extra)


def _checked_copy(file: Path) -> bytes:
    """The archive with what was checked in it."""
    copy = io.BytesIO()
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(copy, "w") as checked:
        entries = archive.infolist()
        root = entries[0].filename.partition("/")[0] if entries else ""
        seen = set()
        for entry in entries:
            top, _, name = entry.filename.partition("/")
            if top != root or not PLAIN.fullmatch(name) or name in seen:
                raise _Refused(f"it holds {entry.filename!r}")
            if entry.compress_type != zipfile.ZIP_STORED:
                raise _Refused(f"{entry.filename!r} is compressed")
            seen.add(name)
            # PyTorch unpickles the sample inputs where they are no plain tensors, and runs without them.
            content = b"" if name == SAMPLES else archive.read(entry)
            if name.endswith(".json") and not name.startswith("extra/"):
                content = json.dumps(_checked_json(name, json.loads(content))).encode()
            checked.writestr(f"archive/{name}", content)
    return copy.getvalue()


def _checked_json(name: str, content: Any) -> Any:
    if not isinstance(content, dict):
        raise _Refused(f"{name} holds no object")
    if name == PROGRAM:
        _walk(content, "")
        return content
    for key, entry in content["config"].items():
        _text("", key)
        pickled = entry["use_pickle"] is not False
        if pickled or not TENSORS.fullmatch(entry["path_name"]):
            raise _Refused(f"{key!r} is {'pickled' if pickled else 'no plain tensor'}")
    return content


def _walk(value: Any, key: str) -> None:
    """Check every text of the program's description; what is for people alone is taken out."""
    if isinstance(value, dict):
        if "metadata" in value:
            value["metadata"] = {}
        if any(value.get(part) is not None for part in REFUSED):
            raise _Refused("it holds objects, functions or graphs within its graph")
        if ASSERTIONS.fullmatch(str(value.get("target"))):
            _unquote(value["inputs"])
        for name, part in value.items():
            if not WORDS.fullmatch(name):
                _arithmetic(name, ARITHMETIC)  # the size that a range is of, as 32*s0
            _walk(part, name)
    elif isinstance(value, list):
        for part in value:
            _walk(part, key)
    elif isinstance(value, str):
        _text(key, value)


def _unquote(inputs: list[dict[str, Any]]) -> None:
    """Leave out of an assertion's message, which is for people alone, what no text may hold."""
    for given in inputs:
        message = given["arg"].get("as_string")
        if message is not None:
            given["arg"]["as_string"] = "".join(TEXT.findall(message[:2000]))


def _text(key: str, text: str) -> None:
    if key == "expr_str":
        _arithmetic(text, ARITHMETIC)
    elif key == "guards_code":
        _arithmetic(text, ARITHMETIC | {"L"}, of_tensors=True)
    elif key in ("in_spec", "out_spec"):
        _tree(json.loads(text)[1])
    elif key == "target":
        _operator(text)
    elif not (NAME if key in NAMED else TEXT if key in TEXTS else WORDS).fullmatch(text):
        raise _Refused(f"{key or 'a name'} is {text[:80]!r}")


def _operator(name: str) -> None:
    """The dispatcher's operators compute; those of TorchScript alone, as ``aten::save``, can do anything."""
    match = OPERATORS.fullmatch(name)
    if match is None or match[2] in FORBIDDEN:
        if SIZES.fullmatch(name):
            return
        raise _Refused(f"it calls {name[:80]!r}")
    if match[1] == "torchvision":
        with suppress(ImportError):
            importlib.import_module("torchvision")  # which makes its operators known
    overload = "" if match[3] == "default" else match[3]
    try:
        torch._C._dispatch_find_schema_or_throw(f"{match[1]}::{match[2]}", overload)
    except RuntimeError:
        raise _Refused(f"it calls {name[:80]!r}, which is not known here") from None


def _tree(spec: Any) -> None:
    """How inputs and outputs are nested: types whose description imports nothing."""
    if spec["type"] not in TREES:
        raise _Refused(f"it takes or gives a {str(spec['type'])[:80]!r}")
    context = spec["context"]
    for name in _flat(json.loads(context) if isinstance(context, str) else context):
        if name is not None and not (isinstance(name, str) and name.isidentifier()):
            raise _Refused(f"an input or output is called {str(name)[:80]!r}")
    for part in spec["children_spec"]:
        _tree(part)


def _flat(value: Any) -> Iterable[Any]:
    if not isinstance(value, list):
        yield value
        return
    for part in value:
        yield from _flat(part)


def _arithmetic(text: str, functions: frozenset[str], of_tensors: bool = False) -> None:
    """An expression of numbers, symbols and known functions."""
    if len(text) > LONGEST:
        raise _Refused("an expression is too long")
    wrong = _Refused(f"an expression is {text[:80]!r}")
    if not EXPRESSION.fullmatch(text):
        raise wrong
    for node in ast.walk(ast.parse(text.strip(), mode="eval")):
        if not isinstance(node, OPERATIONS):
            raise wrong
        if isinstance(node, ast.Constant):
            value = node.value
            if isinstance(value, str):
                fits = value.isidentifier() if of_tensors else SYMBOL.fullmatch(value) is not None
            else:
                fits = value is None or (isinstance(value, (int, float)) and abs(value) < 2**64)
            if not fits:
                raise wrong
        elif isinstance(node, ast.Name):
            if node.id not in functions and not SYMBOL.fullmatch(node.id):
                raise wrong
        elif isinstance(node, ast.Attribute):
            if not of_tensors or node.attr not in OF_TENSORS:
                raise wrong
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id not in functions:
                raise wrong
            if not isinstance(node.func, (ast.Name, ast.Attribute)):
                raise wrong
            if isinstance(node.func, ast.Name) and node.func.id == "Pow":
                _small(node.args[1:], wrong)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Pow, ast.LShift)):
            _small([node.right], wrong)


def _small(nodes: list[ast.expr], wrong: _Refused) -> None:
    """Exponents: a power of a power takes for ever."""
    for node in nodes:
        text = re.sub(r"Integer\((-?\d+)\)", r"\1", ast.unparse(node))
        if not re.fullmatch(r"-?\d|Rational\(-?1, ?[234]\)|-?0?\.5", text):
            raise wrong
