from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from densekd.data import Folder
from densekd.errors import DataError, UserError

from ..conftest import SIZE, make_image, make_labels

LAYOUTS = ("train/images", "train/masks"), ("images/train", "masks/train"), ("images", "masks")


def build(root, images, masks, n=3):
    for i in range(n):
        make_image(root / images / f"p{i}.jpg", i)
        make_labels(root / masks / f"p{i}.png", [0, 1, 2, 255])
    (root / "classes.txt").write_text("ground\nopen water\ntree\n")
    return root


@pytest.mark.parametrize(("images", "masks"), LAYOUTS)
def test_layouts(tmp_path, images, masks):
    build(tmp_path, images, masks)
    (tmp_path / "train.txt").write_text("p0\np2.jpg\n")
    reader = Folder(tmp_path)
    assert reader.classes == ["ground", "open water", "tree"]
    assert len(reader) == (2 if images == "images" else 3)
    np.testing.assert_array_equal(reader.read(0).target, np.resize([0, 1, 2, 255], SIZE))


def test_options(tmp_path):
    build(tmp_path, "images", "masks")
    reader = Folder(tmp_path, "all", classes=["a", "b", "c"], palette=[(1, 2, 3)] * 3, channels=1)
    assert (len(reader), reader.read(0).image.shape) == (3, (*SIZE, 1))
    ignoring = Folder(tmp_path, "all", classes=["a", "b", *["x"] * 200], ignore_index=0)
    with pytest.raises(DataError, match="outside the classes: 255"):
        ignoring.read(0)
    make_labels(tmp_path / "masks/p0.png", [0, 1])
    np.testing.assert_array_equal(ignoring.read(0).target, np.resize([255, 1], SIZE))


def test_more_than_255_classes(tmp_path):
    make_image(tmp_path / "images/a.png")
    labels = make_labels(tmp_path / "masks/a.png", [0, 255, 299])
    reader = Folder(tmp_path, "all", classes=[f"c{i}" for i in range(300)])
    np.testing.assert_array_equal(reader.read(0).target, labels)


def test_bad_input(tmp_path):
    with pytest.raises(DataError, match=r"classes\.txt does not exist"):
        Folder(tmp_path)
    with pytest.raises(DataError, match=r"neither train/images/ nor images/"):
        Folder(tmp_path, classes=["a"])
    build(tmp_path, "train/images", "train/masks")
    with pytest.raises(DataError, match="Did you mean 'train'"):
        Folder(tmp_path, "trian")
    (tmp_path / "train/masks/p1.png").unlink()
    with pytest.raises(DataError, match=r"1 of 3 images have no label: .*p1\.jpg .*masks/p1\.png"):
        Folder(tmp_path)
    assert Folder(tmp_path, allow_unlabelled=True).read(1).target is None
    make_image(tmp_path / "train/images/p1.png")
    with pytest.raises(DataError, match="share their stem"):
        Folder(tmp_path)
    for file in (tmp_path / "train/images").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="holds no images"):
        Folder(tmp_path)
    with pytest.raises(UserError, match="`palette` has 1 colours for 3"):
        Folder(tmp_path, palette=[(0, 0, 0)])


def test_list_names_what_is_not_there(tmp_path):
    build(tmp_path, "images", "masks")
    (tmp_path / "val.txt").write_text("p0\nq1\n")
    with pytest.raises(DataError, match=r"1 names of .*val\.txt have no image: q1"):
        Folder(tmp_path, "val")


def test_truncated_mask_is_named(tmp_path):
    build(tmp_path, "images", "masks")
    path = tmp_path / "masks/p1.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 2, (64, 64), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"masks/p1\.png is truncated"):
        Folder(tmp_path, "all").read(1)


def test_endings_and_one_folder_for_both(tmp_path):
    for i in range(3):
        make_image(tmp_path / f"data/p{i}.jpg", i)
        make_labels(tmp_path / f"data/p{i}_mask.png", [0, i, 255])
    reader = Folder(
        tmp_path,
        "all",
        classes=["a", "b", "c"],
        images="data",
        masks="data",
        mask_ending="_mask.png",
    )
    assert [reader.name(i) for i in range(3)] == ["data/p0.jpg", "data/p1.jpg", "data/p2.jpg"]
    np.testing.assert_array_equal(reader.read(2).target, np.resize([0, 2, 255], SIZE))
    (tmp_path / "data/p1_mask.png").unlink()
    with pytest.raises(DataError, match=r"1 of 3 images have no label: .*expected .*p1_mask\.png"):
        Folder(tmp_path, "all", classes=["a"], images="data", masks="data", mask_ending="_mask.png")


def test_folders_of_drives(tmp_path):
    for drive in ("a", "b"):
        make_image(tmp_path / f"images/{drive}/0.jpg")  # the same name in each
        make_labels(tmp_path / f"masks/{drive}/0.png", [0, 1] if drive == "a" else [1, 0])
    make_image(tmp_path / "images/.hidden/0.jpg")
    reader = Folder(tmp_path, "all", classes=["x", "y"])
    assert [reader.name(i) for i in range(len(reader))] == ["images/a/0.jpg", "images/b/0.jpg"]
    np.testing.assert_array_equal(reader.read(1).target, np.resize([1, 0], SIZE))
    (tmp_path / "train.txt").write_text("b/0.jpg\n")
    assert Folder(tmp_path, classes=["x", "y"]).name(0) == "images/b/0.jpg"
    # Where the folder has images of its own, those in folders inside it are left alone, as ever.
    make_image(tmp_path / "images/1.jpg")
    make_labels(tmp_path / "masks/1.png", [0])
    assert len(Folder(tmp_path, "all", classes=["x", "y"])) == 1


def test_unknown_numbers_may_be_ignored(tmp_path):
    build(tmp_path, "images", "masks")
    make_labels(tmp_path / "masks/p0.png", [0, 1, 77, 255])
    with pytest.raises(DataError, match="outside the classes: 77"):
        Folder(tmp_path, "all").read(0)
    target = Folder(tmp_path, "all", unknown="ignore").read(0).target
    np.testing.assert_array_equal(target, np.resize([0, 1, 255, 255], SIZE))
