"""A trained network as a folder that explains itself, and on the Hugging Face hub."""

from __future__ import annotations

import importlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from densekd.build.provenance import about_weights
from densekd.config.forms import teachers_of
from densekd.config.load import load_config, to_tree
from densekd.config.names import STEP_FORMS
from densekd.engine.folder import RunFolder
from densekd.errors import UserError, WeightsError
from densekd.export import EXPORTED
from densekd.models.weights import save_weights
from densekd.ops.files import read_object, write_text
from densekd.report.card import Origin, model_card
from densekd.report.records import read_result

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
# Endings of files, which no repository's name has.
FILES = (".safetensors", ".pth", ".pt", ".yaml", ".yml", *EXPORTED)
# What must be equal in two runs for one to be the other's student alone.
SAME = ("model", "data", "task", "optim", "train", "seed")


def save_folder(
    network: nn.Module,
    about: Mapping[str, Any],
    source: Path,
    folder: str | Path,
    *,
    license: str | None = None,
    name: str | None = None,
) -> Path:
    """Write config.json, model.safetensors and README.md.

    Args:
        network: bare.
        about: what a weights file says of its network.
        source: the file that the network came from; where it lies in a run's folder, the card tells of the run.
        name: what the card says to load; None: the folder's own name.

    Raises:
        UserError: one of the three files exists, or the network is an exported file.
    """
    folder = Path(folder)
    old = [file for file in (WEIGHTS, CONFIG, CARD) if (folder / file).exists()]
    if old:
        raise UserError(
            f"{folder} holds {', '.join(old)}; nothing is overwritten: give another folder"
        )
    if not network.state_dict():
        raise UserError(
            f"{source}: an exported file cannot be saved as a network; save the run or the weights file that it was "
            "made of"
        )
    card = model_card(about, origin_of(source), name=name or folder.name, license=license)
    text = json.dumps(about)
    save_weights(network, folder / WEIGHTS, {"densekd": text})
    names = {"id2label": dict(enumerate(about["classes"]))} if about["classes"] else {}
    config = {"library_name": "densekd", **about, **names}
    write_text(folder / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / CARD, card)
    return folder


def origin_of(file: Path) -> Origin:
    """What the run folder around a weights file says; nothing where the file lies elsewhere."""
    folder = run_around(file)
    if folder is None:
        return Origin()
    config = to_tree(load_config(folder.config))
    result = read_result(folder.result)
    if result is not None and file.resolve() == folder.best.resolve():
        best = {k.removeprefix("best_"): v for k, v in result.items() if k.startswith("best_")}
        result = {**result, "scores": best}  # the other scores are those of the last weights
    teachers = list(teachers_of(config).values())
    weights = teachers[0].get("weights") if len(teachers) == 1 else None
    teacher = None if weights is None else run_around(Path(weights))
    return Origin(
        config=config,
        result=result,
        teacher=None if teacher is None else _of_another(teacher),
        alone=student_alone(folder, result) if teachers else None,
    )


def run_around(file: Path) -> RunFolder | None:
    """The run whose checkpoints the file is one of."""
    folder = RunFolder(file.resolve().parent.parent)
    inside = file.resolve().parent == folder.checkpoints and folder.config.exists()
    return folder if inside else None


def _of_another(folder: RunFolder) -> dict[str, Any] | None:
    """The result of a run that the card only compares with; None where it has none that can be read."""
    try:
        return read_result(folder.result)
    except UserError:
        return None


