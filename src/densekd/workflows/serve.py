"""`serve`: networks tried in the browser, each beside the others, on images that one drops."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

from densekd.data.files import read_image
from densekd.errors import UserError
from densekd.export import Program
from densekd.ops.names import bytes_text
from densekd.profiling.cost import count_parameters
from densekd.report.answers import as_rgb
from densekd.report.layers import data_uri, encode, layers_of
from densekd.report.legend import agreement, hex_colour, legend
from densekd.report.serve import (
    SMALLEST_SIDE,
    bind,
    check_packages,
    is_local,
    make_app,
    make_server,
    page,
)
from densekd.workflows.load import LoadedModel

SIDE = 1024  # of an image, where neither the user nor the page says
WIDTH = 960  # of a picture that is sent to the page, at most
ROUNDS = 6  # in which the networks are timed by turns; the first is left out, since it is not like the next
LONG = 2.0  # seconds after which no further round begins
WARM = (192, 256)  # of the image that networks are tried on where they do not say a size


class Models:
    """Networks that are asked about one image after the other.

    Args:
        models: of any tasks, classes and devices.
        titles: one a model.
    """

    def __init__(self, models: Sequence[LoadedModel], titles: Sequence[str]) -> None:
        self.models, self.titles = models, titles

    def warm_up(self) -> None:
        """Ask each network once, so that what cannot work fails now, and the first image is not slow."""
        for model in self.models:
            size = model.input_spec.size or WARM
            model.predict(np.full((*size, model.input_spec.channels), 128, np.uint8))

    def answer(self, content: bytes, name: str, side: int, once: bool = False) -> dict[str, Any]:
        """The answers to an image file, as the page draws them.

        Args:
            content: of the file.
            side: the longer side is at most so long: a larger image is made smaller first.
            once: ask each network once (a camera's frames); else times are medians of several rounds.

        Raises:
            UserError: the content is no image, or of another kind than a network takes.
        """
        if not content:
            raise UserError(f"{name} is empty; expected an image")
        images: dict[int, np.ndarray] = {}
        for channels in {model.input_spec.channels for model in self.models}:
            images[channels] = read_image(content, channels, name=name)
        given = next(iter(images.values())).shape[:2]
        images = {channels: shrunk(image, side) for channels, image in images.items()}
        pairs = [(model, images[model.input_spec.channels]) for model in self.models]
        timed = in_turns(pairs, 1 if once else ROUNDS)
        photo = as_rgb(images[max(images)])
        found = [answer for answer, _ in timed]
        tasks = [model.task for model in self.models]
        sentence = agreement(tasks, found)
        return {
            "name": name,
            "given": [given[1], given[0]],
            "seen": [photo.shape[1], photo.shape[0]],
            "photo": picture(tasks[0], photo, None)["uri"],
            "answers": [
                {
                    "milliseconds": round(1000 * seconds, 3),
                    "picture": picture(task, photo, answer),
                    "legend": legend(task, answer),
                }
                for task, (answer, seconds) in zip(tasks, timed, strict=True)
            ],
            "remarks": [sentence] if sentence else [],
        }

    def described(self) -> list[dict[str, Any]]:
        """What the page says of each network before it is asked."""
        return [
            {
                "title": title,
                "facts": facts(model),
                "classes": classes_of(model),
            }
            for model, title in zip(self.models, self.titles, strict=True)
        ]

    @property
    def devices(self) -> str:
        return " and ".join(dict.fromkeys(str(model.device) for model in self.models))


def in_turns(
    pairs: Sequence[tuple[LoadedModel, np.ndarray]], rounds: int
) -> list[tuple[Any, float]]:
    """Each network's answer and its median seconds, from pixels to the decoded answer."""
    answers: list[Any] = []
    seconds: list[list[float]] = [[] for _ in pairs]
    begin = time.perf_counter()
    for number in range(rounds):
        if number and time.perf_counter() - begin > LONG:
            break
        answers = []
        for (model, image), own in zip(pairs, seconds, strict=True):
            before = time.perf_counter()
            answers.append(model.predict(image))  # in NumPy arrays: a GPU has finished
            own.append(time.perf_counter() - before)
    return [
        (answer, statistics.median(own[1:] or own))
        for answer, own in zip(answers, seconds, strict=True)
    ]


def shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """(H, W, C) with a longer side of at most `side`."""
    height, width = image.shape[:2]
    if max(height, width) <= side:
        return image
    share = side / max(height, width)
    size = (max(1, round(width * share)), max(1, round(height * share)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], -1)


def picture(task: Any, photo: np.ndarray, answer: Any) -> dict[str, Any]:
    """The drawing of an answer, or of the photo for None: ``uri`` or ``svg``, and whether it is a map of classes."""
    shown = SimpleNamespace(**answer) if isinstance(answer, dict) else answer
    layer = layers_of(task, photo, None, [] if answer is None else [("", shown)])[-1]
    return {
        "uri": data_uri(encode(layer, WIDTH)),
        "svg": None if layer.svg is None else str(layer.svg),
        "map": layer.svg is None and not layer.photo,
    }


def facts(model: LoadedModel) -> str:
    """``espnet_c, segmentation, 0.361 M parameters, file of 1.5 MB``."""
    name = model.about.get("model", {}).get("name") or type(model.model).__name__
    parts = [str(name), model.task.name]
    if isinstance(model.model, Program):
        file = model.model.file
        parts += [
            file.runtime,
            f"file of {bytes_text(sum(p.stat().st_size for p in file.files()))}",
        ]
    else:
        parts += [
            f"{count_parameters(model.model) / 1e6:.3f} M parameters",
            f"file of {bytes_text(model.path.stat().st_size)}",
        ]
    parts.append(str(model.device))
    note = model.about.get("note")
    return ", ".join(parts) + (f". Note: {note}" if note else "")


def classes_of(model: LoadedModel) -> list[tuple[str, str]]:
    """Names with the colours that they are drawn in."""
    palette = model.palette or []
    return [(name, hex_colour(rgb)) for name, rgb in zip(model.classes, palette, strict=False)]


def serve(
    models: Sequence[LoadedModel],
    titles: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8361,
    side: int = SIDE,
    most_side: int = 2048,
    started: Callable[[str], None],
) -> None:
    """Serve the page until interrupted.

    Args:
        titles: one a model.
        host: the address that is listened on; others than this machine's own are reached from outside.
        port: 0 takes a free one.
        side: of the longer side of images, until the page says another.
        most_side: the longest that the page may choose.
        started: called once with the page's address.

    Raises:
        UserError: the extra is missing, a side is out of range, or the port is taken.
    """
    check_packages()
    if most_side < SMALLEST_SIDE:
        raise UserError(f"--max-side {most_side}: expected at least {SMALLEST_SIDE}")
    listening = bind(host, port)  # before the networks are asked, which may take long
    with listening:
        asked = Models(models, titles)
        asked.warm_up()
        local = is_local(host)
        place = (
            "This page answers on this machine alone"
            if local
            else "Everybody in the network can reach this page"
        )
        text = page(
            asked.described(),
            place=place,
            devices=asked.devices,
            most_side=most_side,
            side=min(side, most_side),
        )
        app = make_app(text, asked.answer, local=local, most_side=most_side)
        server = make_server(app)
        shown = f"[{host}]" if ":" in host else host
        started(f"http://{shown}:{listening.getsockname()[1]}/")
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:  # uvicorn ends first and raises it then
            return
