"""Pictures one after the other as a file: animated WebP or GIF through Pillow, MP4 through OpenCV."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from densekd.errors import UserError
from densekd.ops.files import replacing

MOVING = (".webp", ".gif", ".mp4")


def save_moving(
    path: Path, pictures: Iterable[Image.Image], *, rate: float, quality: int = 70
) -> int:
    """Write the pictures as they come, all at the first one's size; returns their number.

    Args:
        path: ends with one of `MOVING`.
        rate: pictures a second.
        quality: of WebP, 1 to 100.

    Raises:
        UserError: there is no picture, or OpenCV cannot write MP4 here.
    """
    stream = iter(pictures)
    first = next(stream, None)
    if first is None:
        raise UserError(f"{path}: there is no picture to write")
    counted = _Counted(_of_size(itertools.chain([first], stream), first.size))
    with replacing(path) as neighbour:
        if path.suffix == ".mp4":
            _save_mp4(neighbour, counted, first.size, rate)
        else:
            head = next(counted)
            options = {"quality": quality, "method": 4} if path.suffix == ".webp" else {}
            head.save(
                neighbour,
                format=path.suffix[1:].upper(),
                save_all=True,
                append_images=counted,
                duration=round(1000 / rate),
                loop=0,
                **options,
            )
    return counted.count


class _Counted:
    """An iterator that knows how many it gave."""

    def __init__(self, inner: Iterator[Image.Image]) -> None:
        self.inner = inner
        self.count = 0

    def __iter__(self) -> _Counted:
        return self

    def __next__(self) -> Image.Image:
        value = next(self.inner)
        self.count += 1
        return value


def _of_size(pictures: Iterable[Image.Image], size: tuple[int, int]) -> Iterator[Image.Image]:
    """Pictures of another size are put on a white one of this size."""
    for picture in pictures:
        if picture.size == size:
            yield picture
            continue
        sheet = Image.new("RGB", size, "white")
        scale = min(size[0] / picture.width, size[1] / picture.height, 1.0)
        small = picture.resize((round(picture.width * scale), round(picture.height * scale)))
        sheet.paste(small, (0, 0))
        yield sheet


def _save_mp4(
    path: Path, pictures: Iterable[Image.Image], size: tuple[int, int], rate: float
) -> None:
    width, height = size[0] - size[0] % 2, size[1] - size[1] % 2  # codecs take even sizes
    # The container follows the name's ending, which the neighbour of an atomic write does not have.
    written = path.with_name(path.name + ".mp4")
    writer = cv2.VideoWriter(str(written), cv2.VideoWriter.fourcc(*"mp4v"), rate, (width, height))
    try:
        if not writer.isOpened():
            raise UserError("OpenCV cannot write MP4 here; choose .webp or .gif")
        for picture in pictures:
            pixels = np.asarray(picture.convert("RGB"))[:height, :width]
            writer.write(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
        writer.release()
        written.replace(path)
    finally:
        writer.release()
        written.unlink(missing_ok=True)
