"""Checkpoints that are whole or not there, that know when they are damaged, and the one before the last."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

import torch

from densekd.errors import UserError
from densekd.ops.digest import Sealing, sealed
from densekd.ops.files import PARTIAL, open_atomic

# In what is saved: says that the file has a digest, so that one whose digest is lost counts as damaged.
SEALED = "sealed"
ADVICE = "Start a new run with another --name, or restore the file."


def save_atomic(value: dict[str, Any], path: Path) -> None:
    """torch.save the whole value, with a digest of its bytes, or leave the old file."""
    with open_atomic(path, "wb") as file:
        sealing = Sealing(file)
        try:
            # It only ever writes to the file.
            torch.save({**value, SEALED: True}, cast(IO[bytes], sealing))
        except RuntimeError as error:
            raise sealing.error or error from error
        sealing.seal()


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_atomic` wrote, onto the CPU, without unpickling anything but tensors and plain values.

    Raises:
        UserError: it is missing, is no checkpoint, or its bytes are not those that were written.
    """
    try:
        is_sealed = sealed(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
        if state.pop(SEALED, False) and not is_sealed:
            raise ValueError("its digest is lost")
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}: {error})"
        ) from error
    return state


def newest_checkpoint(
    paths: Sequence[Path],
) -> tuple[dict[str, Any] | None, Path | None, list[str]]:
    """The first of `paths`, newest first, that can be read, with where it is and what is wrong with those before it.

    Returns:
        (None, None, []) where there is no file at all.

    Raises:
        UserError: there are files and none of them can be read.
    """
    wrong: list[str] = []
    for path in paths:
        if not path.exists():
            continue
        try:
            return load_checkpoint(path), path, wrong
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        raise UserError(f"--resume: {'; '.join(wrong)}. {ADVICE}")
    return None, None, []


def keep_as(path: Path, previous: Path) -> None:
    """Give the file that `path` is now the name `previous` too; the next one to be written replaces `path` alone."""
    link = previous.with_name(f".{previous.name}{PARTIAL}")
    try:
        link.unlink(missing_ok=True)
        os.link(path, link)
        os.replace(link, previous)
    except OSError:
        # No second names on this file system: for a moment there is the previous one alone.
        os.replace(path, previous)
