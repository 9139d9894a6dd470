"""A program as a frozen teacher: ``{name: exported, options: {path: FILE}}``, TorchScript or torch.export."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from densekd.errors import UserError


class Exported(nn.Module):
    """A loaded program; its mode is the one it was exported in, and nothing inside of it can be tapped."""

    no_taps = "an exported program has no modules to be tapped; compare its predictions"

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def train(self, mode: bool = True) -> Exported:
        self.training = mode  # a program of torch.export refuses to change its mode
        return self

    def forward(self, images: torch.Tensor) -> Any:
        return self.program(images)


def exported(*, path: str) -> nn.Module:
    """A TorchScript file (``torch.jit.save``) or a program of ``torch.export.save``.

    The program should be exported in eval mode, with a dynamic batch and, where images vary, dynamic sizes. A file can
    hold any code: use only files whose origin is known.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"path {path}: no such file")
    if not zipfile.is_zipfile(file):
        raise UserError(f"path {path}: neither a TorchScript file nor a program of torch.export")
    with zipfile.ZipFile(file) as archive:
        inside = [name.partition("/")[2] for name in archive.namelist()]
    is_script = any(name == "constants.pkl" for name in inside)
    try:
        if is_script:
            program: Any = torch.jit.load(file, map_location="cpu").eval()
        else:
            program = torch.export.load(file).module()
    except (RuntimeError, ValueError, KeyError, OSError, AssertionError) as error:
        raise UserError(
            f"path {path}: neither a TorchScript file nor a program of torch.export ({error})"
        ) from error
    return Exported(program)
