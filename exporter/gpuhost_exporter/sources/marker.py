"""The socket on which training scripts mark their checkpoints with gpuhost_marker.

RUN/marker/socket    datagrams: gpuhost/1 checkpoint start 81723912 0 step-500
                                gpuhost/1 checkpoint end 81723912 7.204113 step-500

Anybody may send; who it was the kernel says (SCM_CREDENTIALS), and only what a GPU's job sends is used, for itself.
The folder holds nothing else, so that containers can have it mounted.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import struct
import threading
import time
from collections import Counter, deque
from typing import NamedTuple

from gpuhost_exporter.clock import Clock
from gpuhost_exporter.errors import Malformed

log = logging.getLogger(__name__)

LONGEST = 700  # bytes: a name of 128 characters, four bytes each
MOST_A_SECOND = 200  # datagrams read; the rest waits in the kernel's queue, and when that is full is dropped
MOST_OF_ONE = 20  # of one process
_KEPT = 256
_LONGEST_SECONDS = 86400.0
_FIELDS = 6
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class Mark(NamedTuple):
    """`seconds` is how long the checkpoint took, of one that ends; None of one that starts. `alone`: it starts while
    its process has no other open."""

    at: float
    pid: int
    serial: int
    seconds: float | None
    name: str
    alone: bool = False


def parse(data: bytes, at: float, pid: int) -> Mark:
    """Raises Malformed."""
    words = data.decode("utf-8", "replace").split(" ", _FIELDS - 1)
    try:
        magic, kind, verb, serial, number, name = words
        if (magic, kind) == ("gpuhost/1", "checkpoint") and verb in ("start", "end") and len(serial) <= 20:
            told = float(number)
            if math.isfinite(told) and 0 <= told <= _LONGEST_SECONDS:
                plain = "".join(letter if letter.isprintable() else "?" for letter in name[:128])
                if verb == "end":
                    return Mark(at, pid, int(serial), told, plain)
                return Mark(at, pid, int(serial), None, plain, alone=told == 0)
    except ValueError:
        pass
    raise Malformed(f"expected 'gpuhost/1 checkpoint start|end SERIAL NUMBER NAME', got {data[:60]!r}")


class Marker:
    """Listens in a thread of its own once it is started; `reason` says why it does not.

    `counts`: what was malformed or limited.
    """

    def __init__(self, folder: str, clock: Clock) -> None:
        self.path = os.path.join(folder, "marker", "socket")
        self.counts: Counter[str] = Counter()
        self.reason = ""
        self._clock = clock
        self._marks: deque[Mark] = deque(maxlen=_KEPT)
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Best effort: without it checkpoints are found by what the job does."""
        try:
            self._socket = _bound(self.path)
        except OSError as error:
            self.reason = f"{self.path}: {error.strerror or error}"
            log.warning("%s; training scripts cannot mark their checkpoints", self.reason)
            return
        threading.Thread(target=self._listen, args=(self._socket,), name="marker", daemon=True).start()

    def take(self) -> list[Mark]:
        """Those that have come since the last call, in order."""
        taken = []
        while self._marks:
            taken.append(self._marks.popleft())
        return taken

    def close(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _listen(self, listening: socket.socket) -> None:
        second = time.monotonic()
        read = 0
        of_one: Counter[int] = Counter()
        with listening:
            while True:
                # Room for the credentials alone: descriptors that somebody sends along are closed by the kernel.
                data, ancillary, _, _ = listening.recvmsg(LONGEST, socket.CMSG_SPACE(_CREDENTIALS.size))
                if not ancillary:
                    return  # shut down
                if time.monotonic() - second >= 1.0:
                    second, read = time.monotonic(), 0
                    of_one.clear()
                pid = _CREDENTIALS.unpack(ancillary[0][2])[0]
                of_one[pid] += 1
                self._take(data, pid, limited=of_one[pid] > MOST_OF_ONE)
                read += 1
                if read >= MOST_A_SECOND:
                    time.sleep(max(0.0, second + 1.0 - time.monotonic()))

    def _take(self, data: bytes, pid: int, *, limited: bool) -> None:
        if limited:
            self.counts["limited"] += 1
            return
        try:
            self._marks.append(parse(data, self._clock.now(), pid))
        except Malformed as error:
            self.counts["malformed"] += 1
            log.debug("marker: process %d: %s", pid, error)


def _bound(path: str) -> socket.socket:
    """A socket that anybody may send to. Raises OSError, also when another exporter listens there."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.chmod(os.path.dirname(path), 0o755)  # noqa: S103 - containers' users look into it, whatever the umask
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        try:
            other.connect(path)
        except OSError:
            pass
        else:
            raise OSError(0, "another gpuhost-exporter listens there")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        new = f"{path}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        listening.bind(new)
        os.chmod(new, 0o666)  # noqa: S103 - jobs of any user send
        os.replace(new, path)
    except BaseException:
        listening.close()
        raise
    return listening
