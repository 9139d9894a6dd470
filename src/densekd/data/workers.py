"""What every process that decodes sets up, and how streams over such processes end."""

from __future__ import annotations

import atexit
import signal
import sys
import weakref
from collections.abc import Generator
from typing import Any

import cv2
import torch

# Workers ignore SIGTERM (see start_worker), so multiprocessing, which sends it when the interpreter ends,
# would wait for them for ever: streams still open are closed before, which tells the workers to go.
_open_streams: weakref.WeakSet[Generator] = weakref.WeakSet()


@atexit.register
def _close_streams() -> None:
    for stream in list(_open_streams):
        stream.close()


def closed_at_exit(stream: Generator) -> Generator:
    """The same generator, closed before the interpreter waits for its worker processes."""
    _open_streams.add(stream)
    return stream


def start_worker(_: int) -> None:
    """What each decoding process sets up before its first sample."""
    # One thread a process: threads that fight for cores multiply the time of everything.
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    # Ctrl-C, and a SIGTERM to the whole group, reach workers too; the main process decides what happens
    # then (it may want one more batch and a checkpoint) and ends them itself.
    # When the main process is killed, threads that share memory with it lose their connection: no news to anyone.
    sys.excepthook = _say_unless_disconnected
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _say_unless_disconnected(kind: type[BaseException], *rest: Any) -> None:
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, *rest)
