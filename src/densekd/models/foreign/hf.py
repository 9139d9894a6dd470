"""Networks of Hugging Face transformers from a folder: ``{name: hf, options: {path: FOLDER}}``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from densekd.errors import UserError
from densekd.models.foreign._package import declare, package
from densekd.types import InputSpec

# Class of the folder's config.json -> the default tap, where one module gives a map.
TAPS = {
    "SegformerForSemanticSegmentation": "decode_head.activation",
    "UperNetForSemanticSegmentation": "decode_head.fpn_bottleneck",
    "DPTForSemanticSegmentation": "head.head.2",
}


def hf(num_classes: int, *, path: str, weights: bool | None = True) -> nn.Module:
    """The library's own network, so that what is saved loads there with ``strict=True``. Nothing is downloaded.

    Args:
        path: a folder that ``save_pretrained`` wrote, or a repository's folder: config.json, model.safetensors, and
            preprocessor_config.json where there is one.
        weights: load the folder's weights; false builds the network of its config.json at random.

    Weights of another number of classes keep all but their classifier, which begins at random.
    """
    library: Any = package("transformers", "transformers", "hf")
    folder = Path(path).expanduser()
    about = read_json(folder / "config.json")
    names = about.get("architectures") or []
    name = names[0] if names else ""
    kind = getattr(library, name, None)
    if kind is None or not name.endswith("ForSemanticSegmentation"):
        raise UserError(
            f"{folder}/config.json is of {name or 'no class'}; expected a ...ForSemanticSegmentation of transformers"
        )
    config = library.AutoConfig.from_pretrained(folder, local_files_only=True)
    if config.num_labels != num_classes:
        config.num_labels = num_classes
    if weights:
        try:
            network = kind.from_pretrained(
                folder, config=config, local_files_only=True, ignore_mismatched_sizes=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{folder}: {error}") from error
    else:
        network = kind(config)
    return declare(network, input_spec(folder), num_classes, TAPS.get(name))


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file; give a folder that save_pretrained wrote"
        ) from error
    except ValueError as error:
        raise UserError(f"{path}: is not JSON: {error}") from error


def input_spec(folder: Path) -> InputSpec:
    """Of preprocessor_config.json; ImageNet's mean and std where there is none."""
    file = folder / "preprocessor_config.json"
    about = read_json(file) if file.is_file() else {}
    if not about.get("do_normalize", True):
        return InputSpec(mean=(0.0,) * 3, std=(1.0,) * 3)
    spec = InputSpec()
    return InputSpec(mean=about.get("image_mean", spec.mean), std=about.get("image_std", spec.std))
