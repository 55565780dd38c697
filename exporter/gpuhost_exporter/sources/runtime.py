"""The runtime folder: where the daemon leaves its process id, and `release --for` its wish.

RUN/pid        "4711\n", locked (flock) for as long as that process runs
RUN/release    "600.0\n", seconds; read and removed on SIGUSR1
"""

from __future__ import annotations

import contextlib
import fcntl
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
        self._descriptor: int | None = None

    @classmethod
    def of_daemon(cls, *folders: str) -> Runtime:
        """The first folder in which a daemon runs, or may, for all that this user can see. Raises ConfigError."""
        for folder in folders:
            if _held(f"{folder}/pid"):
                return cls(folder)
        places = ", ".join(f"{folder}/pid" for folder in folders)
        raise ConfigError(f"{places}: no running gpuhost-exporter found here")

    def write_pid(self) -> None:
        """Best effort: without it only `release` and `resume` by command do not find the daemon."""
        try:
            os.makedirs(self._folder, mode=0o755, exist_ok=True)
            descriptor = os.open(self._pid, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            log.warning("%s: %s; release and resume work by signal only", self._folder, error.strerror)
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.truncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        except OSError as error:
            os.close(descriptor)
            reason = "another gpuhost-exporter runs" if isinstance(error, BlockingIOError) else error.strerror
            log.warning("%s: %s; release and resume reach this one by signal only", self._pid, reason)
            return
        self._descriptor = descriptor

    def remove_pid(self) -> None:
        """The file stays, empty and unlocked: another process may have it open to take its turn."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.truncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def take_release(self) -> float | None:
        """The seconds asked for by `release --for`, once."""
        try:
            text = read_text(self._release)
            os.unlink(self._release)
            return float(text)
        except (OSError, SourceError, ValueError):
            return None

    def signal_release(self, seconds: float) -> int:
        """Ask the daemon to let go of NVML; its pid. Raises ConfigError."""
        pid = self._daemon()
        try:
            self._write(self._release, f"{seconds}\n")
        except OSError as error:
            raise ConfigError(f"{self._release}: {error.strerror}") from error
        return self._signal(pid, signal.SIGUSR1)

    def signal_resume(self) -> int:
        """Ask the daemon to take NVML up again; its pid. Raises ConfigError."""
        return self._signal(self._daemon(), signal.SIGUSR2)

    def _daemon(self) -> int:
        """The running daemon's pid. A number alone may be any process by now, and SIGUSR1 would end that one."""
        try:
            with open(self._pid, "rb") as file:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    raise ConfigError(f"{self._pid}: no running gpuhost-exporter found here")
                return int(file.read(20))
        except FileNotFoundError as error:
            raise ConfigError(f"{self._pid}: no running gpuhost-exporter found here") from error
        except OSError as error:
            raise ConfigError(f"{self._pid}: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"{self._pid}: expected the daemon's process id") from error

    def _signal(self, pid: int, number: signal.Signals) -> int:
        try:
            os.kill(pid, number)
        except ProcessLookupError as error:
            raise ConfigError(f"{self._pid}: process {pid} has ended") from error
        except PermissionError as error:
            raise ConfigError(f"{self._pid}: process {pid} belongs to another user") from error
        return pid

    def _write(self, path: str, text: str) -> None:
        with open(f"{path}.new", "w", encoding="ascii") as file:
            os.fchmod(file.fileno(), 0o644)  # the daemon is another user than root, whatever root's umask
            file.write(text)
        os.replace(f"{path}.new", path)


def _held(path: str) -> bool:
    """Whether some process keeps it locked; also where that cannot be told, for lack of a permission."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
