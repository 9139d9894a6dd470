from __future__ import annotations

import builtins

import numpy as np
import pytest
from PIL import Image

from densekd.data import HFDataset, cached, held_out, sample_check
from densekd.errors import DataError, UserError

from ..conftest import SIZE, make_image

datasets = pytest.importorskip("datasets")
pytest.importorskip("pyarrow.parquet")
MASK = np.resize([0, 1, 255], SIZE).astype(np.uint8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def table(count=4):
    images = [
        np.random.default_rng(i).integers(0, 256, (*SIZE, 3), dtype=np.uint8) for i in range(count)
    ]
    return datasets.Dataset.from_dict(
        {
            "image": [Image.fromarray(image) for image in images],
            "label": [Image.fromarray(np.roll(MASK, i)) for i in range(count)],
            "depth": [Image.fromarray(np.full(SIZE, 1500 + i, np.uint16)) for i in range(count)],
            "objects": [{"bbox": [[1, 2, 3, 4]], "category": [1]}] * count,
        },
        features=datasets.Features(
            {
                "image": datasets.Image(),
                "label": datasets.Image(),
                "depth": datasets.Image(),
                "objects": {
                    "bbox": datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
                    "category": datasets.Sequence(datasets.ClassLabel(names=["car", "person"])),
                },
            }
        ),
    )


@pytest.fixture(params=["disk", "parts", "parquet"])
def root(tmp_path, request):
    folder = tmp_path / "set"
    if request.param == "disk":
        table().save_to_disk(folder)
    elif request.param == "parts":
        datasets.DatasetDict({"train": table(), "val": table(2)}).save_to_disk(folder)
    else:
        (folder / "data").mkdir(parents=True)
        table().to_parquet(folder / "data/train-00000-of-00001.parquet")
    return folder


def test_all_three_tasks(root, tmp_path):
    masks = HFDataset(root, mask="label", classes=["a", "b"])
    assert len(masks) == 4
    expected = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    np.testing.assert_array_equal(masks.read(1).image, expected)
    np.testing.assert_array_equal(masks.read(1).target, np.roll(MASK, 1))
    assert sample_check(masks) == []
    assert all(path.suffix == ".arrow" for path in masks.sources(0))

    boxes = HFDataset(root, boxes="objects.bbox", labels="objects.category", box_format="xywh")
    assert (boxes.task, boxes.classes) == ("detection", ["car", "person"])
    target = boxes.read(0).target
    assert (target.boxes.tolist(), target.labels.tolist()) == ([[1, 2, 4, 6]], [1])

    depth = HFDataset(root, depth="depth", unit=0.001)
    assert depth.read(2).target.depth[3, 3] == np.float32(1502) * np.float32(0.001)

    kept = cached({"train": masks}, folder=tmp_path / "kept", budget_gb=1, workers=1)["train"]
    np.testing.assert_array_equal(kept.read(1).target, masks.read(1).target)
    train, val = held_out(masks, 0.5)
    assert sorted(train + val) == [0, 1, 2, 3]


def test_what_is_not_there(root):
    with pytest.raises(UserError, match="item 0 has no 'lable'; it has image, label"):
        HFDataset(root, mask="lable", classes=["a", "b"])
    with pytest.raises(UserError, match="`classes` is missing"):
        HFDataset(root, mask="label")
    if not (root / "dataset_info.json").is_file():
        with pytest.raises(DataError, match=r"no split 'trian'.*Did you mean 'train'"):
            HFDataset(root, "trian", mask="label", classes=["a", "b"])
    (root / "classes.txt").write_text("road\ncar\n")
    assert HFDataset(root, mask="label").classes == ["road", "car"]


def test_tables_that_name_files_elsewhere(tmp_path):
    """A table keeps images that were not embedded by their path alone."""
    pyarrow = pytest.importorskip("pyarrow")
    make_image(tmp_path / "secret.png")
    make_image(tmp_path / "set/a.png")
    labels = np.zeros(SIZE, np.uint8).tolist()
    paths = ["a.png", "../secret.png", str(tmp_path / "secret.png")]
    rows = [{"image": {"bytes": None, "path": path}, "label": labels} for path in paths]
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "set/train.parquet")
    reader = HFDataset(tmp_path / "set", mask="label", classes=["a", "b"])
    assert reader.read(0).image.shape == (*SIZE, 3)
    for index in (1, 2):
        with pytest.raises(DataError, match="which lies outside"):
            reader.read(index)


def test_damaged_folders(tmp_path):
    with pytest.raises(DataError, match=r"no split 'train'.*none at all"):
        HFDataset(tmp_path, mask="label", classes=["a"])
    (tmp_path / "train.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match="cannot be read as a data set"):
        HFDataset(tmp_path, mask="label", classes=["a"])
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be read as a data set"):
        HFDataset(tmp_path, mask="label", classes=["a"])


def test_the_extra_is_named(tmp_path, monkeypatch):
    plain = builtins.__import__

    def without(name, *args, **more):
        if name == "datasets":
            raise ImportError(name)
        return plain(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'densekd\[hf-datasets\]'"):
        HFDataset(tmp_path, mask="label", classes=["a"])
