"""`predict`: the answers for images as files in a folder, which says in predict.json whose they are."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

import densekd
from densekd.data import video
from densekd.data.files import read_image
from densekd.errors import DataError, UserError
from densekd.ops.files import read_object, write_text
from densekd.report.answers import (
    OF_ANY_TASK,
    PICTURES,
    Draw,
    as_rgb,
    coco_boxes,
    join_boxes,
    per_metre,
    save_png,
)
from densekd.report.moving import save_moving
from densekd.workflows.load import LoadedModel
from densekd.workflows.open_model import identity
from densekd.workflows.predict_inputs import Input
from densekd.workflows.submission import KIND as LABEL_IDS
from densekd.workflows.submission import check_submission, label_ids, write_submission

MANIFEST = "predict.json"
MOVING_KINDS = {"colour", "overlay", "drawn"}  # pictures that are joined to a moving one
BOXES = "results"  # detection: the boxes of each image, joined into results.json and images.json


@dataclass
class Predicted:
    """What one call of `predict` did.

    Attributes:
        images: how many inputs there are.
        written: for how many of them files were written; the others had all of theirs, or are unreadable.
        unreadable: what is wrong with each file that could not be read.
        videos: moving pictures that were joined from the frames of videos.
        submission: what is said of the zip file of a test server.
        seconds: for the written ones, with reading and writing.
        files: the kinds of file.
    """

    images: int
    out: str
    files: list[str]
    written: int = 0
    seconds: float = 0.0
    unreadable: list[str] = field(default_factory=list)
    videos: list[str] = field(default_factory=list)
    submission: list[str] = field(default_factory=list)

    @property
    def skipped(self) -> int:
        return self.images - self.written - len(self.unreadable)

    @property
    def images_per_second(self) -> float | None:
        return self.written / self.seconds if self.written else None

    def as_dict(self) -> dict[str, Any]:
        return {
            **vars(self),
            "skipped": self.skipped,
            "images_per_second": self.images_per_second,
        }


def kinds_of(
    model: LoadedModel, only: Sequence[str], submission: bool = False
) -> dict[str, Draw | None]:
    """Kind of file -> how it is drawn; `only` chooses. None stands for the boxes of detection."""
    name = model.task.name
    possible: dict[str, Draw | None] = {**PICTURES.get(name, OF_ANY_TASK)}
    if name == "detection":
        possible[BOXES] = None
    unknown = [kind for kind in only if kind not in possible]
    if unknown:
        raise UserError(
            f"--only {unknown[0]}: {name} has no such files; possible: {', '.join(possible)}"
        )
    chosen = {kind: draw for kind, draw in possible.items() if not only or kind in only}
    return {**chosen, LABEL_IDS: label_ids} if submission else chosen


def predict(
    model: LoadedModel,
    inputs: Sequence[Input],
    out: Path,
    *,
    only: Sequence[str] = (),
    videos: Sequence[str] = (),
    frames: int | None = None,
    submission: bool = False,
    quiet: bool = False,
) -> Predicted:
    """Write the answers for `inputs` into `out`; what is there already is left as it is.

    Args:
        videos: video files and cameras.
        frames: at most so many of each video.
        submission: write and zip what Cityscapes' test server takes.
        only: kinds of file; empty for all that the task has.
        quiet: no progress bar.

    Raises:
        UserError: `out` holds files of another model, or files that `predict` did not write.
    """
    if submission and (videos or frames is not None):
        raise UserError("--submission: a test server takes images; leave videos out")
    kinds = kinds_of(model, only, submission)
    if submission:
        check_submission(model.task, inputs)
    claim(out, model)
    result = Predicted(len(inputs), str(out), list(kinds))
    begin = time.perf_counter()
    for item in _shown(inputs, "predict", quiet):
        missing = _missing(out, kinds, item)
        if not missing:
            continue
        try:
            image = read_image(item.path, model.input_spec.channels)
        except DataError as error:
            result.unreadable.append(str(error))
            continue
        _write(model, out, missing, item, image)
        result.written += 1
    for source in videos:
        predict_video(model, out, kinds, source, result, frames, quiet)
    result.seconds = time.perf_counter() - begin
    if BOXES in kinds:
        write_results(out, model)
    if submission and not result.unreadable:
        result.submission = write_submission(out, model.task, inputs)
    return result


def _shown(
    things: Iterable[Any], text: str, quiet: bool, total: int | None = None
) -> Iterable[Any]:
    """With a progress bar on a terminal."""
    console = Console(stderr=True)
    return track(
        things,
        description=text,
        total=total,
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )


def _missing(out: Path, kinds: Mapping[str, Draw | None], item: Input) -> dict[str, Draw | None]:
    return {k: draw for k, draw in kinds.items() if not output_of(out, k, item).exists()}


def _write(
    model: LoadedModel, out: Path, kinds: Mapping[str, Draw | None], item: Input, image: np.ndarray
) -> None:
    answer = model.predict(image)
    for kind, draw in kinds.items():
        path = output_of(out, kind, item)
        if draw is None:
            write_boxes(path, model, item, image.shape, answer)
        else:
            save_png(path, draw(model.task, as_rgb(image), answer))


def predict_video(
    model: LoadedModel,
    out: Path,
    kinds: Mapping[str, Draw | None],
    source: str,
    result: Predicted,
    limit: int | None,
    quiet: bool,
) -> None:
    """The answers for each frame, and its pictures joined to KIND/NAME.mp4.

    A camera goes on until it is interrupted (Ctrl-C) or has given `limit` frames; each call has a folder of its own.
    """
    name = video_name(source)
    stream = itertools.islice(video.frames(source, model.input_spec.channels), limit)
    count = 0
    try:
        for number, image in enumerate(_shown(stream, name, quiet, video.frame_count(source))):
            item = Input(Path(source), Path(name, f"{number:06}.png"))
            missing = _missing(out, kinds, item)
            if missing:
                _write(model, out, missing, item, image)
                result.written += 1
            count = number + 1
    except KeyboardInterrupt:
        if not video.is_camera(source):
            raise
    except DataError as error:
        result.unreadable.append(str(error))
        result.images += 1
    result.images += count
    for kind in MOVING_KINDS & kinds.keys():
        joined = out / kind / f"{name}.mp4"
        if count == 0 or joined.exists():
            continue
        pngs = (out / kind / name / f"{number:06}.png" for number in range(count))
        pictures = (Image.open(png).convert("RGB") for png in pngs)
        save_moving(joined, pictures, rate=video.frame_rate(source))
        result.videos.append(str(joined))


def video_name(source: str) -> str:
    """The folder of its frames."""
    if video.is_camera(source):
        return f"camera-{time.strftime('%Y%m%d-%H%M%S')}"
    return Path(source).stem


def output_of(out: Path, kind: str, item: Input) -> Path:
    path = out / kind / item.output
    return path.with_suffix(".json") if kind == BOXES else path


def claim(out: Path, model: LoadedModel) -> None:
    """Write whose answers the folder holds; UserError where it holds others."""
    own = identity(model)
    path = out / MANIFEST
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    if path.exists():
        try:
            found = read_object(path)
        except UserError:
            found = {}
        before = found.get("answers")
        before = before if isinstance(before, dict) else {}
        # As JSON gives it back: tuples become lists.
        different = [k for k, v in json.loads(json.dumps(own)).items() if before.get(k) != v]
        if different:
            raise UserError(
                f"--out {out} holds the answers of another model ({found.get('model', 'unknown')}; different: "
                f"{', '.join(different)}); give another folder"
            )
        return
    if out.exists() and any(out.iterdir()):
        raise UserError(
            f"--out {out} has files and no {MANIFEST}: densekd predict did not write it; give another folder"
        )
    depth = {"depth": depth_note(model)} if model.task.name == "depth" else {}
    about = {
        "model": str(model.path),
        "densekd": densekd.__version__,
        **depth,
        "note": model.about.get("note", ""),
        "answers": own,
    }
    write_text(path, json.dumps(about, indent=2) + "\n")


def depth_note(model: LoadedModel) -> str:
    return f"metres = value of the 16-bit PNG / {per_metre(model.task)}"


def write_boxes(
    path: Path,
    model: LoadedModel,
    item: Input,
    shape: tuple[int, ...],
    answer: Mapping[str, Any],
) -> None:
    content = {
        "file_name": item.name.as_posix(),
        "height": shape[0],
        "width": shape[1],
        "boxes": coco_boxes(model.task, answer),
    }
    write_text(path, json.dumps(content) + "\n")


def write_results(out: Path, model: LoadedModel) -> None:
    """Join the boxes of all images of the folder, those of earlier calls too."""
    images = {}
    for path in sorted((out / BOXES).rglob("*.json")):
        if not path.name.startswith("."):
            content = read_object(path)
            if not {"file_name", "height", "width", "boxes"} <= content.keys():
                raise UserError(
                    f"{path}: is no file of predict; delete it, and the same command makes it again"
                )
            images[str(content["file_name"])] = content
    results, listed = join_boxes(model.task, images)
    write_text(out / "results.json", json.dumps(results) + "\n")
    write_text(out / "images.json", json.dumps(listed, indent=1) + "\n")


def as_text(result: Predicted, model: LoadedModel) -> str:
    """A few lines for people."""
    rate = result.images_per_second
    speed = "" if rate is None else f", {rate:.3g} images/s with reading and writing"
    lines = [f"{result.written} of {result.images} images predicted{speed}"]
    lines += [f"joined {path}" for path in result.videos]
    lines += result.submission
    if result.skipped:
        lines.append(f"{result.skipped} were there already")
    if "metres" in result.files:
        lines.append(depth_note(model))
    lines.append(f"{', '.join(result.files)} in {result.out}")
    if result.unreadable:
        lines.append(f"{len(result.unreadable)} could not be read:")
        lines += [f"  {text}" for text in result.unreadable]
    return "\n".join(lines)
