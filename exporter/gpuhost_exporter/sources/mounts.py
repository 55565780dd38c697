"""Mounted file systems: where, of what kind, on which device; and the room on them.

    /proc/self/mountinfo   36 27 259:5 / /data rw,noatime shared:1 - xfs /dev/md0 rw,attr2
                           id parent device-number root mountpoint options [tags] - type source options

The number of btrfs and ZFS is one that they made up: their device is found by the source's name. A folder mounted
once more elsewhere (a bind mount) has another root than / and is left out: it is the same room.

statvfs() on a file system whose server or device died never returns, and nothing can end the thread that called it.
So each question has a thread of its own, which is left behind when it hangs; who hangs is not asked again before it
has answered, and while a handful hang nobody is asked.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from gpuhost_exporter.errors import Hung, Malformed, SourceError
from gpuhost_exporter.sources import layers
from gpuhost_exporter.sources.files import Root, link_target, read_text, source_error

_MADE_UP = re.compile(r"0:\d+\Z")
_OCTAL = re.compile(r"\\([0-7]{3})")
# Read-only images and what has no drive behind it.
_LEFT_OUT = re.compile(r"(?:loop|ram|zram|sr|fd)\d")
_MOST_HANGING = 4


@dataclass(frozen=True, slots=True)
class Mount:
    number: str  # 259:5
    root: str
    point: str
    kind: str  # xfs, nfs4, fuse.s3fs
    source: str  # /dev/md0, server:/export


@dataclass(frozen=True, slots=True)
class LocalMount:
    """A file system on the host's own drives."""

    mount: Mount
    stack: layers.Stack


class Room(Protocol):
    """What statvfs() answers, as far as it is used; sizes are in units of f_frsize."""

    @property
    def f_frsize(self) -> int: ...
    @property
    def f_blocks(self) -> int: ...
    @property
    def f_bavail(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Capacity:
    """`free_bytes` is what an ordinary user can still write."""

    size_bytes: int
    free_bytes: int


def read(root: Root) -> tuple[Mount, ...]:
    """Every mount that this process sees."""
    path = f"{root.proc}/self/mountinfo"
    try:
        return parse_mountinfo(read_text(path))
    except Malformed as error:
        raise Malformed(f"{path}: {error}") from error


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    found = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if not separator or len(fields) < 6 or len(kind) < 2:
            raise Malformed(f"expected 'ID PARENT MAJOR:MINOR ROOT POINT OPTIONS ... - TYPE SOURCE', got {line[:60]!r}")
        found.append(Mount(fields[2], unescape(fields[3]), unescape(fields[4]), kind[0], unescape(kind[1])))
    return tuple(found)


def unescape(text: str) -> str:
    """The kernel writes a space as \\040, and so tab, line feed and backslash."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def local(root: Root, mounts: Iterable[Mount]) -> tuple[LocalMount, ...]:
    """Those on the host's own block devices: each device once, where it was mounted first at its shortest path."""
    chosen: dict[str, Mount] = {}
    for mount in mounts:
        number = _number(root, mount)
        if number and (mount.root == "/" or mount.kind == "btrfs"):  # btrfs: the subvolume that is mounted
            known = chosen.get(number)
            if known is None or len(mount.point) < len(known.point):
                chosen[number] = mount
    found = []
    for number, mount in chosen.items():
        stack = layers.stack(root, number)
        if stack is not None and not _LEFT_OUT.match(stack.device):
            found.append(LocalMount(mount, stack))
    return tuple(found)


class Capacities:
    """Asks file systems for their room, giving up on one that hangs. `statvfs` is os.statvfs or a stand-in for it."""

    def __init__(self, statvfs: Callable[[str], Room] = os.statvfs, patience: float = 2.0) -> None:
        self._statvfs = statvfs
        self._patience = patience
        self._asked: set[str] = set()  # and not answered yet

    def read(self, point: str) -> Capacity:
        """Raises Hung when the file system does not answer, another SourceError when it cannot tell."""
        if point in self._asked:
            raise Hung(f"{point}: the file system does not answer")
        if len(self._asked) >= _MOST_HANGING:
            raise Hung(f"{point}: not asked, {_MOST_HANGING} file systems hang")
        answers: list[Capacity | SourceError] = []
        answered = threading.Event()

        def ask() -> None:
            answers.append(self._room(point))
            self._asked.discard(point)
            answered.set()

        self._asked.add(point)
        threading.Thread(target=ask, name="statvfs", daemon=True).start()
        answered.wait(self._patience)
        answer = answers[0] if answers else Hung(f"{point}: the file system does not answer")
        if isinstance(answer, SourceError):
            raise answer
        return answer

    def hanging(self) -> frozenset[str]:
        """Points that have been asked and have not answered yet."""
        return frozenset(self._asked)

    def _room(self, point: str) -> Capacity | SourceError:
        try:
            room = self._statvfs(point)
        except OSError as error:
            return source_error(point, error)
        return Capacity(room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize)


def _number(root: Root, mount: Mount) -> str | None:
    if not _MADE_UP.match(mount.number):
        return mount.number
    if not mount.source.startswith("/dev/"):
        return None
    name = os.path.basename(link_target(root.dev + mount.source.removeprefix("/dev")))
    try:
        return read_text(f"{root.sys}/block/{name}/dev")
    except SourceError:
        return None
