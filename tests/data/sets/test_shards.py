"""Data in tar files: the same samples in the same order as from folders, and nothing let in."""

from __future__ import annotations

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from densekd.cli.main import main
from densekd.config.load import make_config
from densekd.data import Folder, SceneSet, Shards, TrainLoader, Unlabelled, cached
from densekd.errors import DataError, UserError
from densekd.targets import BoxTarget, DepthTarget
from densekd.workflows.shard import shard

HEIGHT, WIDTH = 32, 48
SCENES = {"height": HEIGHT, "width": WIDTH, "length": 7}
TASKS = {"labels": "segmentation", "boxes": "detection", "depth": "depth"}


def write(folder, target="labels", **data):
    config = make_config(
        {
            "task": TASKS[target],
            "model": {"name": "espnet_c"},
            "data": {"dataset": "scenes", "options": {**SCENES, "target": target}, **data},
        },
        "test",
    )
    assert shard(config, folder, splits=["train", "val"], images=3) == {"train": 7, "val": 7}
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write(tmp_path_factory.mktemp("sets") / "shards")


@pytest.mark.parametrize("target", list(TASKS))
@pytest.mark.parametrize("indexed", [True, False])
def test_samples_are_those_that_were_written(tmp_path, target, indexed):
    folder, scenes = write(tmp_path / "set", target), SceneSet("val", target=target, **SCENES)
    options = {}
    if not indexed:
        known = json.loads((folder / "index.json").read_text())["densekd"]
        (folder / "index.json").unlink()
        names = (
            "mask",
            "boxes",
            "labels",
            "crowd",
            "depth",
            "intrinsics",
            "classes",
            "ignore_index",
        )
        options = {name: known[name] for name in names if known.get(name)}
    reader = Shards(folder, "val", **options)
    assert (len(reader), reader.task, reader.classes) == (7, scenes.task, scenes.classes)
    assert reader.ignore_index == scenes.ignore_index
    if indexed:
        assert reader.palette == scenes.palette
        assert getattr(reader, "category_ids", []) == (
            scenes.category_ids if target == "boxes" else []
        )
    names = [reader.name(i) for i in range(7)]
    assert len(set(names)) == 7
    assert names[3].startswith("val-000001.tar/3_")
    for i in range(7):
        ours, theirs = reader.read(i), scenes.read(i)
        assert ours.name == names[i]
        assert np.array_equal(ours.image, theirs.image)
        if target == "labels":
            assert np.array_equal(ours.target, theirs.target)
        elif target == "depth":
            assert isinstance(ours.target, DepthTarget)
            assert np.array_equal(ours.target.depth, theirs.target.depth)
            assert ours.target.intrinsics == pytest.approx(theirs.target.intrinsics)
        else:
            assert isinstance(ours.target, BoxTarget)
            for field in ("boxes", "labels", "ignored", "areas", "image_id"):
                assert np.array_equal(getattr(ours.target, field), getattr(theirs.target, field)), (
                    field
                )


def test_order_and_resume_are_those_of_any_set(root):
    """A stream that begins later gives what the first one gave there, with workers and without."""
    shards, scenes = Shards(root), SceneSet("train", **SCENES)

    def batches(reader, start, count, workers=0):
        loader = TrainLoader(reader, batch_size=3, seed=5, start_step=start, workers=workers)
        return [batch for batch, _ in zip(loader, range(count), strict=False)]

    whole = batches(shards, 0, 6)
    for one, other in zip(whole, batches(scenes, 0, 6), strict=True):
        assert one.images.equal(other.images)
        assert one.targets.equal(other.targets)
    for workers in (0, 2):
        for one, other in zip(whole[3:], batches(shards, 3, 3, workers), strict=True):
            assert one.names == other.names
            assert one.images.equal(other.images)
    assert [b.names for b in whole] != [b.names for b in batches(shards, 1, 6)]


def test_webdataset_reads_the_same(root):
    webdataset = pytest.importorskip("webdataset")
    pattern = str(root / "train-{000000..000002}.tar")
    found = list(webdataset.WebDataset(pattern, shardshuffle=False).decode("rgb8"))
    reader = Shards(root)
    assert [row["__key__"] for row in found] == [reader.name(i).split("/", 1)[1] for i in range(7)]
    for i, row in enumerate(found):
        sample = reader.read(i)
        assert np.array_equal(row["png"], sample.image)
        assert np.array_equal(row["seg.png"][..., 0], sample.target)


