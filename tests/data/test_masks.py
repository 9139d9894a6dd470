from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from densekd.data import Folder, check_all
from densekd.data.masks import read_labelmap
from densekd.errors import DataError, UserError

from .conftest import SIZE, make_image

COLOURS = {"road": [128, 64, 128], "car": [0, 0, 142], "sky": [70, 130, 180]}
LABELMAP = """# label:color_rgb:parts:actions
background:0,0,0::
road:128,64,128::
car:0,0,142::
"""


def save(path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(pixels, np.uint8))
    (picture.quantize(dither=0) if mode == "P" else picture.convert(mode)).save(path)


def painted(indices, colours=COLOURS):
    return np.array(list(colours.values()), np.uint8)[indices]


@pytest.fixture
def folder(tmp_path):
    """Two images with colour masks; returns the root and the indices of the first mask."""
    indices = np.resize([0, 1, 2], SIZE)
    for i in range(2):
        make_image(tmp_path / f"images/{i}.jpg", i)
        save(tmp_path / f"masks/{i}.png", painted(indices))
    return tmp_path, indices


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_are_classes(folder, mode):
    root, indices = folder
    save(root / "masks/0.png", painted(indices), mode)
    reader = Folder(root, "all", colours=COLOURS)
    assert reader.classes == ["road", "car", "sky"]
    assert reader.palette == [(128, 64, 128), (0, 0, 142), (70, 130, 180)]
    target = reader.read(0).target
    assert target.dtype == np.uint8
    np.testing.assert_array_equal(target, indices)
    some = Folder(root, "all", colours=COLOURS, classes=["sky", "road"])
    assert some.palette == [(70, 130, 180), (128, 64, 128)]
    np.testing.assert_array_equal(some.read(0).target, np.array([1, 255, 0], np.uint8)[indices])


def test_unknown_colours_are_named(folder):
    root, indices = folder
    pixels = painted(indices)
    pixels[0, :3], pixels[5, 5] = (9, 8, 7), (1, 2, 3)
    save(root / "masks/0.png", pixels)
    words = r"masks/0\.png has 2 colours .*: \(9, 8, 7\) at 3 pixels, \(1, 2, 3\) at 1 pixels\. Add them"
    with pytest.raises(DataError, match=words):
        Folder(root, "all", colours=COLOURS).read(0)
    target = Folder(root, "all", colours=COLOURS, unknown="ignore").read(0).target
    assert (target == 255).sum() == 4
    report = check_all(Folder(root, "all", colours=COLOURS))
    assert [name for name, _ in report.bad] == ["images/0.jpg"]


def test_smoothed_masks_are_said(folder):
    root, _ = folder
    halves = np.zeros((40, 60), int)
    halves[10:, 20:] = 1
    large = Image.fromarray(painted(halves)).resize((16, 12), Image.Resampling.BILINEAR)
    large.save(root / "masks/0.png")
    with pytest.raises(DataError, match="the mask looks anti-aliased"):
        Folder(root, "all", colours=COLOURS).read(0)
    black = Image.fromarray(halves.astype(np.uint8) * 255).resize(
        (16, 12), Image.Resampling.BILINEAR
    )
    black.save(root / "masks/0.png")
    reader = Folder(root, "all", binary=True)
    with pytest.raises(DataError, match=r"numbers between black and white: \d+ at .* anti-aliased"):
        reader.read(0)
    ignoring = Folder(root, "all", binary=True, unknown="ignore").read(0).target
    assert set(np.unique(ignoring)) == {0, 1, 255}


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1"])
def test_black_and_white(folder, mode):
    root, _ = folder
    wanted = np.resize([0, 1, 1, 0, 1], SIZE)
    save(root / "masks/0.png", wanted * 255, mode)
    reader = Folder(root, "all", binary=True)
    assert reader.classes == ["background", "foreground"]
    np.testing.assert_array_equal(reader.read(0).target, wanted)
    save(root / "masks/0.png", wanted)  # already 0 and 1
    np.testing.assert_array_equal(reader.read(0).target, wanted)
    grey = np.where(np.arange(wanted.size).reshape(SIZE) < 5, 128, wanted * 255)
    save(root / "masks/0.png", grey)
    three = Folder(root, "all", binary=True, ignore_index=128, classes=["none", "lesion"])
    assert (three.read(0).target == 255).sum() == 5
    with pytest.raises(DataError, match="has colours; expected black and white"):
        reader.read(1)
    Image.fromarray(np.resize([0, 65535], SIZE).astype(np.uint16)).save(root / "masks/0.png")
    np.testing.assert_array_equal(reader.read(0).target, np.resize([0, 1], SIZE))


def test_lossy_and_deep_masks_are_refused(folder):
    root, indices = folder
    (root / "masks/0.png").unlink()
    save(root / "masks/0.jpg", painted(indices))
    for reader in (Folder(root, "all", colours=COLOURS), Folder(root, "all", binary=True)):
        with pytest.raises(DataError, match="is a JPEG"):
            reader.read(0)


def test_an_export_of_cvat(tmp_path):
    indices = np.resize([0, 1, 2], SIZE)
    colours = {"background": [0, 0, 0], "road": [128, 64, 128], "car": [0, 0, 142]}
    make_image(tmp_path / "JPEGImages/a.jpg")
    save(tmp_path / "SegmentationClass/a.png", painted(indices, colours), "P")
    (tmp_path / "labelmap.txt").write_text(LABELMAP)
    reader = Folder(
        tmp_path, "all", images="JPEGImages", masks="SegmentationClass", colours="labelmap.txt"
    )
    assert reader.classes == list(colours)
    np.testing.assert_array_equal(reader.read(0).target, indices)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("road:1,2", "line 1 is 'road:1,2'"),
        ("road", "line 1 is 'road'"),
        ("road:1,2,3::\nroad:1,2,4::", "line 2"),
        ("road:1,2,300::", "each of 0 to 255"),
        ("road:1,2,3::\ncar:1,2,3::", "gives 'road' and 'car' the same colour"),
        ("# nothing", "is empty"),
    ],
)
def test_bad_labelmaps(tmp_path, text, words):
    (tmp_path / "labelmap.txt").write_text(text)
    with pytest.raises(DataError, match=words):
        read_labelmap(tmp_path / "labelmap.txt")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"colours": {"a": [1, 2]}}, r"`colours` has a: \[1, 2\]; expected \[red, green, blue\]"),
        ({"colours": {"a": [1, 2, True]}}, "`colours` has a"),
        ({"colours": COLOURS, "binary": True}, "`colours` and `binary` exclude each other"),
        ({"colours": COLOURS, "ignore_index": 0}, "`colours` and `ignore_index` exclude"),
        ({"colours": COLOURS, "classes": ["rod"]}, "no class 'rod' .* Did you mean 'road'"),
        ({"binary": True, "classes": ["a"]}, "`classes` has 1 names; with `binary` there are two"),
        ({"binary": True, "unknown": "skip"}, "`unknown` is 'skip'"),
        ({"binary": True, "masks": "images"}, "say how the names of masks end with `mask_ending`"),
    ],
)
def test_options_that_do_not_fit(folder, options, words):
    with pytest.raises(UserError, match=words):
        Folder(folder[0], "all", **options)
