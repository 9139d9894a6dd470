"""`report`: one page of runs; the networks are asked about the validation images once."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from densekd.build.data import build_eval_loader, build_reader, build_views
from densekd.build.networks import build_network
from densekd.build.task import build_task
from densekd.config.load import load_config
from densekd.config.schema import Config, Model
from densekd.engine.launch import Process, pick_device
from densekd.errors import UserError
from densekd.models.taps import Taps, evaluating
from densekd.ops.files import write_text
from densekd.profiling import count_macs, count_parameters
from densekd.profiling.measure import interleave, timed
from densekd.report.examine import Examined, choose, examine
from densekd.report.layers import Shown, fit, layers_of
from densekd.report.page import MARK, Looked, render
from densekd.report.records import RunRecord
from densekd.report.rows import TEACHER, Row, headline, main_columns, number
from densekd.tasks import Task
from densekd.types import Batch, InputSpec
from densekd.workflows.latency import milliseconds
from densekd.workflows.report_runs import Collected, collect, find_from

SECONDS = 2.0  # of measuring a network's time
RUNS = (5, 20)  # fewest and most counted passes


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
        made = report([folder], device=device, quiet=True)
    except Exception as error:  # the runs are done: nothing here may fail them
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"report    not written: {line}; try densekd report {folder}"
    without = f" (without pictures: {made.without})" if made.without else ""
    return f"report    {made.path}{without}"


@dataclass(frozen=True)
class _Network:
    """A network to ask: the row that it stands for, its settings with weights, the run that they come from."""

    title: str
    row: Row | None
    model: Model
    run: RunRecord
    weights: Path


def look(
    collected: Collected,
    limit: int | None,
    settings: Mapping[str, Any],
    device: torch.device,
    *,
    quiet: bool,
) -> Looked:
    """Ask teacher, student alone and distilled about the validation images.

    Raises:
        UserError: there are no weights, or the data is not where the settings say.
    """
    columns, errors = main_columns(collected.task, collected.rows)
    smaller = columns[0].key in errors
    chosen = list(_networks(collected, settings))
    if not chosen:
        raise UserError("none of the runs has weights in its checkpoints/ folder yet")
    main = chosen[-1]
    config = run_config(main.run, settings)
    reader = build_reader(config.data, config.data.val_split, training=False)
    task = build_task(config, reader)
    built: list[tuple[_Network, Taps]] = []
    remarks: list[str] = []
    for network in chosen:
        try:
            module, spec = build_network(network.model, task, "model")
        except UserError as error:
            remarks.append(f"{network.title} could not be loaded: {error}")
            continue
        built.append((network, Taps(module, {}, spec).to(device).eval()))
    if not built:
        raise UserError("; ".join(remarks))
    total = len(reader)
    seen = total if limit is None else min(limit, total)
    whole = replace(config, evaluate=replace(config.evaluate, batch_size=1))
    plain = InputSpec(mean=(0.5,) * reader.channels, std=(0.25,) * reader.channels)  # pads nothing
    skipped: dict[str, str] = {}
    loader = build_eval_loader(
        whole, reader, plain, Process(0, 1, device), limit=seen, skipped=skipped
    )
    console = Console(stderr=True)
    shown = track(
        loader,
        description="report",
        total=seen,
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )
    views = build_views(config.evaluate)
    found = examine([tapped for _, tapped in built], shown, task, views, device)
    if skipped:
        remarks.append(f"{len(skipped)} validation images could not be read and are left out.")
    _score_teacher(collected, built, found, task, whole=seen == total)
    before = next((f for (n, _), f in zip(built, found, strict=True) if _is_alone(n)), None)
    picked = choose(
        found[-1].images,
        None if before is None or before is found[-1] else before.images,
        smaller=smaller,
    )
    pictures = draw(picked, built, found, reader, whole, plain, task, device, collected)
    return Looked(
        networks=[network.title for network, _ in built],
        rows=[network.row for network, _ in built],
        seeds=[network.run.seed for network, _ in built],
        examined=found,
        images=pictures,
        classes=list(task.classes),
        palette=[tuple(int(v) for v in c) for c in getattr(task, "palette", [])],
        seen=seen - len(skipped),
        total=total,
        split=config.data.val_split,
        latency=[cost(tapped, network, config, reader, device) for network, tapped in built],
        device=str(device),
        threads=torch.get_num_threads(),
        depth_range=getattr(task, "range", None),
        remarks=remarks,
    )


def _is_alone(network: _Network) -> bool:
    return network.row is not None and network.row.role == "alone"


def _networks(collected: Collected, settings: Mapping[str, Any]) -> Iterator[_Network]:
    """Teacher, student alone, distilled; without a distilled one, the rows that there are (at most four). The last is
    the one that the page is about."""
    columns, errors = main_columns(collected.task, collected.rows)
    head = headline(collected.rows, columns[0], columns[0].key in errors)
    if head.distilled is None:
        for row in [r for r in collected.rows if r.runs][:4]:
            yield from _of_row(row, settings)
        return
    taught = next((run for run in head.distilled.runs if run.weights), None)
    own = [] if head.teacher is None else list(_of_row(head.teacher, settings))
    if not own and taught is not None:
        own = list(_teacher_of(taught, head.teacher, settings))
    yield from own
    if head.alone is not None:
        yield from _of_row(head.alone, settings)
    yield from _of_row(head.distilled, settings)


def _of_row(row: Row, settings: Mapping[str, Any]) -> Iterator[_Network]:
    """The network of the row's first seed that has weights."""
    for run in row.runs:
        if run.weights is not None:
            config = run_config(run, settings)
            model = replace(config.model, weights=str(run.weights))
            yield _Network(row.title, row, model, run, run.weights)
            return


