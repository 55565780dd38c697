"""The state directory (`--storage.path`): one small JSON file a subject, shared with the command line.

    /var/lib/gpuhost-exporter/inventory.json    {"version": 1, "data": {...}}
    /var/lib/gpuhost-exporter/.lock             held while a file is read, changed and replaced

A file is replaced whole. What cannot be written is kept in memory and written once it can be; what cannot be
understood is moved aside as NAME.corrupt. Neither stops the exporter, and each is logged once.
"""

from __future__ import annotations

import copy
import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuhost_exporter.errors import Absent, Malformed, SourceError, Transient
from gpuhost_exporter.sources.files import read_text, source_error

log = logging.getLogger(__name__)

VERSION = 1
Data = dict[str, Any]
_Stamp = tuple[int, int, int]  # inode, size, nanoseconds of the last change
_LOCK_TRIES = 50
_LOCK_PAUSE = 0.02


@dataclass(slots=True)
class _Subject:
    data: Data
    stamp: _Stamp | None = None
    unwritten: bool = False


class State:
    """`reason` says why nothing can be written; empty while it can. Safe between threads and processes."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._subjects: dict[str, _Subject] = {}
        self._reason = ""

    @property
    def writable(self) -> bool:
        return not self._reason

    @property
    def reason(self) -> str:
        return self._reason

    def load(self, name: str) -> Data:
        """The subject's data, empty where there is none; read anew when another process has changed it."""
        with self._lock:
            return copy.deepcopy(self._current(name).data)

    def update(self, name: str, change: Callable[[Data], Data]) -> Data:
        """Replace the data by what `change` makes of them, as one step for every process that does so."""
        with self._lock:
            changed = False
            try:
                with self._exclusive():
                    subject = self._change(name, change)
                    changed = True
                    self._write(name, subject)
            except SourceError as error:
                self._unwritable(error)
                if not changed:
                    subject = self._change(name, change)
            return copy.deepcopy(subject.data)

    def keep_newest(self, prefix: str, count: int) -> None:
        """Remove the subjects of that prefix but the last so many by name; of those only the last stays in memory."""
        with self._lock:
            names = self.names(prefix)
            for name in names[:-1]:
                if name in self._subjects and not self._subjects[name].unwritten:
                    del self._subjects[name]
            try:
                for name in names[:-count]:
                    Path(self._path(name)).unlink(missing_ok=True)
            except OSError as error:
                self._unwritable(source_error(self._folder, error))

    def names(self, prefix: str) -> tuple[str, ...]:
        """The subjects of that prefix on disk."""
        try:
            files = os.listdir(self._folder)
        except OSError:
            return ()
        return tuple(
            sorted(file.removesuffix(".json") for file in files if file.startswith(prefix) and file.endswith(".json"))
        )

    def retry(self) -> None:
        """Write what could not be written before, and find out whether the folder takes files."""
        with self._lock:
            try:
                with self._exclusive():
                    for name, subject in self._subjects.items():
                        if subject.unwritten:
                            self._write(name, subject)
            except SourceError as error:
                self._unwritable(error)
            else:
                self._written()

    def _change(self, name: str, change: Callable[[Data], Data]) -> _Subject:
        subject = self._current(name)
        subject.data = change(copy.deepcopy(subject.data))
        subject.unwritten = True
        return subject

    def _current(self, name: str) -> _Subject:
        subject = self._subjects.setdefault(name, _Subject({}))
        if subject.unwritten:
            return subject
        path = self._path(name)
        try:
            stamp = _stamp(path)
            if stamp != subject.stamp:
                subject.data, subject.stamp = parse(read_text(path), path), stamp
        except Malformed as error:
            subject.data, subject.stamp = {}, None
            self._move_aside(path, error)
        except Absent:
            subject.data, subject.stamp = {}, None
        except SourceError as error:
            self._unwritable(error)
        return subject

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """The lock between processes. Raises SourceError where the folder cannot be used."""
        path = f"{self._folder}/.lock"
        try:
            Path(self._folder).mkdir(mode=0o750, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise source_error(self._folder, error) from error
        try:
            for _ in range(_LOCK_TRIES):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(_LOCK_PAUSE)
                except OSError as error:
                    raise source_error(path, error) from error
            else:
                raise Transient(f"{path}: another process keeps it locked")
            yield
        finally:
            os.close(descriptor)

    def _write(self, name: str, subject: _Subject) -> None:
        path = self._path(name)
        block = json.dumps({"version": VERSION, "data": subject.data}, indent=1, sort_keys=True).encode()
        try:
            _replace(path, block)
        except OSError as error:
            raise source_error(path, error) from error
        subject.unwritten, subject.stamp = False, _stamp(path)
        self._written()

    def _move_aside(self, path: str, error: Malformed) -> None:
        try:
            Path(path).replace(f"{path}.corrupt")
        except OSError as failure:
            self._unwritable(source_error(path, failure))
        else:
            log.warning("%s; moved aside as %s.corrupt, starting anew", error, path)

    def _unwritable(self, error: SourceError) -> None:
        if self._reason != str(error):
            log.warning("state is kept in memory only: %s", error)
            self._reason = str(error)

    def _written(self) -> None:
        if self._reason:
            log.info("state is written to %s again", self._folder)
            self._reason = ""

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}.json"


def parse(text: str, path: str) -> Data:
    """The data of a state file. Raises Malformed."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{path}: not a state file: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("data"), dict):
        raise Malformed(f'{path}: not a state file: expected {{"version": {VERSION}, "data": {{...}}}}')
    if document.get("version") != VERSION:
        raise Malformed(f"{path}: version {document.get('version')!r}, this program knows {VERSION}")
    data: Data = document["data"]
    return data


def _stamp(path: str) -> _Stamp:
    try:
        status = Path(path).stat()
    except OSError as error:
        raise source_error(path, error) from error
    return status.st_ino, status.st_size, status.st_mtime_ns


def _replace(path: str, block: bytes) -> None:
    """Put a whole file in the place of another, so that no reader and no power loss finds half of it."""
    draft = Path(f"{path}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    try:
        while block:
            block = block[os.write(descriptor, block) :]
        os.fsync(descriptor)
    except OSError:
        draft.unlink()
        raise
    finally:
        os.close(descriptor)
    draft.replace(path)
    folder = os.open(draft.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
