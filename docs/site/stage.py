"""Stages the pages of the site in build/pages, in the repository's own layout, so that their links hold in both places.

    python docs/site/stage.py        (make docs does it)

Links to files that are no pages (code, recipes) lead to the repository. The pages of the API are made from the public
names of each room, and the notebook's page from its cells and stored outputs.
"""

from __future__ import annotations

import ast
import base64
import json
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "build" / "pages"
CODE = "https://github.com/densekd/densekd/{kind}/main/{path}"
STAGED = ("*.md", "docs/**/*.md", "docs/images/*", "results/**/README.md", "examples/**/README.md")
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"
# Title of each room's page. What a room offers is its `__all__`.
ROOMS = {
    "densekd": "The front door",
    "densekd.losses": "Losses",
    "densekd.distill": "Terms, teachers, discriminator",
    "densekd.models": "Networks, taps, weights",
    "densekd.tasks": "Tasks",
    "densekd.data": "Data",
    "densekd.targets": "Kinds of truth",
    "densekd.metrics": "Scores",
    "densekd.layers": "Layers",
    "densekd.rewrite": "Networks rewritten",
    "densekd.export": "Export",
    "densekd.types": "Types",
    "densekd.errors": "Errors",
}
LINK = re.compile(r"(?P<start>\]\()(?P<path>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")
FENCE = re.compile(r"(^ *```.*?^ *```$)", re.M | re.S)


def staged_files() -> list[Path]:
    """The files of the repository that become pages or pictures."""
    return sorted({path for pattern in STAGED for path in ROOT.glob(pattern) if path.is_file()})


def with_links(text: str, page: Path, staged: set[Path]) -> str:
    """The page's text, in which a link to a file that is no page leads to the repository."""

    def link(match: re.Match[str]) -> str:
        target = (page.parent / match["path"]).resolve()
        if (
            target in staged or not target.exists()
        ):  # a link that leads nowhere is for mkdocs to report
            return match[0]
        if target == NOTEBOOK:
            return match[0].replace(".ipynb", ".md")
        kind = "tree" if target.is_dir() else "blob"
        url = CODE.format(kind=kind, path=target.relative_to(ROOT).as_posix())
        return f"{match['start']}{url}{match['anchor'] or ''})"

    parts = FENCE.split(text)
    parts[::2] = [LINK.sub(link, part) for part in parts[::2]]
    return "".join(parts)


def room_tree(room: str) -> ast.Module:
    """The syntax tree of a room's index, or of a room that is a single file."""
    path = ROOT / "src" / Path(*room.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def public_names(room: str) -> dict[str, str]:
    """Public name -> where it is defined: what `__all__` lists, or the classes of a room that is a single file.

    An entry needs the defining file: several functions have the name of their file, which the room's path would mean.
    """
    tree = room_tree(room)
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            names = [name for name in ast.literal_eval(node.value) if not name.startswith("_")]
            return {name: definition(room, name) for name in names}
    classes = [n.name for n in tree.body if isinstance(n, ast.ClassDef) and n.name[0] != "_"]
    return {name: f"{room}.{name}" for name in classes}


def definition(room: str, name: str) -> str:
    """The dotted path of a name, behind the imports of the rooms that offer it."""
    for node in ast.walk(room_tree(room)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("densekd"):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return definition(node.module, alias.name)
    return f"{room}.{name}"


def room_page(room: str) -> str:
    """The page of a room: functions before the classes that call them; a link to what an earlier room's page has."""
    names = public_names(room)
    earlier = list(ROOMS)[: list(ROOMS).index(room)]
    homes = {path: other for other in reversed(earlier) for path in public_names(other).values()}
    lines = [f"# {ROOMS[room]}", "", f"`{room}`", ""]
    for name in sorted(names, key=lambda name: (name.lower().replace("_", ""), name[0].isupper())):
        if home := homes.get(names[name]):
            lines += [f"`{name}`: see [{ROOMS[home]}]({home}.md#{names[name]}).", ""]
        else:
            lines += [f"::: {names[name]}", ""]
    return "\n".join(lines)


def notebook_page(pictures: Path) -> str:
    """The notebook as Markdown; its pictures are written to the folder `pictures`."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    blocks = []
    for number, cell in enumerate(cells):
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            blocks.append(text)
            continue
        blocks.append(f"```python\n{text}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                pictures.mkdir(parents=True, exist_ok=True)
                picture = pictures / f"cell{number}.png"
                picture.write_bytes(base64.b64decode("".join(data["image/png"])))
                blocks.append(f"![what the cell above shows]({pictures.name}/{picture.name})")
            elif printed := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
                blocks.append(f"```text\n{printed}\n```")
    return "\n\n".join(blocks) + "\n"


def main() -> None:
    shutil.rmtree(PAGES, ignore_errors=True)
    files = staged_files()
    for file in files:
        copy = PAGES / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".md":
            text = file.read_text(encoding="utf-8")
            copy.write_text(with_links(text, file, set(files)), encoding="utf-8")
        else:
            shutil.copyfile(file, copy)
    shutil.copyfile(ROOT / "docs" / "site" / "extra.css", PAGES / "extra.css")
    (PAGES / "api").mkdir()
    for room in ROOMS:
        (PAGES / "api" / f"{room}.md").write_text(room_page(room), encoding="utf-8")
    page = PAGES / "examples" / "notebook.md"
    page.parent.mkdir(exist_ok=True)
    text = notebook_page(page.parent / "notebook_pictures")
    page.write_text(with_links(text, NOTEBOOK, set(files)), encoding="utf-8")


if __name__ == "__main__":
    main()