def student_alone(folder: RunFolder, result: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The result of a run beside this one that trained the same student without a teacher."""
    if result is None or not os.access(folder.path.parent.parent, os.R_OK | os.X_OK):
        return None
    # Beside it, or under the same name beside its folder, as an ablation has its seeds.
    around = folder.path.parent
    cousins = [path / folder.path.name for path in around.parent.iterdir() if path.is_dir()]
    for other in sorted([*around.iterdir(), *cousins]):
        found = _of_another(RunFolder(other)) if other.is_dir() else None
        config = None if found is None else found.get("config")
        if config is None or teachers_of(config):
            continue
        if all(_comparable(config, k) == _comparable(result.get("config") or {}, k) for k in SAME):
            return found
    return None


def _comparable(config: Mapping[str, Any], section: str) -> Any:
    value = config.get(section)
    if section == "data" and isinstance(value, Mapping):
        # `densekd train` leaves the second stream out; where data lies changes nothing.
        return {k: v for k, v in value.items() if k not in ("unlabelled", "root", "workers")}
    if section == "train" and isinstance(value, Mapping):
        # Forms of the same step, which `train.auto` may choose otherwise for each of the two.
        return {k: v for k, v in value.items() if f"train.{k}" not in (*STEP_FORMS, "train.auto")}
    return value


def check_config(file: Path) -> None:
    """WeightsError where config.json beside a saved network says other things than the network's own file."""
    path = file.with_name(CONFIG)
    if file.name != WEIGHTS or not path.is_file():
        return
    from_file = about_weights(str(file))
    try:
        config = read_object(path)
    except UserError as error:
        raise WeightsError(str(error)) from error
    if config.get("library_name") != "densekd":
        return
    wrong = [key for key, value in from_file.items() if key in config and config[key] != value]
    if wrong:
        raise WeightsError(
            f"{path}: has another {', '.join(wrong)} than {file.name}, which holds; was one of the two replaced? "
            "Change the loaded model's attributes instead, or save it again"
        )


def looks_like_hub_id(path: Path) -> bool:
    """``owner/name`` or ``owner/name@revision``, where no folder of the owner's name is here."""
    text = path.as_posix()
    name = Path(text.partition("@")[0])
    local = name.parent.exists() or name.suffix in FILES
    return bool(HUB_ID.fullmatch(text)) and not local and not text.startswith(".")


def download(repo_id: str) -> Path:
    """The folder of a repository on the hub, in the hub's own cache; offline, what the cache has.

    Raises:
        UserError: huggingface_hub is not installed, there is no such repository, or the hub cannot be reached.
    """
    name, _, revision = repo_id.partition("@")
    with hub(f"{repo_id}: is no file and no folder here") as library:
        folder = library.snapshot_download(
            name, revision=revision or None, allow_patterns=[WEIGHTS, CONFIG]
        )
    return Path(folder)


def upload(folder: Path, repo_id: str, *, private: bool, token: str | None, message: str) -> str:
    """Make the repository where there is none, and put the folder's files into it; gives its address."""
    with hub(f"{repo_id}: was not uploaded") as library:
        api = library.HfApi(token=token)
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=str(folder), commit_message=message)
    return str(address)


def push(
    network: nn.Module,
    about: Mapping[str, Any],
    source: Path,
    repo_id: str,
    *,
    private: bool,
    token: str | None,
    license: str | None,
    message: str,
) -> str:
    """`save_folder` into a temporary folder, then `upload`."""
    if not HUB_ID.fullmatch(repo_id) or "@" in repo_id:
        raise UserError(f"repo_id {repo_id!r}: expected owner/name")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        save_folder(network, about, source, path, license=license, name=repo_id)
        return upload(path, repo_id, private=private, token=token, message=message)


@contextmanager
def hub(before: str) -> Iterator[Any]:
    """huggingface_hub; its errors become one message that begins with `before`."""
    try:
        library: Any = importlib.import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        raise UserError(
            f"{before}; for the Hugging Face hub: pip install 'densekd[hub]'"
        ) from error
    errors = importlib.import_module("huggingface_hub.errors")
    kinds = (OSError, ValueError, getattr(errors, "HTTPError", OSError))
    try:
        yield library
    except kinds as error:
        if isinstance(error, UserError):
            raise
        offline = isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError))
        reason = (
            "the hub cannot be reached" if offline or "onnect" in repr(error) else "the hub says"
        )
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{before}, and {reason}: {said}. A folder of save_pretrained needs no hub: give its path"
        ) from error