def test_what_webdataset_writes_is_read(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    scenes = SceneSet("train", **SCENES)
    with webdataset.TarWriter(str(tmp_path / "train-0.tar")) as writer:
        for i in range(3):
            sample = scenes.read(i)
            writer.write({"__key__": f"drive/{i}", "png": sample.image, "seg.png": sample.target})
    reader = Shards(tmp_path, mask="seg.png", classes=scenes.classes)
    assert reader.name(2) == "train-0.tar/drive/2"
    assert np.array_equal(reader.read(2).target, scenes.read(2).target)


def test_shards_without_labels_are_a_second_set(root):
    second = Shards(root, "val", allow_unlabelled=True, labelled=0)
    assert second.read(0).target is None
    loader = TrainLoader(Shards(root), batch_size=2, unlabelled=Unlabelled(second, 1))
    batch = next(iter(loader))
    assert batch.labelled.tolist() == [True, True, False]


def tar_of(path, members, end=True):
    """A tar of (name or TarInfo, bytes)."""
    with tarfile.open(path, "w") as tar:
        for member, content in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    if not end:
        content = path.read_bytes()
        with tarfile.open(path) as tar:
            last = tar.getmembers()[-1]
        path.write_bytes(content[: last.offset_data + -(-last.size // 512) * 512])
    return path


@pytest.fixture(scope="module")
def files(root):
    reader = Shards(root)
    return {s: reader.members.read(0, s) for s in ("png", "seg.png")}


def info(name, kind, target=""):
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, target
    return found


def test_images_alone(tmp_path, files):
    tar_of(tmp_path / "web.tar", [("a.png", files["png"]), ("b.png", files["png"])])
    with pytest.raises(UserError, match=r"`mask`, `boxes` and `depth` are missing.*`labelled` 0"):
        Shards(tmp_path, shards="web.tar")
    reader = Shards(tmp_path, shards="web.tar", allow_unlabelled=True, labelled=0)
    assert (len(reader), reader.classes, reader.read(1).target) == (2, [], None)


def test_few_labels(root):
    assert len(Shards(root, labelled=2)) == 2
    some = Shards(root, labelled=2, allow_unlabelled=True)
    assert [some.read(i).target is not None for i in range(7)] == [True, True] + [False] * 5
    with pytest.raises(UserError, match=r"`labelled` is 8; expected 1 to 7"):
        Shards(root, labelled=8)


HOSTILE = {
    "a link": ([(info("a.png", tarfile.SYMTYPE, "/etc/passwd"), b"")], "which is a link"),
    "a hard link": ([(info("a.png", tarfile.LNKTYPE, "b.png"), b"")], "which is a link"),
    "a device": ([(info("a.png", tarfile.CHRTYPE), b"")], "which is a device"),
    "outside": ([("../a.png", b"x")], "a name that leads outside"),
    "absolute": ([("/a.png", b"x")], "a name that leads outside"),
    "twice": ([("a.png", b"x"), ("a.png", b"y")], "twice"),
    "apart": ([("a.png", b"x"), ("b.png", b"x"), ("a.seg.png", b"y")], "do not stand together"),
    "no label": ([("a.png", b"x")], r"1 of 1 samples have no seg.png.*allow_unlabelled"),
    "no image": (
        [("a.seg.png", b"x")],
        r"1 of 1 samples have no jpg;jpeg;png;webp.*Say in `image`",
    ),
    "nothing": ([("README", b"x")], "no sample in 1 shards"),
    "no image at all": (
        [("a.png", b"x"), ("a.seg.png", b"x")],
        r"train-0.tar/a\), 'image' cannot be opened",
    ),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_and_damaged_tars(tmp_path, name):
    members, message = HOSTILE[name]
    tar_of(tmp_path / "train-0.tar", members)
    with pytest.raises(DataError, match=message):
        Shards(tmp_path, mask="seg.png", classes=["a"]).read(0)


def test_cut_off_and_compressed(tmp_path, root, files):
    options = {"mask": "seg.png", "classes": ["a"] * 9}
    whole = (root / "train-000000.tar").read_bytes()
    path = tmp_path / "train-0.tar"
    path.write_bytes(whole[:1000])
    with pytest.raises(DataError, match="cut off"):
        Shards(tmp_path, **options)
    tar_of(path, [("a.png", files["png"]), ("a.seg.png", files["seg.png"])], end=False)
    with pytest.raises(DataError, match="the mark at a tar's end is missing"):
        Shards(tmp_path, **options)
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    with pytest.raises(DataError, match="Compressed tars cannot be read at random"):
        Shards(tmp_path, **options)


def test_a_member_beyond_the_limit_is_not_read(tmp_path, root, monkeypatch):
    monkeypatch.setenv("DENSEKD_MAX_PIXELS", "1")
    tar_of(tmp_path / "train-0.tar", [("a.png", bytes(2**20 + 100))])
    with pytest.raises(DataError, match=r"a\.png has 1,048,676 bytes; expected at most"):
        Shards(tmp_path, allow_unlabelled=True, labelled=0).read(0)
    with pytest.raises(DataError, match="DENSEKD_MAX_PIXELS"):
        Shards(root).read(0)


def test_an_array_that_promises_more_than_it_has(tmp_path, files):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)}
    )
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    for content in (header.getvalue(), pickled.getvalue(), b"", b"\x93NUMPY"):
        tar_of(tmp_path / "train-0.tar", [("a.png", files["png"]), ("a.depth.npy", content)])
        with pytest.raises(DataError, match="is no array of numbers"):
            Shards(tmp_path, depth="depth.npy").read(0)


def forged(root, tmp_path, change):
    """A copy of the set whose index is changed by a function of its content."""
    folder = tmp_path / "forged"
    folder.mkdir(exist_ok=True)
    for path in root.glob("*.tar"):
        (folder / path.name).write_bytes(path.read_bytes())
    content = json.loads((root / "index.json").read_text())
    changed = change(content)
    (folder / "index.json").write_text(json.dumps(content if changed is None else changed))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["shardlist"][0].update(filesize=1), "was changed since the index was written"),
        (lambda c: c["shardlist"][0]["samples"][0][1].update(png=[0, 10**9]), "beyond the end"),
        (lambda c: c["shardlist"][0]["samples"][0][1].update(png=[-5, 2]), "beyond the end"),
        (lambda c: c["shardlist"][0].update(samples=[1]), "is no index of shards"),
        (lambda c: c.update(shardlist=3), "is no index of shards"),
        (lambda c: [], "is no index of shards"),
        (lambda c: c["densekd"].update(mask=4), "expected suffixes, classes and colours"),
        (lambda c: c["densekd"].update(classes="abc"), "expected suffixes, classes and colours"),
        (lambda c: c.update(densekd=[]), "expected suffixes, classes and colours"),
    ],
)
def test_a_forged_index_is_refused(root, tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        Shards(forged(root, tmp_path, change))


def test_an_index_names_no_file_elsewhere(root, tmp_path):
    """Shards are found by their pattern in the folder, and never by what the index says."""

    def change(content):
        content["shardlist"].append({**content["shardlist"][0], "url": "../../train-9.tar"})

    assert len(Shards(forged(root, tmp_path, change))) == 7


@pytest.mark.parametrize("what", ["train-000001.tar", "index.json"])
def test_chance_changes_are_read_or_refused(root, tmp_path, what):
    rng = np.random.default_rng(0)
    folder = forged(root, tmp_path, lambda content: None)
    options = {}
    if what != "index.json":  # then the headers of the tars are read
        (folder / "index.json").unlink()
        options = {"mask": "seg.png", "classes": ["a"] * 9}
    whole = (root / what).read_bytes()
    outcomes = []
    for _ in range(100):
        content = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 3000), 3):
            content[place] = rng.integers(256)
        cut = rng.integers(1, len(whole)) if rng.random() < 0.3 else len(whole)
        (folder / what).write_bytes(content[:cut])
        try:
            reader = Shards(folder, **options)
            for i in range(len(reader)):
                reader.read(i)
            outcomes.append("read")
        except UserError:
            outcomes.append("refused")
    assert outcomes.count("refused") > 30


