from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from densekd.build.data import build_reader
from densekd.config.schema import Data
from densekd.data import Items, Part, TrainLoader, cached, sample_check
from densekd.errors import DataError, UserError
from tests.data.conftest import SIZE, make_image, make_labels

HEIGHT, WIDTH = SIZE
IMAGE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
MASK = np.resize([0, 1, 255], SIZE).astype(np.uint8)


def one(**item):
    return [{"image": IMAGE, **item}]


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "image",
    [
        IMAGE,
        torch.from_numpy(IMAGE).permute(2, 0, 1),
        torch.from_numpy(IMAGE).permute(2, 0, 1) / 255,
        (IMAGE / 255).astype(np.float32),
        Image.fromarray(IMAGE),
        png(IMAGE),
        {"bytes": png(IMAGE), "path": None},
    ],
    ids=["array", "tensor", "float tensor", "float array", "PIL", "bytes", "table"],
)
def test_images(image):
    reader = Items([{"image": image, "mask": MASK}], mask="mask", classes=["a", "b"])
    np.testing.assert_array_equal(reader.read(0).image, IMAGE)


@pytest.mark.parametrize(
    "mask",
    [MASK, MASK.astype(np.int64), torch.from_numpy(MASK)[None].long(), Image.fromarray(MASK),
     Image.fromarray(MASK).convert("P"), png(MASK)],
    ids=["uint8", "int64", "tensor", "L", "P", "bytes"],
)  # fmt: skip
def test_masks(mask):
    reader = Items(one(y={"m": mask}), mask="y.m", classes=["a", "b"])
    assert reader.task == "segmentation"
    sample = reader.read(0)
    np.testing.assert_array_equal(sample.target, MASK)
    assert (sample.target.dtype, sample.name) == (np.uint8, "item 0")


def test_boxes():
    item = {"objects": {"bbox": [[1, 2, 3, 4]], "category": [1], "crowd": [True]}}
    keys = {"boxes": "objects.bbox", "labels": "objects.category", "classes": ["a", "b"]}
    wanted = {"xyxy": [1, 2, 3, 4], "xywh": [1, 2, 4, 6], "cxcywh": [0, 0, 2.5, 4]}
    for form, box in wanted.items():
        target = Items(one(**item), box_format=form, crowd="objects.crowd", **keys).read(0).target
        assert target.boxes.tolist() == [box]
        assert (target.labels.tolist(), target.ignored.tolist()) == ([1], [True])
    assert Items(one(**item), **keys).task == "detection"
    item["objects"]["bbox"] = [[1, 2, 90, 4]]
    with pytest.raises(DataError, match=r"has the box .* in an image of 16x12.*`box_format`"):
        Items(one(**item), **keys).read(0)
    item["objects"].update(bbox=[], category=[])
    assert len(Items(one(**item), **keys).read(0).target) == 0


@pytest.mark.parametrize("count", [2, 253, 254, 255, 256])
@pytest.mark.parametrize("ignored", [None, 0, 1, 254, 255])
def test_masks_of_8_bits_are_read_as_those_of_64(count, ignored):
    """Their table has a number for what is no class, which must be none of the classes nor what is ignored."""
    options = {"mask": "m", "classes": [str(i) for i in range(count)], "ignore_index": ignored}

    def read(value, kind):
        try:
            mask = np.full(SIZE, value, kind)
            return Items(one(m=mask), **options).read(0).target.tolist()
        except DataError as error:
            return str(error)

    for value in (0, 1, 2, 252, 253, 254, 255):
        assert read(value, np.uint8) == read(value, np.int64), value


def test_depth():
    depth = np.full(SIZE, 1500, np.uint16)
    depth[0] = 0
    reader = Items(one(d=depth, k=[9, 9, 8, 6]), depth="d", unit=0.001, intrinsics="k")
    target = reader.read(0).target
    assert target.depth[0, 0] == 0
    assert target.depth[1, 1] == pytest.approx(1.5)
    assert target.intrinsics == (9, 9, 8, 6)
    with pytest.raises(DataError, match="negative"):
        Items(one(d=-np.ones(SIZE)), depth="d").read(0)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"m": MASK[:5]}, r"item 0, 'm' has shape \(5, 16\) and its image is 12 high"),
        ({"m": MASK + 7}, "label values outside the classes: 6"),
        ({"m": MASK / 2}, "has type float64; expected whole numbers"),
        ({"m": None}, "item 0 has no 'm'. Add it, or set `allow_unlabelled`"),
        ({"m": MASK, "image": IMAGE.astype(np.float32)}, "floats from 0 to .* not normalised"),
        ({"m": MASK, "image": IMAGE.astype(np.int64)}, "and type int64; expected"),
        ({"m": MASK, "image": "../x.png"}, "names a file, '../x.png', and there is no `root`"),
        ({"m": MASK, "image": object()}, "is a object and no array"),
        ({"m": MASK, "image": b"%!PS-Adobe-3.0 EPSF"}, "cannot be opened as an image"),
        ({"m": "hello", "image": IMAGE}, "there is no `root`"),
    ],
)
def test_bad_items(item, words):
    with pytest.raises(DataError, match=words):
        Items([{"image": IMAGE, **item}], mask="m", classes=["a", "b"]).read(0)


