"""Pictures in a table."""

import numpy as np
import pytest
from PIL import Image

from densekd.report.pictures import GAP, HEADER, grid, save_grid

RED, BLUE = (200, 0, 0), (0, 0, 200)


def plain(colour, height=10, width=20):
    return np.full((height, width, 3), colour, np.uint8)


def test_each_picture_stands_in_its_place():
    sheet = grid(
        ["image", "truth"], [[plain(RED), plain(BLUE)], [plain(BLUE), plain(RED)]], width=20
    )
    assert sheet.size == (2 * (20 + GAP) + GAP, HEADER + 2 * (10 + GAP) + GAP)
    pixels = np.array(sheet)
    for row, colours in enumerate(((RED, BLUE), (BLUE, RED))):
        for column, colour in enumerate(colours):
            top, left = HEADER + row * (10 + GAP), GAP + column * (20 + GAP)
            assert (pixels[top : top + 10, left : left + 20] == colour).all()
            # white between them
            assert (pixels[top : top + 10, left + 20 : left + 20 + GAP] == 255).all()
    assert (pixels[:HEADER] < 128).any(), "the header has text"


def test_pictures_are_scaled_and_class_colours_never_blend():
    stripes = plain(RED, 8, 16)
    stripes[:, ::2] = BLUE
    sheet = grid(["image", "labels"], [[plain(RED, 8, 16), stripes]], width=48)
    labels = np.array(sheet)[HEADER : HEADER + 24, GAP + 48 + GAP :][:, :48].reshape(-1, 3)
    assert {tuple(int(v) for v in colour) for colour in labels} == {RED, BLUE}


def test_rows_may_differ_in_height():
    sheet = grid(["a"], [[plain(RED, 10, 20)], [plain(BLUE, 20, 20)]], width=20)
    assert sheet.size[1] == HEADER + 10 + GAP + 20 + GAP + GAP


@pytest.mark.parametrize("rows", [[], [[plain(RED)]], [[plain(RED)] * 2, [plain(RED)] * 3]])
def test_rows_must_fit_the_columns(rows):
    with pytest.raises(ValueError, match="2 pictures"):
        grid(["a", "b"], rows)


def test_save_makes_the_folder(tmp_path):
    path = tmp_path / "images" / "x.png"
    save_grid(path, ["a"], [[plain(RED)]], width=20)
    with Image.open(path) as image:
        assert image.size == (20 + 2 * GAP, HEADER + 10 + 2 * GAP)