@pytest.mark.parametrize(
    "place", ["s3://bucket/set", "https://x.org/a", "pipe:curl x", "gs:/bucket"]
)
def test_addresses_are_refused(place, root):
    with pytest.raises(UserError, match=r"`root` is .* an address"):
        Shards(place)
    with pytest.raises(UserError, match=r"`shards` is .* an address"):
        Shards(root, shards=place)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("tarin-*.tar", r"holds no tarin-\*.tar; there is train-000000.tar"),
        ("train-{000000..000009}.tar", "7 of 10 shards do not exist"),
        ("train-{0..9999999999}.tar", "names 10,000,000,000 files"),
        ("train-{9..1}.tar", "names 0 files"),
        ("../*.tar", "expected a pattern of files below `root`"),
        ("../train-{0..1}.tar", "lies outside"),
    ],
)
def test_patterns_that_name_nothing(root, pattern, message):
    with pytest.raises(UserError, match=message):
        Shards(root, shards=pattern)


def test_a_range_is_a_part(root):
    assert len(Shards(root, shards="train-{000001..000002}.tar")) == 4


def test_a_reader_travels_to_other_processes_and_sees_a_shard_cut_off(root, tmp_path):
    folder = forged(root, tmp_path, lambda content: None)
    reader = Shards(folder)
    reader.read(0)
    other = pickle.loads(pickle.dumps(reader))
    assert np.array_equal(other.read(6).image, reader.read(6).image)
    path = folder / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match="ends before it does"):
        [other.read(i) for i in range(3)]


