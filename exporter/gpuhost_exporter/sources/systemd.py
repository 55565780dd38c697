"""What the service manager is told: ready, alive, stopping. sd_notify(3) and sd_watchdog_enabled(3).

NOTIFY_SOCKET=/run/systemd/notify WATCHDOG_USEC=60000000 WATCHDOG_PID=4711
-> "READY=1\nSTATUS=listening on :19400"   "WATCHDOG=1"   "STOPPING=1"
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger(__name__)


class ServiceManager:
    """Where none started us, telling it something does nothing."""

    def __init__(self, environment: Mapping[str, str], pid: int) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        self._alive_every: float | None = None
        microseconds = environment.get("WATCHDOG_USEC", "")
        if microseconds.isdigit() and environment.get("WATCHDOG_PID", str(pid)) == str(pid):
            self._alive_every = int(microseconds) / 1e6 / 2

    def pause(self, longest: float) -> float:
        """Seconds until the watchdog wants to hear of us again, at most `longest`."""
        return longest if self._alive_every is None else min(longest, self._alive_every)

    def ready(self, status: str) -> None:
        self._tell(f"READY=1\nSTATUS={status}")

    def alive(self) -> None:
        if self._alive_every is not None:
            self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def _tell(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto(text.encode(), self._address)
        except OSError as error:
            log.debug("%s: %s", self._address, os.strerror(error.errno or 0))
