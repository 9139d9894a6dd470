"""The one door to image files: what is let in, and what is refused before it is decoded."""

from __future__ import annotations

import os
import socket
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from densekd.data import CamVid, Cityscapes, Coco, Folder, ImageFolder, VOCBoxes, check_all
from densekd.data.files import inside, read_image, read_labels
from densekd.data.image_files import PIXELS
from densekd.data.sets._depth_files import read_depth
from densekd.data.sets._matfile import MOST_BYTES, read_mat_arrays
from densekd.errors import DataError, UserError

from .conftest import SIZE, make_image, make_labels

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture
def no_children(monkeypatch):
    """No process may be started."""

    def refused(*args, **more):
        raise AssertionError(f"a program was started: {args}")

    monkeypatch.setattr("subprocess.Popen", refused)
    monkeypatch.setattr(os, "system", refused)


@pytest.mark.parametrize("read", [read_image, read_labels, lambda path: read_depth(path, 1.0)])
def test_an_eps_file_starts_no_program(tmp_path, no_children, read):
    (tmp_path / "a.png").write_bytes(EPS)
    with Image.open(tmp_path / "a.png") as file:
        assert file.format == "EPS"  # Pillow itself would have run Ghostscript
    with pytest.raises(DataError, match=r"a\.png cannot be opened as an image: it is none of BMP,"):
        read(tmp_path / "a.png")


