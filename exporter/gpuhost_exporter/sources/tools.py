"""Measuring programs of others: found on PATH, run within a time, and gone afterwards whatever happens.

Each runs in a session of its own, which ends with it. Output goes to files without a name.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO

from gpuhost_exporter.errors import Hung, Malformed, SourceError
from gpuhost_exporter.sources.files import source_error

_LOOK_SECONDS = 0.2
_ASKED_SECONDS = 2.0
_END_SECONDS = 5.0
_MOST_BYTES = 4 << 20  # of output: the longest real one has some hundred kilobytes


@dataclass(frozen=True, slots=True)
class Answer:
    """`status` as the shell tells it: 0 is success, below 0 a signal."""

    status: int
    output: str
    errors: str

    def complaint(self) -> str:
        """The last line that it said on the standard error, else on the standard output."""
        said = (line.strip() for text in (self.output, self.errors) for line in text.splitlines())
        lines = [line for line in said if any(map(str.isalnum, line))]
        return lines[-1][:200] if lines else "no word"


def find(program: str) -> str | None:
    """Where PATH has it."""
    return shutil.which(program)


def starting_this_package() -> str:
    """Python code that is this program wherever its package lies: .deb and .rpm keep it off Python's own path."""
    folder = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    return f"import sys; sys.path.append({folder!r}); from gpuhost_exporter.__main__ import main; sys.exit(main())"


def has_module(name: str) -> bool:
    """Whether this Python has it; not whether it can be loaded."""
    return importlib.util.find_spec(name) is not None


def run(
    command: Sequence[str],
    seconds: float,
    waiting: Callable[[], object],
    environment: Mapping[str, str | None] | None = None,
) -> Answer:
    """Run it to its end, calling `waiting` now and then. `environment`: what differs from ours, None for what goes.

    Raises Hung when it takes longer and is killed, Malformed when it floods, another SourceError when it cannot start.
    """
    variables = {**os.environ, "LC_ALL": "C", **(environment or {})}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(  # noqa: S603 -- programs that this package names, no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
                env={name: value for name, value in variables.items() if value is not None},
            )
        except OSError as error:
            raise source_error(command[0], error) from error
        until = time.monotonic() + seconds
        try:
            while process.poll() is None:
                if time.monotonic() > until:
                    raise Hung(f"no result within {seconds:.0f} s")
                if max(os.fstat(file.fileno()).st_size for file in (output, errors)) > _MOST_BYTES:
                    raise Malformed(f"more than {_MOST_BYTES >> 20} MiB of output")
                waiting()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOK_SECONDS)
        finally:
            _whole(lambda: _end(process))
        return Answer(process.returncode, _text(output), _text(errors))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the session: asked first, for mpirun then removes its files and its ranks elsewhere; then what is left of it,
    whose groups may be its own. One that the kernel holds is waited for no longer.
    """
    if process.poll() is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_ASKED_SECONDS)
    for pid in _session(process.pid):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_SECONDS)


def _session(leader: int) -> Iterator[int]:
    for name in os.listdir("/proc"):
        with suppress(ProcessLookupError, PermissionError):
            if name.isdecimal() and os.getsid(int(name)) == leader:
                yield int(name)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(_MOST_BYTES).decode("utf-8", "replace")


@contextmanager
def folder_below(parent: str) -> Iterator[str]:
    """A folder of its own, removed with all that is in it. Raises SourceError where none can be made."""
    try:
        path = tempfile.mkdtemp(prefix="gpuhost-verify-", dir=parent)
    except OSError as error:
        raise source_error(parent, error) from error
    try:
        yield path
    finally:
        _whole(lambda: shutil.rmtree(path, ignore_errors=True))


def _whole(clean_up: Callable[[], None]) -> None:
    """To its end though it be interrupted, which is once at most."""
    try:
        clean_up()
    except KeyboardInterrupt:
        clean_up()
        raise


def free_bytes(folder: str) -> int:
    """Bytes that this user can still write there. Raises SourceError."""
    try:
        told = os.statvfs(folder)
    except OSError as error:
        raise source_error(folder, error) from error
    return told.f_bavail * told.f_frsize


def allocated_bytes(folder: str, prefix: str) -> tuple[int, ...]:
    """Bytes on the file system, holes left out, of each file there whose name begins so. Raises SourceError."""
    try:
        with os.scandir(folder) as entries:
            return tuple(entry.stat().st_blocks * 512 for entry in entries if entry.name.startswith(prefix))
    except OSError as error:
        raise source_error(folder, error) from error


def is_folder(path: str) -> bool:
    return os.path.isdir(path)


def real_path(path: str) -> str:
    return os.path.realpath(path)


class Report:
    """A file that will be written later, opened now. Until then one that is there stays as it was, and without a
    content none is left. Raises SourceError where it cannot be written.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._made = not os.path.lexists(path)
        try:
            mode = "xb" if self._made else "r+b" if os.path.isfile(path) else "wb"
            self._file = open(path, mode)  # noqa: SIM115 -- close() ends it
        except OSError as error:
            raise source_error(path, error) from error

    def write(self, content: bytes) -> None:
        try:
            if os.path.isfile(self._path):
                self._file.truncate(0)
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            raise source_error(self._path, error) from error
        self._made = False

    def close(self) -> None:
        with suppress(OSError):
            self._file.close()
        if self._made:
            with suppress(OSError):
                os.unlink(self._path)


def discard_output() -> None:
    """Else the interpreter would fail once more at its end, on what is still buffered."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class Full(SourceError):
    """The file system has no room for what was to be written."""

    kind = "full"
