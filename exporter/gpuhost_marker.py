"""Marks checkpoints of a training script for gpuhost-exporter, which finds them without, but not to the millisecond.

    import gpuhost_marker

    with gpuhost_marker.checkpoint("step-500"):
        torch.save(state, path)

Copy this file beside the script: it needs Python 3.8 and nothing else. In a container, mount the host's
/run/gpuhost-exporter/marker there too, or name another socket in the environment variable GPUHOST_MARKER_SOCKET.
Marking takes microseconds and never waits. Where nobody listens, nothing happens.

What is sent, one datagram each:  gpuhost/1 checkpoint start 81723912 0 step-500
                                  gpuhost/1 checkpoint end 81723912 7.204113 step-500

The number after the serial one: at the end the seconds that it took; at the start how many others this process has
open, within which or beside which it is. At 0, one that was not heard to end has ended.
"""

from __future__ import annotations

import os
import socket
import time
from types import TracebackType

SOCKET = "/run/gpuhost-exporter/marker/socket"
VARIABLE = "GPUHOST_MARKER_SOCKET"
LONGEST_NAME = 128  # characters

_open: set[int] = set()  # serials


def checkpoint(name: str = "") -> Checkpoint:
    """Whatever happens within is one checkpoint. Mark what the GPUs stand for; `name` shows in the exporter's log."""
    return Checkpoint(name)


class Checkpoint:
    __slots__ = ("_name", "_serial", "_started")

    def __init__(self, name: str) -> None:
        self._name = name
        self._serial = 0
        self._started = 0.0

    def __enter__(self) -> None:
        self._serial = time.monotonic_ns()
        self._started = time.monotonic()
        _open.add(self._serial)
        self._send("start", len(_open) - 1)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _open.discard(self._serial)
        self._send("end", time.monotonic() - self._started)

    def _send(self, verb: str, number: float) -> None:
        try:
            name = self._name[:LONGEST_NAME] if isinstance(self._name, str) else ""
            text = f"gpuhost/1 checkpoint {verb} {self._serial} {number:.6f} {name}"
            # A socket for each datagram: none is left open in the training, inherited by a fork or closed by others.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                # MSG_DONTWAIT would not do: after socket.setdefaulttimeout() Python tries again for so long.
                sender.setblocking(False)
                sender.sendto(text.encode("utf-8", "replace"), os.environ.get(VARIABLE) or SOCKET)
        except Exception:  # noqa: BLE001
            return  # nobody listens, not fast enough, or no such sockets here: the training goes on
