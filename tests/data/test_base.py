from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densekd.data.base import distinct_colours
from densekd.data.files import read_image, read_labels
from densekd.data.paired_files import PairedFiles
from densekd.errors import DataError, UserError

from .conftest import SIZE, make_image, make_labels, truncate


def paired(tmp_path: Path, classes: int = 3, **kwargs) -> PairedFiles:
    pairs = [(tmp_path / "a.png", tmp_path / "a_label.png")]
    names = [f"c{i}" for i in range(classes)]
    return PairedFiles(pairs, classes=names, root=tmp_path, **kwargs)


def test_read_image_gives_rgb(tmp_path):
    pixels = make_image(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels)
    assert read_image(tmp_path / "a.png", 1).shape == (*SIZE, 1)


def test_read_image_of_four_channels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 4), dtype=np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 4), pixels)
    make_image(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b.png has 3 channels .* expected 4"):
        read_image(tmp_path / "b.png", 4)


def test_sixteen_bit_images_are_refused(tmp_path):
    Image.fromarray(np.full(SIZE, 5000, dtype=np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="more than 8 bits"):
        read_image(tmp_path / "a.png", 1)


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_bad_files_are_named(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    with pytest.raises(DataError, match=rf"a\.{ending} does not exist"):
        read_image(path)
    make_image(path, size=(64, 64))
    truncate(path)
    with pytest.raises(DataError, match=rf"a\.{ending} is truncated"):
        read_image(path)
    path.write_bytes(b"not an image")
    with pytest.raises(DataError, match=rf"a\.{ending} cannot be opened"):
        read_image(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=rf"a\.{ending} cannot be opened"):
        read_image(path)


def test_every_truncation_of_a_png_is_a_data_error(tmp_path):
    """Decoders fail in different ways depending on where the bytes end."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(
        file, "png"
    )
    whole = file.getvalue()
    for length in range(0, len(whole) - 20, 3):
        (tmp_path / "a.png").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.png"):
            read_image(tmp_path / "a.png")


def test_labels_keep_palette_indices_and_sixteen_bits(tmp_path):
    labels = make_labels(tmp_path / "p.png", [0, 1, 20, 255], palette=True)
    assert Image.open(tmp_path / "p.png").mode == "P"
    np.testing.assert_array_equal(read_labels(tmp_path / "p.png"), labels)
    labels = make_labels(tmp_path / "16.png", [0, 300, 40000])
    np.testing.assert_array_equal(read_labels(tmp_path / "16.png"), labels)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_labels_of_few_bits_are_not_spread(tmp_path, bits):
    """A grey PNG of 1, 2 or 4 bits, written by hand: Pillow cannot write all of these."""
    rows = np.resize(np.arange(2**bits), (4, 8)).astype(np.uint8)
    packed = np.unpackbits(rows[..., None], axis=-1)[..., -bits:].reshape(4, -1)
    body = b"".join(b"\0" + np.packbits(row).tobytes() for row in packed)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 8, 4, bits, 0, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), rows)


def test_colour_and_jpeg_labels_are_refused(tmp_path):
    make_image(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"RGB image with 3 channels; expected one channel"):
        read_labels(tmp_path / "a.png")
    make_labels(tmp_path / "b.jpg", [0, 1])
    with pytest.raises(DataError, match=r"is a JPEG"):
        read_labels(tmp_path / "b.jpg")


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
    with pytest.raises(UserError, match="channels is 2"):
        paired(tmp_path, channels=2, verify_files=False)
    with pytest.raises(DataError, match="no images found"):
        PairedFiles([], classes=["a"], root=tmp_path)


def test_distinct_colours_are_vocs():
    colours = distinct_colours(256)
    assert colours[:4] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
    assert len(set(colours)) == 256