def test_files_stay_below_the_root(tmp_path):
    make_image(tmp_path / "set/a.png")
    make_image(tmp_path / "b.png")
    for name, fine in (("a.png", True), ("../b.png", False), (str(tmp_path / "b.png"), False)):
        reader = Items([{"image": name, "m": MASK}], mask="m", classes="ab", root=tmp_path / "set")
        if fine:
            assert reader.read(0).image.shape == (*SIZE, 3)
        else:
            with pytest.raises(DataError, match="lies outside"):
                reader.read(0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "0 of them are given; expected one"),
        ({"mask": "mask", "depth": "mask", "classes": "ab"}, "2 of them are given"),
        ({"mask": "mask"}, "`classes` is missing"),
        ({"mask": "label", "classes": "ab"}, "item 0 has no 'label'; it has image, mask"),
        ({"boxes": "mask", "classes": "ab"}, "item 0 has no 'labels'"),
        ({"mask": "mask", "classes": "ab", "channels": 2}, "`channels` is 2"),
        ({"depth": "mask", "unit": 0}, "`unit` is 0"),
        ({"boxes": "mask", "classes": "ab", "box_format": "yx"}, "`box_format` is 'yx'"),
    ],
)
def test_options_that_do_not_fit(options, words):
    with pytest.raises(UserError, match=words):
        Items(one(mask=MASK), **options)


class Roads(Dataset):
    """A torch data set such as people have, without anything of ours."""

    def __init__(self, folder: str, train: bool = True, count: int = 6) -> None:
        self.count = count if train else 2
        self.folder = folder

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        image = torch.from_numpy(IMAGE).permute(2, 0, 1)
        return {"image": image, "label": torch.from_numpy(MASK).long(), "id": f"{index:03d}"}


@pytest.fixture
def module(monkeypatch):
    """The dotted path of `Roads`."""
    monkeypatch.setitem(sys.modules, "my_roads", sys.modules[__name__])
    return "my_roads.Roads"


ITEMS = {"mask": "label", "name": "id", "classes": ["road", "other"]}


def test_a_recipe_names_a_torch_data_set(module, tmp_path):
    data = Data(
        dataset=module, options={"folder": "x", "items": ITEMS}, val_options={"train": False}
    )
    train, val = (build_reader(data, s, training=s == "train") for s in ("train", "val"))
    assert (len(train), len(val), train.name(3)) == (6, 2, "003")
    assert sample_check(train) == []
    batch = next(iter(TrainLoader(train, batch_size=4, workers=0)))
    assert (batch.images.shape, batch.images.dtype) == ((4, 3, *SIZE), torch.uint8)
    for reader in (train, Part(train, [1, 2])):
        with pytest.raises(UserError, match="does not say which files its samples are made of"):
            cached({"train": reader}, folder=tmp_path, budget_gb=1, workers=1)
        kept = cached({"train": reader}, folder=None, budget_gb=1, workers=1)["train"]
        np.testing.assert_array_equal(kept.read(0).image, IMAGE)


def test_a_part_of_it_is_held_out(module):
    data = Data(
        dataset=module, options={"folder": "x", "count": 30, "items": ITEMS}, val_fraction=0.3
    )
    train, val = (build_reader(data, s, training=s == "train") for s in ("train", "val"))
    assert len(train) + len(val) == 30
    assert not {train.name(i) for i in range(len(train))} & {val.name(i) for i in range(len(val))}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"folder": "x"}, r"lacks classes, .*data\.options what they hold: items"),
        ({"folder": "x", "items": 3}, r"data\.options\.items: expected a section"),
        ({"folder": "x", "items": {}}, r"data\.options\.items\.mask, .*0 of them"),
        ({"folder": "x", "items": {"msk": 1}}, r"data\.options\.items\.msk: unknown option"),
        ({"folder": "x", "items": {"mask": "label"}}, r"data\.options\.items\.classes is missing"),
        ({"items": ITEMS}, r"data\.options\.folder: missing"),
        ({"folder": "x", "items": ITEMS, "yeer": 1}, r"data\.options\.yeer: unknown option"),
    ],
)
def test_messages_name_settings(module, options, words):
    data = Data(dataset=module, options=options, val_options={"train": False})
    with pytest.raises(UserError, match=words):
        build_reader(data, "train", training=True)


def test_without_a_split_the_two_would_be_one(module):
    with pytest.raises(UserError, match=r"set data.val_fraction"):
        build_reader(Data(dataset=module, options={"folder": "x"}), "train", training=True)


def test_mapped_files_are_read_as_stored(tmp_path):
    labels = make_labels(tmp_path / "m.png", [0, 1, 255])
    make_image(tmp_path / "i.png")
    (tmp_path / "list.json").write_text(json.dumps([{"image": "i.png", "mask": "m.png"}]))
    items = json.loads((tmp_path / "list.json").read_text())
    target = Items(items, mask="mask", classes=["a", "b"], root=tmp_path).read(0).target
    np.testing.assert_array_equal(target, labels)
