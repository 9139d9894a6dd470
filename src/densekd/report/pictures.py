"""Side-by-side pictures: one column a source, one row an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP = 4
HEADER = 22  # of one line of text
LINE = 17  # what each further line adds


def grid(
    columns: Sequence[str],
    rows: Sequence[Sequence[np.ndarray]],
    *,
    width: int = 256,
    smooth: bool = False,
) -> Image.Image:
    """Pictures in a table with a header.

    Args:
        columns: the texts of the header, of one line or several.
        rows: each row has as many (H, W, 3) uint8 RGB pictures as there are columns.
        width: the width of a picture in the grid, in pixels; the height follows each row's first picture.
        smooth: resize all pictures like photos, not only those of the first column.
    """
    if not rows or any(len(row) != len(columns) for row in rows):
        raise ValueError(f"each row must have {len(columns)} pictures, one a column")
    heights = [round(width * row[0].shape[0] / row[0].shape[1]) for row in rows]
    header = HEADER + LINE * max(text.count("\n") for text in columns)
    sheet = Image.new(
        "RGB",
        (len(columns) * (width + GAP) + GAP, header + sum(h + GAP for h in heights) + GAP),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for i, text in enumerate(columns):
        draw.text((GAP + i * (width + GAP) + 2, 3), text, fill="black", font=font)
    top = header
    for row, height in zip(rows, heights, strict=True):
        for i, picture in enumerate(row):
            image = Image.fromarray(picture)
            if image.size != (width, height):
                # Class colours must not blend; a photo may.
                image = image.resize(
                    (width, height),
                    Image.Resampling.LANCZOS if i == 0 or smooth else Image.Resampling.NEAREST,
                )
            sheet.paste(image, (GAP + i * (width + GAP), top))
        top += height + GAP
    return sheet


def save_grid(
    path: Path, columns: Sequence[str], rows: Sequence[Sequence[np.ndarray]], *, width: int = 256
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    grid(columns, rows, width=width).save(path, optimize=True)
