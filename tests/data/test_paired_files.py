from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from densekd.data.paired_files import PairedFiles
from densekd.errors import DataError, UserError

from .conftest import make_image, make_labels


def paired(tmp_path: Path, classes: int = 3, **kwargs) -> PairedFiles:
    pairs = [(tmp_path / "a.png", tmp_path / "a_label.png")]
    names = [f"c{i}" for i in range(classes)]
    return PairedFiles(pairs, classes=names, root=tmp_path, **kwargs)


def test_sizes_that_differ_are_both_said(tmp_path):
    make_image(tmp_path / "a.png", size=(10, 20))
    make_labels(tmp_path / "a_label.png", [0])
    with pytest.raises(DataError, match=r"a_label.png is 16x12 .*a.png is 20x10"):
        paired(tmp_path).read(0)


@pytest.mark.parametrize("value", [3, 254, 700])
def test_values_outside_the_classes_are_said(tmp_path, value):
    make_image(tmp_path / "a.png")
    make_labels(tmp_path / "a_label.png", [0, 1, value, 255])
    with pytest.raises(DataError, match=rf"a_label.png .*: {value} \(48 pixels\).*0-2, 255 \(3 cl"):
        paired(tmp_path, ignored=[255]).read(0)


@pytest.mark.parametrize(
    ("classes", "value", "dtype", "ignore_index"),
    [(254, 253, np.uint8, 255), (255, 254, np.int16, 255), (1000, 999, np.int16, -1)],
)
def test_many_classes(tmp_path, classes, value, dtype, ignore_index):
    make_image(tmp_path / "a.png")
    labels = make_labels(tmp_path / "a_label.png", [0, 7, value])
    reader = paired(tmp_path, classes)
    assert reader.ignore_index == ignore_index
    target = reader.read(0).target
    assert target.dtype == dtype
    np.testing.assert_array_equal(target, labels)
    make_labels(tmp_path / "a_label.png", [0, classes])
    with pytest.raises(DataError, match=f"{classes} .96 pixels"):
        reader.read(0)


def test_missing_files_are_counted_before_training(tmp_path):
    pairs = [(tmp_path / f"{i}.png", tmp_path / f"{i}_label.png") for i in range(9)]
    for image, _ in pairs[:2]:
        make_image(image)
    with pytest.raises(DataError, match=r"7 of 9 images do not exist: .*2\.png.*, and 2 more"):
        PairedFiles(pairs, classes=["a"], root=tmp_path)
    with pytest.raises(DataError, match=r"2 of 2 images have no label: .*expected .*0_label\.png"):
        PairedFiles(pairs[:2], classes=["a"], root=tmp_path)
    reader = PairedFiles(pairs[:2], classes=["a"], root=tmp_path, allow_unlabelled=True)
    assert reader.read(1).target is None
    assert reader.paths(1) == (tmp_path / "1.png", None)
    late = PairedFiles(pairs, classes=["a"], root=tmp_path, verify_files=False)
    with pytest.raises(DataError, match=r"8\.png does not exist"):
        late.read(8)


def test_wrong_channels_and_no_pairs(tmp_path):
    with pytest.raises(UserError, match="`channels` is 2"):
        paired(tmp_path, channels=2, verify_files=False)
    with pytest.raises(DataError, match="no images found"):
        PairedFiles([], classes=["a"], root=tmp_path)


def shuffled(tmp_path: Path) -> list[tuple[Path, Path | None]]:
    """c, a, d and b, of which a has no label."""
    for name in "abcd":
        make_image(tmp_path / f"{name}.png")
        make_labels(tmp_path / f"{name}_label.png", [0])
    return [
        (tmp_path / f"{name}.png", None if name == "a" else tmp_path / f"{name}_label.png")
        for name in "cadb"
    ]


def test_labels_of_the_first_images_alone(tmp_path):
    pairs = shuffled(tmp_path)
    mixed = PairedFiles(pairs, classes=["x"], root=tmp_path, allow_unlabelled=True, labelled=2)
    assert [mixed.name(i) for i in range(len(mixed))] == ["c.png", "a.png", "d.png", "b.png"]
    assert [mixed.read(i).target is not None for i in range(4)] == [True, False, False, True]
    few = PairedFiles([pairs[i] for i in (0, 2, 3)], classes=["x"], root=tmp_path, labelled=2)
    assert [few.name(i) for i in range(len(few))] == ["c.png", "b.png"]
    assert few.read(1).target is not None


@pytest.mark.parametrize(("labelled", "others"), [(0, False), (-1, False), (-1, True), (4, True)])
def test_more_labels_than_there_are(tmp_path, labelled, others):
    pairs = [pair for pair in shuffled(tmp_path) if others or pair[1] is not None]
    with pytest.raises(
        UserError,
        match=rf"`labelled` is {labelled}; expected {int(not others)} to 3, the number of",
    ):
        PairedFiles(pairs, classes=["x"], root=tmp_path, allow_unlabelled=others, labelled=labelled)


def test_labels_of_no_image_at_all(tmp_path):
    images = PairedFiles(
        shuffled(tmp_path), classes=["x"], root=tmp_path, allow_unlabelled=True, labelled=0
    )
    assert [images.read(i).target for i in range(len(images))] == [None] * 4


def test_an_unknown_option_is_named(tmp_path):
    with pytest.raises(TypeError, match="chanels"):
        paired(tmp_path, chanels=3)
