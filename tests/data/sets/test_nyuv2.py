from __future__ import annotations

import builtins
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from densekd.data import EvalLoader, NYUv2
from densekd.data.sets.nyuv2 import INTRINSICS, MAT
from densekd.errors import DataError, UserError

from ..conftest import make_image

HEIGHT, WIDTH = 6, 8


@pytest.fixture
def root(tmp_path):
    """Five frames in the form of the authors' file: MATLAB's arrays, whose axes HDF5 shows in reverse."""
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / MAT, "w") as file:
        file["images"] = rng.integers(0, 256, (5, 3, WIDTH, HEIGHT), dtype=np.uint8)
        file["depths"] = rng.uniform(1, 5, (5, WIDTH, HEIGHT)).astype(np.float32)
        file["rawDepths"] = np.float32(file["depths"]) * (rng.random((5, WIDTH, HEIGHT)) < 0.5)
    return tmp_path


def test_frames(root):
    import h5py

    reader = NYUv2(root, "all")
    assert (len(reader), reader.task, reader.classes) == (5, "depth", [])
    sample = reader.read(3)
    with h5py.File(root / MAT) as file:
        images, depths = file["images"][3], file["depths"][3]
        raw = file["rawDepths"][3]
    assert sample.image.shape == (HEIGHT, WIDTH, 3)
    assert sample.image[4, 7].tolist() == images[:, 7, 4].tolist()
    assert sample.target.depth[4, 7] == depths[7, 4]
    assert sample.target.intrinsics == INTRINSICS
    assert sample.name == reader.name(3) == "frame 0004"
    np.testing.assert_array_equal(NYUv2(root, "all", raw=True).read(3).target.depth, raw.T)


def test_options_of_folders_are_none_of_the_file(root):
    assert NYUv2(root, "all", allow_unlabelled=True, verify_files=False).channels == 3
    with pytest.raises(UserError, match="`labelled` is no option of nyu_depth_v2_labeled"):
        NYUv2(root, "all", labelled=2)


def test_splits(root):
    io = pytest.importorskip("scipy.io")
    (root / "mine.txt").write_text("5\n1\n")
    names = [NYUv2(root, "mine").name(i) for i in range(2)]
    assert names == ["frame 0005", "frame 0001"]
    with pytest.raises(DataError, match=r"neither splits\.mat nor train\.txt"):
        NYUv2(root)
    io.savemat(
        root / "splits.mat",
        {"trainNdxs": np.array([[2.0], [4.0]]), "testNdxs": np.array([[1.0], [3.0], [5.0]])},
    )
    train, test = NYUv2(root), NYUv2(root, "test")
    assert [train.name(i) for i in range(len(train))] == ["frame 0002", "frame 0004"]
    assert len(test) == 3
    with pytest.raises(DataError, match="Did you mean 'test'"):
        NYUv2(root, "tests")
    (root / "mine.txt").write_text("5\n6\nx\n")
    with pytest.raises(DataError, match=r"frames outside 1-5: 6, x"):
        NYUv2(root, "mine")


def test_workers_read_what_one_process_reads(root):
    reader = NYUv2(root, "all")
    first = reader.read(0)
    batches = list(EvalLoader(reader, workers=2))
    alone = list(EvalLoader(pickle.loads(pickle.dumps(reader))))
    assert len(batches) == 5
    for a, b in zip(batches, alone, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets.depth, b.targets.depth)
    np.testing.assert_array_equal(alone[0].targets.depth[0, 0], first.target.depth)


def test_folders(tmp_path):
    make_image(tmp_path / "train/images/a.png", size=(240, 320))
    (tmp_path / "train/depth").mkdir()
    steps = np.full((240, 320), 2500, np.uint16)
    Image.fromarray(steps).save(tmp_path / "train/depth/a.png")
    reader = NYUv2(tmp_path)
    sample = reader.read(0)
    assert len(reader) == 1
    assert sample.name == reader.name(0) == "train/images/a.png"
    assert sample.target.depth[0, 0] == 2.5
    # Half the size: half the focal length.
    assert sample.target.intrinsics[0] == pytest.approx(INTRINSICS[0] / 2)
    assert reader.paths(0)[0] == tmp_path / "train/images/a.png"
    with pytest.raises(UserError, match="raw"):
        NYUv2(tmp_path, raw=True)
    with pytest.raises(DataError, match=r"has no nyu_depth_v2_labeled\.mat, so folders"):
        NYUv2(tmp_path, "val")


def test_bad_files(root, monkeypatch):
    import h5py

    with h5py.File(root / MAT, "a") as file:
        file["depths"][1] = 0
    assert (
        not NYUv2(root, "all").read(1).target.depth.any()
    )  # unknown everywhere is no fault of the file
    with h5py.File(root / MAT, "a") as file:
        del file["depths"]
    with pytest.raises(DataError, match="lacks 'depths'"):
        NYUv2(root, "all")
    with h5py.File(root / MAT, "a") as file:
        file["depths"] = np.zeros((5, HEIGHT, WIDTH), np.float32)
    with pytest.raises(DataError, match=r"expected \(N, 3, W, H\)"):
        NYUv2(root, "all")
    (root / MAT).write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be opened as HDF5"):
        NYUv2(root, "all")
    plain = builtins.__import__

    def without(name, *rest):
        if name == "h5py":
            raise ImportError(name)
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'densekd\[depth\]'"):
        NYUv2(root, "all")
