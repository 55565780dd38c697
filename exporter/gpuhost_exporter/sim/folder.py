"""Where a simulation's files are while it runs, and what simulations that were killed have left there."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

_PREFIX = "gpuhost-simulation-"
_SHARED = "/dev/shm"  # noqa: S108


def memory() -> str | None:
    """tmpfs, where there is one: a disk's file system flushes each time that a file is replaced."""
    return _SHARED if os.access(_SHARED, os.W_OK) else None


def create() -> str:
    """A new folder, locked until this process ends, however it ends."""
    parent = memory() or os.environ.get("TMPDIR", "/var/tmp")  # noqa: S108
    _remove_left(parent)
    name = os.urandom(6).hex()
    # Not by the name that others look for until it is locked.
    unlocked, path = f"{parent}/.{_PREFIX}{name}", f"{parent}/{_PREFIX}{name}"
    os.mkdir(unlocked, 0o700)
    _lock(unlocked)
    os.rename(unlocked, path)
    return path


def remove(path: str) -> None:
    import shutil  # brings every compressor along

    shutil.rmtree(path, ignore_errors=True)


def _remove_left(parent: str) -> None:
    for name in os.listdir(parent):
        if name.startswith(_PREFIX):
            with suppress(OSError):  # somebody else's, or its owner lives
                descriptor = _lock(f"{parent}/{name}")
                remove(f"{parent}/{name}")
                os.close(descriptor)


def _lock(path: str) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
