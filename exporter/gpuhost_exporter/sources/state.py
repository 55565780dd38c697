"""The state directory (`--storage.path`): one small JSON file a subject, shared with the command line.

    /var/lib/gpuhost-exporter/inventory.json    {"version": 1, "data": {...}}
    /var/lib/gpuhost-exporter/.lock             held while a file is read, changed and replaced

All of it is read and written by one thread of its own, so that a disk that does not answer holds up nobody else.
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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from gpuhost_exporter.errors import Absent, Hung, Malformed, SourceError, Transient
from gpuhost_exporter.sources.files import read_text, source_error

log = logging.getLogger(__name__)

VERSION = 1
PATIENCE = 2.0  # seconds that a disk may take before it counts as hung
Data = dict[str, Any]
Change = Callable[[Data], Data]
_Stamp = tuple[int, int, int]  # inode, size, nanoseconds of the last change
_LOCK_TRIES = 50
_LOCK_PAUSE = 0.02


@dataclass(slots=True)
class _Subject:
    """What the file held when it was last read or written, and what is yet to be done to it."""

    data: Data
    read: bool = False
    stamp: _Stamp | None = None
    changes: tuple[Change, ...] = ()


class State:
    """`reason` says why nothing can be written; empty while it can. Safe between threads and processes."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._turn = threading.Condition()  # guards what follows; never held while the disk is waited for
        self._subjects: dict[str, _Subject] = {}
        self._newest: dict[str, int] = {}  # prefix -> subjects of it to keep
        self._reason = ""
        self._asked = 0  # rounds of the thread, asked for and done
        self._done = 0
        self._writing = False  # whether the next round shall write, or only read
        self._began: float | None = None  # of the round under way
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def writable(self) -> bool:
        return not self._reason

    @property
    def reason(self) -> str:
        return self._reason

    def load(self, name: str) -> Data:
        """The subject's data, empty where there is none, with every update made here.

        What another process changes shows after the next `retry`. Only a subject that was never read is waited for,
        and not for long: on a disk that does not answer it is empty until it has been read.
        """
        with self._turn:
            subject = self._subjects.setdefault(name, _Subject({}))
            if not subject.read and not self._hangs():
                self._await(self._ask())
            return _changed(subject.data, subject.changes)

    def update(self, name: str, change: Change) -> Data:
        """Replace the data by what `change` makes of them. Returns at once: the file is changed in the background,
        as one step for every process that does so, by applying `change` to what it holds then."""
        with self._turn:
            subject = self._subjects.setdefault(name, _Subject({}))
            return self._add(subject, (*subject.changes, change))

    def replace(self, name: str, data: Data) -> None:
        """Put these data in the place of whatever there is. Returns at once."""
        with self._turn:
            self._add(self._subjects.setdefault(name, _Subject({})), (lambda _: data,))

    def keep_newest(self, prefix: str, count: int) -> None:
        """Have the subjects of that prefix but the last so many by name removed, and only the last kept in memory."""
        with self._turn:
            self._newest[prefix] = count
            self._ask(writing=True)

    def stuck(self, name: str) -> bool:
        """Whether changes of the subject wait for a disk that takes none: who makes many shall wait with the next."""
        with self._turn:
            subject = self._subjects.get(name)
            return bool(subject and subject.changes and (self._reason or self._hangs()))

    def names(self, prefix: str) -> tuple[str, ...]:
        """The subjects of that prefix, on disk or on their way there."""
        with self._turn:
            found = {name for name, subject in self._subjects.items() if subject.changes}
        with suppress(OSError):  # nothing there yet, or nothing to be had: what can be written says why
            found |= {file.removesuffix(".json") for file in os.listdir(self._folder) if file.endswith(".json")}
        return tuple(sorted(name for name in found if name.startswith(prefix)))

    def unreadable(self) -> str:
        """Why the folder cannot be listed, or a file that was read not read; empty where nothing is wrong, or there."""
        try:
            os.listdir(self._folder)
        except FileNotFoundError:
            return ""
        except OSError as error:
            return str(source_error(self._folder, error))
        return self._reason

    def retry(self) -> None:
        """Have what is unwritten written, what other processes changed read, and find out whether the folder takes
        files and the disk answers. Returns at once."""
        with self._turn:
            self._ask(writing=True)
            if self._hangs():
                self._unwritable(self._hung())

    def flush(self) -> None:
        """Wait until everything is written or has failed to be, for as long as a disk may take; `reason` tells."""
        with self._turn:
            if not self._await(self._ask(writing=True)):
                self._unwritable(self._hung())

    def close(self) -> None:
        """Write what is unwritten, if the disk takes it soon, and end the thread."""
        with self._turn:
            unwritten = any(subject.changes for subject in self._subjects.values())
        if unwritten:
            self.flush()
        with self._turn:
            self._closed = True
            self._turn.notify_all()

    def _add(self, subject: _Subject, changes: tuple[Change, ...]) -> Data:
        data = _changed(subject.data, changes)
        subject.changes = changes
        self._ask(writing=True)
        return data

    def _ask(self, *, writing: bool = False) -> int:
        """Have the thread go round once more. Returns the number of that round."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="state", daemon=True)
            self._thread.start()
        self._asked += 1
        self._writing |= writing
        self._turn.notify_all()
        return self._asked

    def _await(self, asked: int) -> bool:
        return self._turn.wait_for(lambda: self._done >= asked, PATIENCE)

    def _hangs(self) -> bool:
        return self._began is not None and time.monotonic() - self._began > PATIENCE

    def _hung(self) -> Hung:
        return Hung(f"{self._folder}: the disk does not answer")

    def _run(self) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._closed or self._asked > self._done)
                if self._closed:
                    return
                asked, writing = self._asked, self._writing
                self._writing = False
                self._began = time.monotonic()
                names = tuple(self._subjects)
            failed = self._round(names, writing)
            with self._turn:
                if failed:
                    self._unwritable(failed)
                elif writing:
                    self._written()
                self._done, self._began = asked, None
                self._turn.notify_all()

    def _round(self, names: tuple[str, ...], writing: bool) -> SourceError | None:
        """Read every subject, write those that are to be; one that fails costs itself. Returns what went wrong."""
        failed = None
        for name in names:
            try:
                self._read(name)
            except SourceError as error:
                failed = error
        if not writing:
            return failed
        try:
            with self._exclusive():
                for name in names:
                    try:
                        self._write(name)
                    except SourceError as error:
                        failed = error
                self._remove_old()
        except SourceError as error:
            return error
        return failed

    def _remove_old(self) -> None:
        with self._turn:
            newest, self._newest = self._newest, {}
        for prefix, count in newest.items():
            names = self.names(prefix)
            with self._turn:
                for name in names[:-1]:
                    if name in self._subjects and not self._subjects[name].changes:
                        del self._subjects[name]
            try:
                for name in names[:-count]:
                    with suppress(FileNotFoundError):
                        os.unlink(self._path(name))
            except OSError as error:
                raise source_error(self._folder, error) from error

    def _read(self, name: str) -> None:
        """Read the file, if it is another than the one that was read or written last."""
        subject, path = self._subjects[name], self._path(name)
        try:
            stamp = _stamp(path)
            data = subject.data if stamp == subject.stamp else parse(read_text(path), path)
        except Absent:
            self._hold(subject, {}, None)
        except Malformed as error:
            self._hold(subject, {}, None)
            self._move_aside(path, error)
        else:
            self._hold(subject, data, stamp)

    def _hold(self, subject: _Subject, data: Data, stamp: _Stamp | None) -> None:
        with self._turn:
            subject.data, subject.stamp, subject.read = data, stamp, True

    def _write(self, name: str) -> None:
        subject, path = self._subjects[name], self._path(name)
        if not subject.changes:
            return
        self._read(name)  # anew: the lock is held now
        with self._turn:
            changes = subject.changes
            data = _changed(subject.data, changes)
        block = json.dumps({"version": VERSION, "data": data}, indent=1, sort_keys=True).encode()
        try:
            _replace(path, block)
        except OSError as error:
            raise source_error(path, error) from error
        stamp = _stamp(path)
        with self._turn:
            subject.data, subject.stamp = data, stamp
            subject.changes = tuple(change for change in subject.changes if change not in changes)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """The lock between processes. Raises SourceError where the folder cannot be used."""
        path = f"{self._folder}/.lock"
        try:
            os.makedirs(self._folder, mode=0o750, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            _give_to_owner(descriptor, self._folder)
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

    def _move_aside(self, path: str, error: Malformed) -> None:
        try:
            os.replace(path, f"{path}.corrupt")
        except OSError as failure:
            raise source_error(path, failure) from failure
        log.warning("%s; moved aside as %s.corrupt, starting anew", error, path)

    def _unwritable(self, error: SourceError) -> None:
        before, self._reason = self._reason, str(error)
        if before != self._reason:
            log.warning("state is kept in memory only: %s", error)

    def _written(self) -> None:
        before, self._reason = self._reason, ""
        if before:
            log.info("state is written to %s again", self._folder)

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}.json"


def _changed(data: Data, changes: tuple[Change, ...]) -> Data:
    """A copy of the data with the changes made."""
    data = copy.deepcopy(data)
    for change in changes:
        data = change(data)
    return copy.deepcopy(data)


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
        status = os.stat(path)
    except OSError as error:
        raise source_error(path, error) from error
    return status.st_ino, status.st_size, status.st_mtime_ns


def _give_to_owner(descriptor: int, folder: str) -> None:
    """What an administrator's command writes, the daemon, which owns the folder, must be able to read."""
    owner = os.stat(folder)
    if os.geteuid() == 0 and os.fstat(descriptor).st_uid != owner.st_uid:
        with suppress(PermissionError):  # root without CAP_CHOWN
            os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _replace(path: str, block: bytes) -> None:
    """Put a whole file in the place of another, so that no reader and no power loss finds half of it."""
    draft, parent = f"{path}.new", os.path.dirname(path)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    try:
        _give_to_owner(descriptor, parent)
        while block:
            block = block[os.write(descriptor, block) :]
        os.fsync(descriptor)
    except OSError:
        os.unlink(draft)
        raise
    finally:
        os.close(descriptor)
    os.replace(draft, path)
    folder = os.open(parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
