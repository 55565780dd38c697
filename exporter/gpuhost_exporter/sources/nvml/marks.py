"""Shared memory in which the reader notes the call that it is about to make.

When a call hangs or the library crashes, the parent reads here which GPU and which call it was.
Layout: uuid or "index:N" (64 bytes), function (64 bytes), both padded with NUL.
"""

from __future__ import annotations

import mmap
import struct
import threading

_LAYOUT = struct.Struct("64s64s")


class MarkWriter:
    """Called before each call into the library. Only the thread that made it writes: a waiting event thread
    would otherwise blur what the reading thread is doing."""

    def __init__(self, marks: mmap.mmap) -> None:
        self._marks = marks
        self._thread = threading.get_ident()
        self._known: dict[tuple[str, str], bytes] = {}

    def __call__(self, uuid: str, function: str) -> None:
        if threading.get_ident() != self._thread:
            return
        packed = self._known.get((uuid, function))
        if packed is None:
            packed = self._known[uuid, function] = _LAYOUT.pack(uuid.encode(), function.encode())
        self._marks[: _LAYOUT.size] = packed


def read_mark(marks: mmap.mmap) -> tuple[str, str]:
    """The GPU ("" for none) and the function that the reader called last."""
    uuid, function = _LAYOUT.unpack(marks[: _LAYOUT.size])
    return uuid.rstrip(b"\0").decode("utf-8", "replace"), function.rstrip(b"\0").decode("utf-8", "replace")


def clear_mark(marks: mmap.mmap) -> None:
    marks[: _LAYOUT.size] = bytes(_LAYOUT.size)
