"""Frames of videos."""

from __future__ import annotations

import pytest
from PIL import Image

from densekd.data import video
from densekd.errors import DataError
from densekd.report.moving import save_moving


def test_frames_come_in_order_and_in_rgb(tmp_path):
    save_moving(tmp_path / "a.mp4", [Image.new("RGB", (64, 48), (250, 0, 0))] * 2, rate=8)
    frames = list(video.frames(tmp_path / "a.mp4"))
    assert [f.shape for f in frames] == [(48, 64, 3)] * 2
    assert frames[0][..., 0].mean() > 200 > 60 > frames[0][..., 2].mean()
    assert video.frame_rate(tmp_path / "a.mp4") == pytest.approx(8)
    assert video.frame_count(tmp_path / "a.mp4") == 2
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match="cannot be opened as a video"):
        next(video.frames(tmp_path / "bad.mp4"))
