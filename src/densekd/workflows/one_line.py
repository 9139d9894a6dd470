"""A recipe made of a student, a teacher and a data set: the one line of `densekd.train` and `densekd.distill`."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from densekd.build.networks import GIVEN
from densekd.build.saved import read_description, saved_model
from densekd.config.forms import paths_as_text, teachers_of
from densekd.config.load import find_config, list_configs, setting_names
from densekd.config.names import DATASETS, LOSSES, MODELS, PROGRAMS
from densekd.config.schema import Config
from densekd.config.tree import apply_overrides
from densekd.errors import UserError
from densekd.export import EXPORTED
from densekd.models.foreign.exported import is_script
from densekd.models.taps import Taps
from densekd.models.weights import read_metadata
from densekd.ops.names import nearest_few
from densekd.workflows.load import LoadedModel, weights_file
from densekd.workflows.recipe import Recipe, tree_of
from densekd.workflows.share import looks_like_hub_id

# A network as people have it: a name, a recipe's name, a run, a weights file, a section of a recipe, an object.
Network = str | Path | Mapping[str, Any] | nn.Module
TERMS = {"pixel_wise": {"weight": 10}, "pair_wise": {"weight": 10}}  # as in the paper
# The sections whose settings are known by their last name alone, the first that has it.
BARE = ("data", "optim", "train")


@dataclass
class Made:
    """A recipe in the making.

    Attributes:
        tree: the recipe as YAML would give it.
        settings: dotted name -> value, over the recipe.
        networks: ``"model"`` and ``"teacher"``, where they are objects that no recipe can build.
        remarks: what was decided for the user.
    """

    tree: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    networks: dict[str, nn.Module] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def to_yaml(self) -> str:
        """The recipe for people: what stands in it, without the settings that have their default."""
        tree = copy.deepcopy(self.tree)
        apply_overrides(tree, self.settings)
        return yaml.safe_dump(
            paths_as_text(tree), sort_keys=False, default_flow_style=None, width=100
        )


def make_recipe(
    recipe: Recipe | None,
    settings: Mapping[str, Any],
    *,
    student: Network | None = None,
    teacher: Network | None = None,
    data: str | Path | Mapping[str, Any] | None = None,
    root: str | Path | None = None,
    terms: Mapping[str, Any] | None = None,
    trusted: bool = False,
    distil: bool = True,
) -> Made:
    """Put a recipe together.

    Without `recipe` its other settings are those of the shipped recipe for the data set, one of the same student if
    there is one; a data set without a recipe takes the defaults.

    Args:
        settings: dotted name -> value.
        data: a name (`densekd list datasets`), a dotted path, the name of a recipe with that data, a section
            ``{"dataset": ..., "root": ...}``, or a folder in the layout of the data set ``folder``.
        terms: name of a loss -> its weight, or its section ``{"weight": 3, "temperature": 4}``; in place of the
            recipe's terms.
        trusted: allow a weights file to name a network outside of densekd, whose code is then imported and run.
    """
    side = "student" if distil else "model"
    made = Made(_base(recipe, data, student, distil, side))
    if recipe is None:
        made.remarks.append(made.tree.pop("made from", "no shipped recipe has this data"))
    if data is not None:
        made.tree["data"] = {**_data_section(data, made.tree.get("data"))}
    if root is not None:
        made.tree.setdefault("data", {})["root"] = str(root)
    if student is not None:
        _put_network(made, "model", side, student, trusted)
    if teacher is not None:
        made.tree.pop("teachers", None)
        _put_network(made, "teacher", "teacher", teacher, trusted)
    section = dict(made.tree.get("distill") or {})
    if distil and terms is None and not any(isinstance(v, dict) for v in section.values()):
        made.tree["distill"] = {**section, **copy.deepcopy(TERMS)}
    if terms is not None:
        made.tree["distill"] = {k: _term(k, v) for k, v in terms.items()}
    elif distil:
        _leave_out_tapless(made)
        _leave_out_unseen(made)
    made.settings = dict(settings)
    return made


def setting_of(key: str) -> str:
    """A keyword -> the dotted setting: ``steps`` -> ``train.steps``, ``teacher__classes`` -> ``teacher.classes``."""
    known = setting_names()
    sections = {name.partition(".")[0] for name in known}
    dotted = key.replace("__", ".")
    if "." in dotted or dotted in (*sections, "seed", "note"):
        return dotted
    found = [name for name in known if name.rpartition(".")[2] == key]
    preferred = [name for section in BARE for name in found if name.startswith(f"{section}.")]
    if preferred or len(found) == 1:
        return (preferred or found)[0]
    if found:
        raise UserError(
            f"{key}= may be any of {', '.join(found)}; write it with its section, as in "
            f"{found[0].replace('.', '__')}="
        )
    near = nearest_few(key, {name.rpartition(".")[2] for name in known})
    end = "" if near.endswith("?") else "."
    raise UserError(
        f"{key}= is no setting; {near}{end} The settings of a recipe are given by their last name (steps=100) or with "
        "their section (train__steps=100)"
    )


def _base(
    recipe: Recipe | None, data: Any, student: Network | None, distil: bool, side: str
) -> dict[str, Any]:
    """The recipe that the given parts are put into."""
    if recipe is not None:
        return tree_of(recipe)
    if data is None or student is None:
        missing = [name for name, value in ((side, student), ("data", data)) if value is None]
        raise UserError(
            f"{' and '.join(f'{name}=' for name in missing)} missing: give a recipe, or {side}= and data="
        )
    if isinstance(data, (str, Path)) and str(data) not in DATASETS and _is_recipe(str(data)):
        tree, name = tree_of(data), str(data)
    else:
        dataset = data.get("dataset") if isinstance(data, Mapping) else str(data)
        found = _recipe_of(dataset, student, distil)
        if found is None:
            return {}
        tree, name = tree_of(found), found.removesuffix(".yaml")
    for section in ("teacher", "teachers"):
        tree.pop(section, None)
    own = tree.pop("model")
    if isinstance(student, str) and student == own["name"]:
        tree["model"] = {k: v for k, v in own.items() if k != "weights"}
    if not distil:
        tree.pop("distill", None)
    return {**tree, "made from": f"settings that you do not give are those of {name}"}


def _is_recipe(name: str) -> bool:
    try:
        find_config(name)
    except UserError:
        return False
    return True


def _recipe_of(dataset: Any, student: Network, distil: bool) -> str | None:
    """The shipped recipe for a data set that is nearest to what is wanted."""
    best: tuple[tuple[bool, bool], str] | None = None
    for name in list_configs():
        tree = tree_of(name)
        if name.startswith("demo/") or tree["data"]["dataset"] != dataset:
            continue
        rank = (tree["model"]["name"] == student, bool(teachers_of(tree)) == distil)
        if best is None or rank > best[0]:
            best = (rank, name)
    return None if best is None else best[1]


def _data_section(data: str | Path | Mapping[str, Any], base: Any) -> dict[str, Any]:
    old = dict(base or {})
    if isinstance(data, Mapping):
        same = old if old.get("dataset") == data.get("dataset") else {}
        return {**same, **data}
    name = str(data)
    if name in DATASETS or _importable(name):
        return old if old.get("dataset") == name else {"dataset": name}
    if Path(name).is_dir():
        return {"dataset": "folder", "root": name}
    if _is_recipe(name):
        return dict(tree_of(name)["data"])
    possible = [*DATASETS, *(c.removesuffix(".yaml") for c in list_configs())]
    raise UserError(
        f"data={name!r} is no data set, no folder and no recipe; {nearest_few(name, possible)}"
    )


def _importable(path: str) -> bool:
    """A dotted path whose package is there; `densekd.build` imports it and says what else is wrong."""
    first = path.partition(".")[0]
    if "." not in path or "/" in path or not first.isidentifier():
        return False
    return importlib.util.find_spec(first) is not None or Path(f"{first}.py").is_file()


def _put_network(made: Made, section: str, side: str, value: Network, trusted: bool) -> None:
    if isinstance(value, LoadedModel) and not value.about.get("model", {}).get(
        "name", GIVEN
    ).startswith(GIVEN):
        value = value.path
    if isinstance(value, nn.Module):
        spec = getattr(value, "input_spec", None)
        bare = value.model if isinstance(value, (LoadedModel, Taps)) else value
        kind = type(bare)
        made.tree[section] = {"name": f"{GIVEN}{kind.__module__}.{kind.__qualname__}"}
        if spec is not None:
            given = {
                k: v for k, v in spec.as_dict().items() if k in ("mean", "std", "order", "range")
            }
            made.tree[section].update(input=given, in_channels=spec.channels)
        made.networks[section] = copy.deepcopy(bare)  # what was given stays as it is
        made.remarks.append(
            f"{side}: the given {kind.__name__}, copied. A recipe cannot build it: the run goes on with this call and "
            "resume=True alone"
            + (
                "; its weights load with densekd.load(FOLDER, network=...)"
                if section == "model"
                else ""
            )
        )
        return
    made.tree[section] = _network_section(value, side, made.tree.get(section), trusted)


def _network_section(
    value: str | Path | Mapping[str, Any], side: str, base: Any, trusted: bool
) -> dict[str, Any]:
    """The section of a recipe that a name, a run, a file or a section stands for."""
    if isinstance(value, Mapping):
        return dict(value)
    name = str(value)
    path = Path(name)
    same = isinstance(base, dict) and base.get("name") == name
    if name in MODELS and isinstance(value, str):
        return dict(base) if same else {"name": name}
    if path.is_file() and path.suffix in EXPORTED:
        if trusted and path.suffix == ".pt2":
            return {"name": name, "options": {"trusted": True}}
        return {"name": name}
    if path.is_file() and is_script(path):
        return {"name": "exported", "options": {"path": name}}
    if path.exists() and path.suffix not in (".yaml", ".yml"):
        file = weights_file(path)
        if "densekd" not in read_metadata(file):
            if isinstance(base, dict) and "name" in base:
                return {**base, "weights": str(file)}
            raise UserError(
                f"{side}={name!r}: the file does not say which network it is of; give "
                f"{side}={{'name': NETWORK, 'options': {{...}}, 'weights': {name!r}}}"
            )
        model = saved_model(file, read_description(file), trusted=trusted)
        section = {
            "name": model.name,
            "options": model.options,
            "in_channels": model.in_channels,
            "weights": str(file),
        }
        if model.int8:
            section["int8"] = True
        return section if model.prediction is None else {**section, "prediction": model.prediction}
    if _is_recipe(name):
        return dict(tree_of(name)["model"])
    if _importable(name):
        return {"name": name}
    if looks_like_hub_id(path):
        return _network_section(weights_file(path), side, base, trusted)
    possible = [*MODELS, *(c.removesuffix(".yaml") for c in list_configs())]
    raise UserError(
        f"{side}={name!r} is no network, no recipe, no run folder and no weights file; {nearest_few(name, possible)}"
    )


def _term(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {"weight": value}
    raise UserError(
        f"terms: {name!r} is {value!r}; give its weight, or a section as in {{{name!r}: {{'weight': 10}}}}"
    )


def _leave_out_tapless(made: Made) -> None:
    """Take out the terms on features that a given object does not name; who asks for a term gets it or an error."""
    tapless = [n for n, m in made.networks.items() if getattr(m, "pair_wise_tap", None) is None]
    terms = made.tree.get("distill") or {}
    for name in [n for n, term in terms.items() if isinstance(term, dict)]:
        term = terms[name]
        on_features = LOSSES.get(term.get("loss") or name, ("", ""))[1] == "features"
        named = {"model": term.get("student"), "teacher": term.get("teacher")}
        if on_features and any(not named[n] for n in tapless):
            del terms[name]
            made.remarks.append(
                f"{name} is left out: the given network does not say which feature to compare; name it, as in "
                f"terms={{{name!r}: {{'weight': {term.get('weight')}, 'student': PATH, 'teacher': PATH}}}} "
                "(densekd.Taps)"
            )


def _leave_out_unseen(made: Made) -> None:
    """Take out the terms on features of an exported teacher that do not say which; who asks for a term gets it or an
    error. Where none is left, the prediction alone teaches."""
    teacher = made.tree.get("teacher")
    if not isinstance(teacher, Mapping) or not _is_program(teacher):
        return
    terms = made.tree.setdefault("distill", {})
    named = [n for n, term in terms.items() if isinstance(term, dict)]
    unseen = [
        n
        for n in named
        if LOSSES.get(terms[n].get("loss") or n, ("", ""))[1] == "features"
        and not terms[n].get("teacher")
    ]
    for name in unseen:
        del terms[name]
    left = [n for n in named if n not in unseen]
    if not left:
        terms["pixel_wise"] = copy.deepcopy(TERMS["pixel_wise"])
        left = ["pixel_wise"]
    if unseen:
        made.remarks.append(
            f"{', '.join(unseen)} is left out: an exported teacher shows its outputs, and no feature inside of it; it "
            f"teaches by {', '.join(left)}. Where the file has a feature among its outputs, name it: "
            f"terms={{{unseen[0]!r}: {{'weight': 10, 'teacher': OUTPUT}}, ...}}"
        )


def _is_program(section: Mapping[str, Any]) -> bool:
    name = section.get("name")
    return name == "exported" or (isinstance(name, str) and name.lower().endswith(PROGRAMS))


def check_objects(config: Config, networks: Mapping[str, nn.Module]) -> None:
    """UserError where the recipe leaves open what an object cannot say of itself."""
    teacher = config.teacher
    if "teacher" in networks and teacher and teacher.classes and not teacher.num_classes:
        raise UserError(
            "teacher.num_classes: missing; a teacher that is given as an object does not say how many classes it "
            "predicts: give teacher__num_classes="
        )
