from __future__ import annotations

import numpy as np
import pytest

from densekd.data.sets._matfile import read_mat_arrays
from densekd.errors import DataError

io = pytest.importorskip("scipy.io")


@pytest.mark.parametrize("compress", [True, False])
def test_reads_what_scipy_writes(tmp_path, compress):
    arrays = {
        "trainNdxs": np.arange(1, 796, dtype=np.float64)[:, None],
        "small": np.array([[7]], dtype=np.uint8),
        "table": np.arange(12, dtype=np.int16).reshape(3, 4),
        "single": np.float32([[1.5, -2]]),
        "none": np.empty((0, 0)),
    }
    path = tmp_path / "x.mat"
    text = {"word": "passed over", "cell": np.array([[1, "a"]], dtype=object)}
    io.savemat(path, {**arrays, **text}, do_compression=compress)
    read = read_mat_arrays(path)
    assert set(read) == set(arrays)
    for name, values in arrays.items():
        np.testing.assert_array_equal(read[name], values)


def test_bad_files(tmp_path):
    path = tmp_path / "x.mat"
    with pytest.raises(DataError, match="does not exist"):
        read_mat_arrays(path)
    path.write_bytes(b"\x89HDF" * 60)
    with pytest.raises(DataError, match="no MATLAB file of level 5"):
        read_mat_arrays(path)
    for compress in (True, False):
        io.savemat(path, {"a": np.arange(900.0)}, do_compression=compress)
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(DataError, match="is damaged"):
            read_mat_arrays(path)
