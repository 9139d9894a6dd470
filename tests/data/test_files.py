from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from densekd.data.files import read_image, read_labels
from densekd.errors import DataError

from .conftest import SIZE, make_image, make_labels, truncate


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
