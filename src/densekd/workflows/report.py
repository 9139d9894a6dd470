"""`report`: one page of runs; the networks are asked about the validation images once."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densekd.engine.launch import pick_device
from densekd.errors import UserError, first_line
from densekd.ops.files import write_text
from densekd.report.page import MARK, render
from densekd.report.rows import main_columns
from densekd.workflows.report_look import look
from densekd.workflows.report_runs import collect, say_codes

BY_ITSELF = 100  # images that the networks are asked about where nobody asked for the page


@dataclass(frozen=True)
class Report:
    """What `report` wrote.

    Attributes:
        without: why there are no pictures; empty where there are.
    """

    path: Path
    bytes: int
    without: str


def report(
    folders: Sequence[Path],
    out: Path | None = None,
    *,
    images: int | None = None,
    pictures: bool = True,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> Report:
    """Write the page of runs, of an ablation or of a demo.

    Args:
        out: file; None: ``report.html`` in the folder, of several folders in the current one.
        images: of the validation split that the networks are asked about, the first ones; None for all.
        pictures: with False no network is asked, and there is neither confusion, calibration nor time of an image.
        settings: dotted settings of ``data.`` and ``evaluate.`` for the runs' own (``{"data.root": "camvid"}``).

    Raises:
        UserError: a folder is no run, or `out` is a file that `report` did not write.
    """
    settings = dict(settings or {})
    strange = [key for key in settings if key.partition(".")[0] not in ("data", "evaluate")]
    if strange:
        raise UserError(
            f"--{strange[0]}: a report reads finished runs; only where the data is (--data.root FOLDER) and how "
            "networks are scored (--evaluate.flip) can be given"
        )
    if images is not None and images < 1:
        raise UserError(f"--images {images}: expected at least 1; --no-pictures asks no network")
    out = out or (folders[0] if len(folders) == 1 else Path()) / "report.html"
    check_out(out)
    collected = collect(folders)
    say_codes(collected)
    columns, errors = main_columns(collected.task, collected.rows)
    smaller = columns[0].key in errors
    looked, without = None, "not asked for (--no-pictures)"
    if pictures:
        place = pick_device(device)
        try:
            looked = look(collected, images, settings, place, quiet=quiet)
            without = ""
        except (UserError, OSError) as error:
            without = str(error)
    command = ["densekd", "report", *map(str, folders), "--out", str(out)]
    command += [] if pictures else ["--no-pictures"]
    command += [] if images is None else ["--images", str(images)]
    command += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    text = render(
        collected.task,
        collected.rows,
        columns,
        smaller=smaller,
        looked=looked,
        without=without,
        remarks=collected.remarks,
        command=shlex.join(command),
    )
    write_text(out, text)
    return Report(out, len(text.encode()), without)


def check_out(out: Path) -> None:
    """Refuse to replace what `report` did not write; said before any work."""
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; give a file, as in --out {out / 'report.html'}")
    if not out.exists():
        return
    with open(out, encoding="utf-8", errors="replace") as file:
        if not re.search(re.escape(MARK), file.read(2000)):
            raise UserError(
                f"--out {out} exists and was not written by densekd report; give another path"
            )


def try_report(folder: Path, *, device: str = "auto") -> str:
    """What `demo` and `ablate` end with: the line that names the page, or says why there is none."""
    try:
        made = report([folder], images=BY_ITSELF, device=device, quiet=True)
    except Exception as error:  # the runs are done: nothing here may fail them
        line = first_line(error)
        return f"report    not written: {line}; try densekd report {folder}"
    without = f" (without pictures: {made.without})" if made.without else ""
    return f"report    {made.path}{without}"