def header_only(width: int, height: int) -> bytes:
    """A PNG of some dozen bytes that states its size and has a pixel or two."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9))


@pytest.mark.parametrize("side", [13_000, 20_000])
@pytest.mark.parametrize("read", [read_image, read_labels, lambda path: read_depth(path, 1.0)])
def test_large_images_are_refused_before_they_are_decoded(
    tmp_path, monkeypatch, recwarn, side, read
):
    (tmp_path / "a.png").write_bytes(header_only(side, side))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(DataError, match=rf"a\.png is .*{side * side // 1000 % 1000:03d}.*{PIXELS}"):
        read(tmp_path / "a.png")
    assert not recwarn.list


def test_the_limit_can_be_moved(tmp_path, monkeypatch):
    make_image(tmp_path / "a.png")
    monkeypatch.setenv(PIXELS, str(SIZE[0] * SIZE[1] - 1))
    with pytest.raises(
        DataError, match=r"a\.png is 16x12, which are 192 pixels; expected at most 191"
    ):
        read_image(tmp_path / "a.png")
    monkeypatch.setenv(PIXELS, "192")
    assert read_image(tmp_path / "a.png").shape == (*SIZE, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # a limit of ours above Pillow's holds
    assert read_image(tmp_path / "a.png").shape == (*SIZE, 3)
    monkeypatch.setenv(PIXELS, "many")
    with pytest.raises(UserError, match=f"{PIXELS} is 'many'"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("read", [read_image, read_labels, read_mat_arrays])
def test_special_files_are_not_opened(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.png"))
        for name, kind in (("pipe", "a pipe"), ("link", "a device"), ("s", "a socket")):
            with pytest.raises(DataError, match=f"is {kind}; expected"):
                read(tmp_path / f"{name}.png")
    with pytest.raises(DataError, match="is a folder"):
        read(tmp_path)


def test_a_pipe_among_images_is_one_bad_file(tmp_path):
    for i in range(2):
        make_image(tmp_path / f"images/{i}.png")
        make_labels(tmp_path / f"masks/{i}.png", [0, 1])
    (tmp_path / "images/1.png").unlink()
    os.mkfifo(tmp_path / "images/1.png")
    report = check_all(Folder(tmp_path, "all", classes=["a", "b"], verify_files=False))
    assert [name for name, _ in report.bad] == ["images/1.png"]
    assert "is a pipe" in report.bad[0][1]


@pytest.mark.parametrize("mode", ["RGB;16", "RGBA;16"])
def test_sixteen_bit_colour_is_refused(tmp_path, mode):
    """Pillow drops the lower eight bits without a word."""
    cv2 = pytest.importorskip("cv2")
    channels = len(mode.split(";")[0])
    pixels = np.full((*SIZE, channels), 5000, np.uint16)
    for ending in ("png", "tif", "ppm")[: 3 if channels == 3 else 2]:
        cv2.imwrite(str(tmp_path / f"a.{ending}"), pixels)
        with pytest.raises(DataError, match=rf"a\.{ending} .*(more than 8 bits|cannot be opened)"):
            read_image(tmp_path / f"a.{ending}")


# --- EXIF ------------------------------------------------------------------------------------------------------------


def photo(path, orientation: int, format: str = "JPEG") -> np.ndarray:
    """A picture that is to be shown as four flat quarters, stored as the orientation says. Returns what is shown."""
    shown = np.zeros((32, 64, 3), np.uint8)
    shown[:16, :32], shown[:16, 32:] = (250, 0, 0), (0, 250, 0)
    shown[16:, :32], shown[16:, 32:] = (0, 0, 250), (250, 250, 0)
    # From EXIF 2.3: which corner of the picture the first stored row and column are.
    stored = {
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.transpose(1, 0, 2),
        6: np.rot90(shown),
        7: shown[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(shown, -1),
    }[orientation]
    picture = Image.fromarray(np.ascontiguousarray(stored))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, format, exif=exif, **({"quality": 95} if format == "JPEG" else {}))
    return shown


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_images_stand_as_they_are_shown(tmp_path, orientation, format):
    shown = photo(tmp_path / "a.img", orientation, format)
    for channels in (1, 3):
        image = read_image(tmp_path / "a.img", channels)
        assert image.shape == (32, 64, channels)
    for row in (4, 27):
        for column in (4, 59):
            assert np.abs(image[row, column].astype(int) - shown[row, column]).max() < 40
    stored = read_image(tmp_path / "a.img", exif=False)
    assert stored.shape[:2] == ((64, 32) if orientation >= 5 else (32, 64))


def test_labels_are_of_the_picture_as_it_is_shown(tmp_path):
    """A phone's photo, as the phone writes it, and its mask, as a labelling tool that shows it upright writes it."""
    photo(tmp_path / "images/a.jpg", 6)
    make_labels(tmp_path / "masks/a.png", np.zeros((32, 64), np.uint8))
    reader = Folder(tmp_path, "all", classes=["a", "b"])
    assert reader.read(0).image.shape == (32, 64, 3)
    make_labels(tmp_path / "masks/a.png", np.zeros((64, 32), np.uint8))
    with pytest.raises(
        DataError, match=r"orientation was applied, and this file is .* set `exif` to"
    ):
        reader.read(0)
    assert Folder(tmp_path, "all", classes=["a", "b"], exif=False).read(0).image.shape == (
        64,
        32,
        3,
    )


def test_a_damaged_exif_block_hides_no_picture(tmp_path):
    photo(tmp_path / "a.jpg", 6)
    data = bytearray((tmp_path / "a.jpg").read_bytes())
    at = data.index(b"Exif\0\0") + 6
    data[at : at + 12] = b"\xff" * 12
    (tmp_path / "a.jpg").write_bytes(data)
    assert read_image(tmp_path / "a.jpg").shape == (64, 32, 3)


# --- names in lists --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../secret.png", "a/../../secret.png", "/etc/passwd", "x\0y"])
@pytest.mark.parametrize("root", ["", "."])
def test_names_stay_below_the_root(tmp_path, monkeypatch, name, root):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"list.txt names"):
        inside(tmp_path / root if not root else tmp_path.__class__(root), name, "list.txt")
    assert inside(tmp_path, "a/../b.png", "list.txt") == tmp_path / "b.png"
    if "\0" not in name:
        assert inside(tmp_path, name, "list.txt", True).name == os.path.basename(name)


