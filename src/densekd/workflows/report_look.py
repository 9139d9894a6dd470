"""The networks of a report, asked about the validation images: scores, pictures, what an image costs."""

from __future__ import annotations

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
from densekd.engine.launch import Process
from densekd.errors import UserError
from densekd.models.taps import Taps, evaluating
from densekd.profiling import count_macs, count_parameters
from densekd.profiling.measure import timed
from densekd.report.examine import Examined, choose, examine
from densekd.report.layers import Shown, fit, layers_of
from densekd.report.page import Looked
from densekd.report.records import RunRecord
from densekd.report.rows import ALONE, TEACHER, Row, headline, main_columns, number
from densekd.tasks import Task
from densekd.types import Batch, InputSpec
from densekd.workflows.latency import milliseconds
from densekd.workflows.report_runs import Collected, find_from

SECONDS = 2.0  # of measuring a network's time
RUNS = (5, 20)  # fewest and most counted passes


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
        # Batches count the images that could be read; pictures are read by their number in the set.
        kept = [i for i in range(seen) if reader.name(i) not in skipped]
        for one in found:
            one.images = {kept[number]: value for number, value in one.images.items()}
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
        palette=[(int(r), int(g), int(b)) for r, g, b in getattr(task, "palette", [])],
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
    return network.row is not None and network.row.role == ALONE


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
    """The teacher that a run names, where its file is at hand and it gives scores of the student's classes."""
    teacher = run_config(run, settings).teacher
    if teacher is None or teacher.weights is None:
        return
    if teacher.classes is not None or teacher.activation != "softmax":
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
                (layer.name, uri, layer.svg, uri is not None and not layer.photo)
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
    seconds = [once() for _ in range(runs)]
    return {
        "size": [height, width],
        "parameters": count_parameters(tapped.model),
        "macs": count_macs(tapped.model, channels, (height, width)),
        "bytes": network.weights.stat().st_size,
        "runs": runs,
        **milliseconds(seconds),
    }