def test_samples_are_cached_until_their_tar_changes(root, tmp_path):
    folder = forged(root, tmp_path, lambda content: None)
    kept = [
        cached({"train": Shards(folder)}, folder=tmp_path / "cache", budget_gb=1)["train"]
        for _ in "ab"
    ]
    for i in range(7):
        assert np.array_equal(kept[1].read(i).target, Shards(root).read(i).target)


def test_a_tar_may_be_a_link(root, tmp_path):
    for path in root.iterdir():
        (tmp_path / path.name).symlink_to(path)
    assert np.array_equal(Shards(tmp_path).read(4).image, Shards(root).read(4).image)


def test_the_command_and_a_file_that_cannot_be_read(tmp_path, capsys):
    """A folder of JPEGs, whose bytes are taken as they are; one is damaged."""
    for kind in ("images", "masks"):
        (tmp_path / "set/all" / kind).mkdir(parents=True)
    scenes = SceneSet("train", **SCENES)
    for i in range(4):
        Image.fromarray(scenes.read(i).image).save(tmp_path / f"set/all/images/a.b {i}.jpg")
        Image.fromarray(scenes.read(i).target).save(tmp_path / f"set/all/masks/a.b {i}.png")
    (tmp_path / "set/all/images/a.b 2.jpg").write_bytes(b"no image")
    (tmp_path / "set/classes.txt").write_text("\n".join(f"c{i}" for i in range(scenes.num_classes)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{name: espnet_c}}\ndata: {{dataset: folder, root: {tmp_path}/set}}\n"
    )
    words = ["data", "shard", str(recipe), "--out", str(tmp_path / "out"), "--split", "all"]
    assert main(words) == 2
    assert "a.b 2.jpg cannot be opened as an image" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*words, "--data.on_bad_file", "skip", "--shard-images", "2"]) == 0
    assert "3 all samples in" in capsys.readouterr().out
    reader, source = Shards(tmp_path / "out", "all"), Folder(tmp_path / "set", "all")
    assert [reader.name(i) for i in range(3)] == [
        "all-000000.tar/0_a-b-0", "all-000000.tar/1_a-b-1", "all-000001.tar/3_a-b-3",
    ]  # fmt: skip
    assert reader.members.read(2, "jpg") == source.paths(3)[0].read_bytes()
    assert np.array_equal(reader.read(2).target, source.read(3).target)
    assert main([*words, "--shard-images", "0"]) == 2
    # The parts of a split are made where it is read, so it is written whole.
    words[words.index("--out") + 1] = str(tmp_path / "whole")
    parts = ["--data.val_fraction", "0.5", "--data.train_split", "all"]
    assert main([*words, *parts, "--data.on_bad_file", "skip"]) == 0
    assert "3 all samples in" in capsys.readouterr().out


def test_writing(tmp_path, root):
    again = write(tmp_path / "again")
    for path in root.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name
    index = json.loads((root / "index.json").read_text())
    assert index["counts"] == {"train": 7, "val": 7}
    assert [entry["nsamples"] for entry in index["shardlist"]] == [3, 3, 1] * 2
    with pytest.raises(UserError, match="exists and is not empty"):
        write(again)
    with pytest.raises(UserError, match=r"data\.val_fraction"):
        write(tmp_path / "parts", val_fraction=0.5)
    in_the_way = tmp_path / "more.partial"
    in_the_way.write_text("a file of a user")
    with pytest.raises(UserError, match=r"more\.partial is in the way"):
        write(tmp_path / "more")
    assert in_the_way.read_text() == "a file of a user"
