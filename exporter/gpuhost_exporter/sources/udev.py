"""Devices that come, go or change, as the kernel announces them. No privilege needed.

    $ udevadm monitor --kernel --subsystem-match=nvme
    KERNEL[4711.042] remove   /devices/pci0000:40/0000:40:01.1/0000:41:00.0/nvme/nvme0 (nvme)

The kernel's own announcements are taken, not udevd's: they come without udevd and reach rootful containers too.
They only make a poll come earlier; who misses one sees the change at the next poll.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuhost_exporter.errors import Absent, SourceError, Transient
from gpuhost_exporter.sources.files import source_error

if TYPE_CHECKING:
    import pyudev

log = logging.getLogger(__name__)

SUBSYSTEMS = ("nvme", "block", "pci", "infiniband")


@dataclass(frozen=True, slots=True)
class Event:
    action: str  # add, remove, change, bind, unbind, move, online, offline
    subsystem: str
    device: str


def listen() -> Iterator[Event]:
    """Events of SUBSYSTEMS from now on, without end.

    Raises Absent without pyudev or libudev, SourceError when the kernel grants no netlink socket.
    """
    try:
        import pyudev  # loads libudev, which slim images lack
    except ImportError as error:
        raise Absent(f"device events need pyudev and libudev (libudev1): {error}") from error
    try:
        monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
        for subsystem in SUBSYSTEMS:
            monitor.filter_by(subsystem)
        monitor.start()
    except OSError as error:
        raise source_error("device events", error) from error
    return _events(monitor)


class UdevWatcher:
    """Hands each event's action, subsystem and device to `deliver` from a daemon thread, until the stream ends."""

    def __init__(
        self, deliver: Callable[[str, str, str], None], events: Callable[[], Iterable[Event]] = listen
    ) -> None:
        self._deliver = deliver
        self._events = events
        self._thread = threading.Thread(target=self._run, name="udev", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            for event in self._events():
                self._deliver(event.action, event.subsystem, event.device)
        except SourceError as error:
            log.warning("devices that come or go are seen at the next poll only: %s (%s)", error, error.kind)


def _events(monitor: pyudev.Monitor) -> Iterator[Event]:
    while True:
        try:
            device = monitor.poll()
        except OSError as error:
            if error.errno == errno.ENOBUFS:  # more came at once than the socket holds; the rest is worth having
                continue
            raise Transient(f"device events: {error.strerror}") from error
        if device is not None:
            yield Event(device.action, device.subsystem, device.sys_name)