def test_a_link_and_two_dots_lead_nowhere_else(tmp_path):
    (tmp_path / "far/inner").mkdir(parents=True)
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path / "far/inner")
    assert inside(tmp_path / "root", "link/../x.png", "l") == tmp_path / "root/x.png"
    assert inside(tmp_path / "root", "link/x.png", "l") == tmp_path / "root/link/x.png"


def test_lists_of_data_sets_do_not_leave_the_root(tmp_path, camvid):
    root = camvid(2)
    make_image(tmp_path.parent / "secret.png")
    (root / "train.txt").write_text("../secret.png ../secret.png\n")
    with pytest.raises(DataError, match=r"train\.txt names '\.\./secret\.png', which lies outside"):
        CamVid(root)
    assert len(CamVid(root, allow_outside=True)) == 1
    (root / "x.lst").write_text(f"{tmp_path.parent}/secret.png\n")
    with pytest.raises(DataError, match=r"outside of .* set `allow_outside`"):
        Cityscapes(root, list_file="x.lst", allow_unlabelled=True)
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / "voc" / folder).mkdir(parents=True)
    (root / "voc/ImageSets/Main/train.txt").write_text("../../../secret\n")
    with pytest.raises(DataError, match=r"names '../../../secret'.*Correct the name\.$"):
        VOCBoxes(root / "voc")


@pytest.mark.parametrize("name", ["/etc/hostname", "../x.jpg", "a/../../x.jpg"])
def test_coco_files_do_not_leave_their_folder(tmp_path, name):
    import json

    (tmp_path / "annotations").mkdir()
    content = {
        "images": [{"id": 1, "file_name": name, "height": 3, "width": 3}],
        "annotations": [],
        "categories": [{"id": 1, "name": "a"}],
    }
    (tmp_path / "annotations/instances_train.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="lies outside of"):
        Coco(tmp_path)
    with pytest.raises(DataError, match="lies outside of"):
        Coco(tmp_path, verify_files=False)


def test_hdf5_files_do_not_lead_to_others(tmp_path):
    h5py = pytest.importorskip("h5py")
    from densekd.data import NYUv2
    from densekd.data.sets.nyuv2 import MAT

    (tmp_path / "secret").write_bytes(bytes(1 * 3 * 4 * 5))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["depths"] = np.ones((1, 4, 5), np.float32)
        file["images"] = np.ones((1, 3, 4, 5), np.uint8)

    def write(images):
        (tmp_path / MAT).unlink(missing_ok=True)
        with h5py.File(tmp_path / MAT, "w") as file:
            file["depths"] = np.ones((1, 4, 5), np.float32)
            images(file)

    layout = h5py.VirtualLayout((1, 3, 4, 5), "u1")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "images", (1, 3, 4, 5), "u1")
    outside = [(str(tmp_path / "secret"), 0, 60)]
    for images in (
        lambda f: f.create_dataset("images", (1, 3, 4, 5), "u1", external=outside),
        lambda f: f.__setitem__("images", h5py.ExternalLink(str(tmp_path / "other.h5"), "images")),
        lambda f: f.create_virtual_dataset("images", layout),
    ):
        write(images)
        with pytest.raises(DataError, match="keeps 'images' in another file"):
            NYUv2(tmp_path, "all")
        assert len(NYUv2(tmp_path, "all", allow_outside=True)) == 1


def test_a_mat_file_is_not_inflated_without_end(tmp_path):
    bomb = zlib.compress(b"\0" * (MOST_BYTES + 1000))
    body = struct.pack("<II", 15, len(bomb)) + bomb
    (tmp_path / "x.mat").write_bytes(b"MATLAB 5.0".ljust(124) + b"\0\1IM" + body)
    with pytest.raises(DataError, match="inflates to more than 64,000,000 bytes"):
        read_mat_arrays(tmp_path / "x.mat")


def test_folders_of_images_take_the_same_door(tmp_path, no_children):
    (tmp_path / "a.png").write_bytes(EPS)
    with pytest.raises(DataError, match="none of BMP"):
        ImageFolder(tmp_path).read(0)
