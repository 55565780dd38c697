"""Bounded reads below a root that stands for the host's /proc, /sys and /dev. No parsing here.

A read that fails says which file and why, as one of the types in errors.py: a file that is not there is Absent,
one that vanished or lost its device while being read is Gone, and an attribute that the driver does not
implement (EINVAL, EOPNOTSUPP) is Unsupported.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from gpuhost_exporter.clock import Clock
from gpuhost_exporter.errors import Absent, Denied, Gone, Malformed, SourceError, Transient, Unsupported

LIMIT = 1 << 20
_LONGEST_NUMBER = 20  # -9223372036854775808

_ERRORS: dict[int, type[SourceError]] = {
    errno.ENOENT: Absent,
    errno.ENOTDIR: Absent,
    errno.EACCES: Denied,
    errno.EPERM: Denied,
    errno.ENODEV: Gone,
    errno.ENXIO: Gone,
    errno.ESRCH: Gone,
    errno.EINVAL: Unsupported,
    errno.EOPNOTSUPP: Unsupported,
}


def source_error(path: str, error: OSError) -> SourceError:
    return _ERRORS.get(error.errno or 0, Transient)(f"{path}: {error.strerror}")


@dataclass(frozen=True, slots=True)
class Root:
    """Where the host's trees are: `--path.procfs`, `--path.sysfs`, /dev, and what is above /run and /var.

    `stamped`: a file was true when it was written, on the exporter's clock, as a simulated host's are.
    """

    proc: str = "/proc"
    sys: str = "/sys"
    dev: str = "/dev"
    top: str = ""
    stamped: bool = False

    @classmethod
    def below(cls, folder: str) -> Root:
        """The trees of a simulated or recorded host."""
        return cls(f"{folder}/proc", f"{folder}/sys", f"{folder}/dev", folder)


def _opened(path: str) -> int:
    if "\0" in path:  # a file named this one, and said garbage
        raise Malformed(f"{path!r}: no path")
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def read_text(path: str) -> str:
    """The file's text without surrounding white space, at most LIMIT bytes."""
    return _read(path)[0]


def read_dated(root: Root, path: str, clock: Clock) -> tuple[str, float]:
    """The file's text and when it was true: now, unless its tree says when.

    A simulator that waits for a processor writes late: counters that are divided by time must not be taken for new.
    """
    text, written = _read(path, stamped=root.stamped)
    return text, clock.now() if written is None else written


def _read(path: str, *, stamped: bool = False) -> tuple[str, float | None]:
    """The text, and when the file was written where that is asked."""
    try:
        descriptor = _opened(path)
        try:
            text = b""
            # A seq_file hands out whole records, a page at most: less than a page is no end.
            while block := os.read(descriptor, 65536):
                text += block
                if len(text) > LIMIT:
                    raise Malformed(f"{path}: longer than {LIMIT} bytes")
            written = os.fstat(descriptor).st_mtime_ns / 1e9 if stamped else None
        finally:
            os.close(descriptor)
    except OSError as error:
        raise source_error(path, error) from error
    return text.decode("utf-8", "replace").strip(), written


def read_start(path: str) -> str:
    """What the file hands out at once, at most 4 KiB: a number, or the head of a list that repeats itself."""
    return read_block(path).decode("utf-8", "replace").strip()


def read_block(path: str, offset: int = 0, size: int = 4096) -> bytes:
    """What the file hands out at once from there."""
    try:
        descriptor = _opened(path)
        try:
            return os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise source_error(path, error) from error


def read_number(path: str) -> int:
    """The file's text as an integer of at most 64 bits, decimal or 0x…"""
    text = read_start(path)
    if len(text) <= _LONGEST_NUMBER:
        with suppress(ValueError):
            return int(text, 0)
        with suppress(ValueError):
            return int(text)  # "007" is decimal in sysfs
    raise Malformed(f"{path}: expected a number, got {text[:40]!r}")


def read_count(path: str) -> int:
    """The file's number, which counts something: Malformed where it is negative."""
    number = read_number(path)
    if number < 0:
        raise Malformed(f"{path}: expected a count, got {number}")
    return number


def optional_text(path: str) -> str | None:
    """The file's text, or None where the host does not tell (absent, unsupported, no permission, gone)."""
    try:
        return read_text(path) or None
    except SourceError:
        return None


def optional_number(path: str) -> int | None:
    """The file's number, or None where the host does not tell or tells no number."""
    try:
        return read_number(path)
    except SourceError:
        return None


def names(path: str) -> tuple[str, ...]:
    """Sorted names in a folder; Absent where there is none."""
    try:
        return tuple(sorted(os.listdir(path)))
    except OSError as error:
        raise source_error(path, error) from error
    except ValueError as error:
        raise Malformed(f"{path!r}: no path") from error


def optional_count(path: str) -> int | None:
    """The file's number, or None where the host does not tell or tells no count."""
    try:
        return read_count(path)
    except SourceError:
        return None


def optional_names(path: str) -> tuple[str, ...]:
    """Sorted names in a folder, none where there is no such folder."""
    try:
        return names(path)
    except Absent:
        return ()


def link_target(path: str) -> str:
    """The path that a symbolic link leads to, links resolved; it need not exist."""
    return os.path.realpath(path)


def followed(folder: str, name: str) -> str:
    """The path that a folder's link leads to, for a folder whose own path has no link in it, as sysfs' targets have
    none: one call instead of one for each part of the path. What is no link leads to itself.
    """
    path = f"{folder}/{name}"
    try:
        return os.path.normpath(os.path.join(folder, os.readlink(path)))
    except (OSError, ValueError):
        return path


@contextmanager
def listed(folder: str) -> Iterator[None]:
    """For the reads below a device's folder that was listed just now: if it is there no more, Absent is Gone."""
    try:
        yield
    except Absent as error:
        if os.path.isdir(folder):
            raise
        raise Gone(f"{folder}: disappeared while being read") from error
