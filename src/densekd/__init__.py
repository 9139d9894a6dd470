"""densekd: knowledge distillation for dense prediction.

    run = densekd.distill(student="mobilenetv2plus", teacher="runs/teacher", data="camvid", root="CAMVID")
    classes = run.student.predict("street.png")    # (H, W): the class of each pixel
    student = densekd.load(run.folder)             # later; also a weights file, a saved folder, an id on the hub
    scores = densekd.evaluate(student, "camvid/espnet", {"data.root": "camvid"})

For a training loop of your own: `Distiller`, `Term` and `Taps`, and the losses as functions of tensors
(``from densekd.losses import pair_wise``). Importing the package loads nothing heavy: a name is imported when it is
first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> where it is. tests/public_api.json holds the names and signatures.
_PUBLIC = {
    "Distiller": "densekd.distill.distiller",
    "LoadedModel": "densekd.workflows.load",
    "Taps": "densekd.models.taps",
    "Term": "densekd.distill.term",
    "distill": "densekd.workflows.functions",
    "evaluate": "densekd.workflows.functions",
    "list_losses": "densekd.workflows.lists",
    "list_models": "densekd.workflows.lists",
    "load": "densekd.workflows.load",
    "train": "densekd.workflows.functions",
}
__all__ = [
    "Distiller",
    "LoadedModel",
    "Taps",
    "Term",
    "__version__",
    "distill",
    "evaluate",
    "list_losses",
    "list_models",
    "load",
    "train",
]

if TYPE_CHECKING:
    from densekd.distill.distiller import Distiller
    from densekd.distill.term import Term
    from densekd.models.taps import Taps
    from densekd.workflows.functions import distill, evaluate, train
    from densekd.workflows.lists import list_losses, list_models
    from densekd.workflows.load import LoadedModel, load


def find_public(name: str) -> Any:
    """The object behind a public name."""
    return getattr(import_module(_PUBLIC[name]), name)


def __getattr__(name: str) -> Any:
    if name == "distill":  # the room of that name, which can be called
        return import_module("densekd.distill")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'densekd' has no attribute {name!r}")
    globals()[name] = find_public(name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
