"""Frames of video files and cameras, through OpenCV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from densekd.errors import DataError

SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}
DEFAULT_RATE = 25.0  # frames a second, where a file or camera does not say


def is_video(path: str | Path) -> bool:
    return Path(path).suffix.lower() in SUFFIXES


def is_camera(word: str) -> bool:
    """``0``, ``1``, ... or ``/dev/video0``, unless a file has that name."""
    return (word.isdigit() and not Path(word).exists()) or word.startswith("/dev/video")


def frame_count(word: str | Path) -> int | None:
    """How many frames a video file says that it has; None for a camera, or where it does not say."""
    if is_camera(str(word)):
        return None
    video = opened(word)
    count = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    video.release()
    return count if count > 0 else None


def frame_rate(word: str | Path) -> float:
    """Frames a second of a video file; a camera's are written as `DEFAULT_RATE`."""
    if is_camera(str(word)):
        return DEFAULT_RATE
    video = opened(word)
    rate = float(video.get(cv2.CAP_PROP_FPS))
    video.release()
    return rate if 0 < rate < 1000 else DEFAULT_RATE


def frames(word: str | Path, channels: int = 3) -> Iterator[np.ndarray]:
    """Each frame in turn, (H, W, channels) uint8, RGB order; a camera's go on until the caller stops.

    Raises:
        DataError: it cannot be opened, or holds no frame.
    """
    if channels not in (1, 3):
        raise DataError(
            f"{word}: a video has colour or grey frames, and the network takes {channels} channels"
        )
    video, count = opened(word), 0
    try:
        while True:
            there, frame = video.read()
            if not there:
                break
            count += 1
            colours = cv2.COLOR_BGR2GRAY if channels == 1 else cv2.COLOR_BGR2RGB
            pixels = cv2.cvtColor(frame, colours)
            yield pixels.reshape(*pixels.shape[:2], channels)
    finally:
        video.release()
    if count == 0:
        raise DataError(f"{word}: no frame of it can be read; is it damaged?")


def opened(word: str | Path) -> cv2.VideoCapture:
    name = str(word)
    source = int(name.removeprefix("/dev/video")) if is_camera(name) else name
    video = cv2.VideoCapture(source)
    if not video.isOpened():
        what = "camera" if is_camera(name) else "video"
        raise DataError(f"{word}: cannot be opened as a {what}")
    return video
