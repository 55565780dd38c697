"""The runtime folder: where the daemon leaves its process id, and `release --for` its wish.

RUN/pid        "4711\n"
RUN/release    "600.0\n", seconds; read and removed on SIGUSR1
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal

from gpuhost_exporter.errors import ConfigError, SourceError
from gpuhost_exporter.sources.files import read_text

log = logging.getLogger(__name__)


class Runtime:
    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._pid = os.path.join(folder, "pid")
        self._release = os.path.join(folder, "release")

    def write_pid(self) -> None:
        """Best effort: without it only `release` and `resume` by command do not find the daemon."""
        try:
            os.makedirs(self._folder, mode=0o755, exist_ok=True)
            self._write(self._pid, f"{os.getpid()}\n")
        except OSError as error:
            log.warning("%s: %s; release and resume work by signal only", self._folder, error.strerror)

    def remove_pid(self) -> None:
        with contextlib.suppress(OSError, SourceError):
            if read_text(self._pid) == str(os.getpid()):
                os.unlink(self._pid)

    def take_release(self) -> float | None:
        """The seconds asked for by `release --for`, once."""
        try:
            text = read_text(self._release)
            os.unlink(self._release)
            return float(text)
        except (OSError, SourceError, ValueError):
            return None

    def signal_release(self, seconds: float) -> int:
        pid = self._daemon()
        self._write(self._release, f"{seconds}\n")
        os.kill(pid, signal.SIGUSR1)
        return pid

    def signal_resume(self) -> int:
        pid = self._daemon()
        os.kill(pid, signal.SIGUSR2)
        return pid

    def _daemon(self) -> int:
        """The running daemon's pid. Raises ConfigError when there is none to be found."""
        try:
            pid = int(read_text(self._pid))
            os.kill(pid, 0)
        except (SourceError, ValueError, ProcessLookupError) as error:
            raise ConfigError(f"{self._pid}: no running gpuhost-exporter found here") from error
        except PermissionError as error:
            raise ConfigError(f"{self._pid}: process {pid} belongs to another user") from error
        return pid

    def _write(self, path: str, text: str) -> None:
        with open(f"{path}.new", "w", encoding="ascii") as file:
            file.write(text)
        os.replace(f"{path}.new", path)
