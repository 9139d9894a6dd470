"""Pictures one after the other."""

from __future__ import annotations

import pytest
from PIL import Image

from densekd.errors import UserError
from densekd.report.moving import save_moving


def test_frames_of_other_sizes_keep_the_first_ones_size(tmp_path):
    frames = [Image.new("RGB", size) for size in ((32, 20), (20, 32), (64, 64))]
    assert save_moving(tmp_path / "a.gif", iter(frames), rate=10) == 3
    assert Image.open(tmp_path / "a.gif").size == (32, 20)
    with pytest.raises(UserError, match="no picture"):
        save_moving(tmp_path / "b.gif", [], rate=10)