def _teacher_of(run: RunRecord, row: Row | None, settings: Mapping[str, Any]) -> Iterator[_Network]:
    """The teacher that a run names, where its file is at hand and it has the student's classes."""
    teacher = run_config(run, settings).teacher
    if teacher is None or teacher.weights is None or teacher.classes is not None:
        return
    file = find_from(run.path, teacher.weights)
    if file is not None:
        yield _Network("teacher", row, replace(teacher, weights=str(file)), run, file)


def run_config(run: RunRecord, settings: Mapping[str, Any]) -> Config:
    """A run's settings, with the data where it is found from here."""
    config = load_config(run.folder.config, dict(settings))
    data = config.data
    if data.root is not None:
        found = find_from(run.path, data.root)
        if found is None:
            raise UserError(
                f"the data is not at hand: data.root is {data.root}, which does not exist here; give --data.root FOLDER"
            )
        data = replace(data, root=str(found))
    return replace(config, data=data)


def _score_teacher(
    collected: Collected,
    built: Sequence[tuple[_Network, Taps]],
    found: Sequence[Examined],
    task: Task,
    *,
    whole: bool,
) -> None:
    """A teacher that no run of these has scored gets its row here, where all images were looked at."""
    for (network, tapped), examined in zip(built, found, strict=True):
        row = network.row
        if network.title != "teacher" or (row is not None and row.scores) or not whole:
            continue
        if row is None:
            row = Row("teacher", TEACHER)
            collected.rows.insert(0, row)
        row.scores, row.seeds = [examined.scores], [0]
        row.parameters = count_parameters(tapped.model)


def draw(
    picked: Sequence[tuple[int, str]],
    built: Sequence[tuple[_Network, Taps]],
    found: Sequence[Examined],
    reader: Any,
    config: Config,
    plain: InputSpec,
    task: Task,
    device: torch.device,
    collected: Collected,
) -> list[Shown]:
    """The pictures of the chosen images; networks are asked again, since all answers need not fit into memory."""
    column = main_columns(collected.task, collected.rows)[0][0]
    views = build_views(config.evaluate)
    layers, heads = [], []
    for index, why in picked:
        sample = reader.read(index)
        batch = _one(config, reader, plain, index, device)
        answers = []
        with torch.no_grad():
            for network, tapped in built:
                with evaluating(tapped):
                    answers.append((network.title, task.predict(tapped, batch, views)[0]))
        layers.append(layers_of(task, sample.image, sample.target, answers))
        scores = [
            (network.title, number(examined.images.get(index), column))
            for (network, _), examined in zip(built, found, strict=True)
        ]
        heads.append((sample.name, why, sample.image.shape[:2], scores))
    return [
        Shown(
            name,
            why,
            size,
            scores,
            [
                (layer.name, uri, layer.svg, not layer.photo)
                for layer, uri in zip(row, uris, strict=True)
            ],
        )
        for (name, why, size, scores), row, uris in zip(heads, layers, fit(layers), strict=True)
    ]


class _Only:
    """A data set of one sample of another."""

    def __init__(self, reader: Any, index: int) -> None:
        self.reader, self.index = reader, index

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reader, name)

    def __len__(self) -> int:
        return 1

    def read(self, index: int) -> Any:
        return self.reader.read(self.index)


def _one(config: Config, reader: Any, plain: InputSpec, index: int, device: torch.device) -> Batch:
    config = replace(config, data=replace(config.data, workers=0))
    loader = build_eval_loader(config, _Only(reader, index), plain, Process(0, 1, device))
    return next(iter(loader)).to(device)


@torch.no_grad()
def cost(
    tapped: Taps, network: _Network, config: Config, reader: Any, device: torch.device
) -> dict[str, Any]:
    """Parameters, MACs, the file's size and the time of one image of the size that the run counted MACs at."""
    size = (network.run.result or {}).get("macs_size")
    height, width = size or reader.read(0).image.shape[:2]
    channels = network.model.in_channels
    image = torch.rand(1, channels, height, width, device=device)
    once = partial(timed, partial(tapped.model, image), device)
    once()
    runs = int(min(RUNS[1], max(RUNS[0], SECONDS / max(once(), 1e-6))))
    seconds = interleave({"": once}, pairs=runs, warmup=1)[""]
    return {
        "size": [height, width],
        "parameters": count_parameters(tapped.model),
        "macs": count_macs(tapped.model, channels, (height, width)),
        "bytes": network.weights.stat().st_size,
        "runs": runs,
        **milliseconds(seconds),
    }
