"""Writes docs/config.md from the dataclasses of densekd.config.schema and the comments behind their fields.

    python docs/make_config_reference.py

A test fails while the committed file is out of date.
"""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = ROOT / "src" / "densekd" / "config" / "schema.py"
PAGE = ROOT / "docs" / "config.md"

# class -> where its fields stand in a recipe. Order of the page; a class that is missing here is an error.
PLACES = {
    "Config": "the top level",
    "Model": "model",
    "Input": "model.input, teacher.input",
    "Teacher": "teacher",
    "Data": "data",
    "Loss": "loss",
    "Detection": "detection",
    "Depth": "depth",
    "Distill": "distill",
    "Term": "distill.TERM",
    "Holistic": "distill.holistic",
    "TeacherCache": "distill.teacher_cache",
    "Optim": "optim",
    "Group": "optim.groups (a list)",
    "Train": "train",
    "Evaluate": "evaluate",
}

INTRODUCTION = """\
# Settings

<!-- Made by docs/make_config_reference.py from src/densekd/config/schema.py. Do not edit. -->

A recipe is a YAML file of sections. What it leaves out has the default given here. `densekd config show RECIPE` prints
a recipe with every default filled in; `densekd config validate RECIPE` also builds its networks and terms.

- On the command line every setting is `--section.key VALUE` (or `--section.key=VALUE`). The value is read as YAML:
  `--optim.lr 0.02`, `--data.crop '[256, 256]'`, `--distill.holistic null`.
- An unknown key, a value of the wrong type and a key that stands twice are errors: status 2, and a message with the
  file, the key, the reason and, for a mistyped key, the nearest one.
- A key under `distill` that is no setting of its own names a term: `distill.pixel_wise.weight`. A key of a term that
  is no setting of a term is an argument of its loss: `distill.pair_wise.granularity`.
- `options` of a model or a data set are the arguments of its builder. They are checked against its signature.
"""


def render(source: str) -> str:
    """The page for the text of schema.py."""
    tree = ast.parse(source)
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if set(classes) != set(PLACES):
        raise SystemExit(f"PLACES and the schema differ in {set(classes) ^ set(PLACES)}")
    parts = [INTRODUCTION]
    for name, place in PLACES.items():
        node = classes[name]
        about = " ".join((ast.get_docstring(node) or "").replace("``", "`").split())
        bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
        more = (
            f" All settings of {', '.join(f'`{PLACES[b]}`' for b in bases)}, and:" if bases else ""
        )
        parts.append(f"## {place}\n\n{about}{more}\n")
        rows = ["| key | value | default | |", "| --- | --- | --- | --- |"]
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                lines = range(field.lineno, (field.end_lineno or field.lineno) + 1)
                note = " ".join(comments[line] for line in lines if line in comments)
                cells = [
                    f"`{field.target.id}`",
                    value_text(field.annotation),
                    default_text(field.value),
                    note.replace("|", "\\|"),
                ]
                rows.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def value_text(annotation: ast.expr) -> str:
    """`int | None` -> "int or null"; Literal["a", "b"] -> "`a` or `b`"; a section's class -> "section"."""
    if isinstance(annotation, ast.BinOp):
        return f"{value_text(annotation.left)} or {value_text(annotation.right)}"
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return "null"
    if isinstance(annotation, ast.Name):
        names = {"str": "text", "bool": "true or false", "float": "number", "int": "integer"}
        return "section" if annotation.id in PLACES else names[annotation.id]
    assert isinstance(annotation, ast.Subscript)
    assert isinstance(annotation.value, ast.Name)
    inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    kind = annotation.value.id
    if kind == "Literal":
        words = [f"`{e.value}`" for e in inner if isinstance(e, ast.Constant)]
        return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    if kind == "dict":
        return "section"
    items = [value_text(e) for e in inner]
    return f"[{', '.join(items)}]" if kind == "tuple" else f"list of {items[0]}s"


def default_text(value: ast.expr | None) -> str:
    if value is None:
        return "required"
    if isinstance(value, ast.Call):  # field(default_factory=...)
        factory = value.keywords[0].value
        if isinstance(factory, ast.Lambda):
            return f"`{ast.unparse(factory.body)}`"
        return {"list": "`[]`", "dict": "`{}`"}.get(ast.unparse(factory), "its defaults")
    if isinstance(value, ast.Constant):
        words = {None: "null", True: "true", False: "false", "": '""'}
        special = isinstance(value.value, (bool, str)) or value.value is None
        text = words.get(value.value, value.value) if special else value.value
        return f"`{text}`"
    text = ast.unparse(value)
    return f"`[{text[1:-1]}]`" if isinstance(value, ast.Tuple) else f"`{text}`"


if __name__ == "__main__":
    PAGE.write_text(render(SCHEMA.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE)
