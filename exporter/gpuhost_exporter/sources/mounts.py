"""Mounted file systems: where, of what kind, on which device; and the room on them.

    /proc/1/mountinfo      36 27 259:5 / /data rw,noatime shared:1 - xfs /dev/md0 rw,attr2
                           id parent device-number root mountpoint options [tags] - type source options
    /proc/self/mountinfo   what this process sees of them: another list in a container or under ProtectHome=
    /sys/fs/btrfs/UUID/devices/nvme0n1p2

The host's mounts are its first process's; who may not read them takes this process's own. The number of btrfs and ZFS
is one that they made up: the devices of btrfs are found by the source's name, those of a ZFS pool are not told. A
folder mounted once more elsewhere (a bind mount) has another root than / and is left out: it is the same room.

Room is asked where this process sees that very file system: under the same name, or wherever any of it is mounted.
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

from gpuhost_exporter.errors import Absent, Denied, Gone, Hung, Malformed, SourceError
from gpuhost_exporter.sources import layers
from gpuhost_exporter.sources.files import Root, link_target, optional_names, optional_text, read_text, source_error

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
    id: str = ""
    parent: str = ""  # the id of the mount that its point is in


@dataclass(frozen=True, slots=True)
class LocalMount:
    """A file system on the host's own drives. Of a ZFS pool the stack names the dataset and no drive."""

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
    """The host's mounts, as far as this process may know them."""
    try:
        return _read(f"{root.proc}/1/mountinfo")
    except (Absent, Denied, Gone):
        return own(root)


def own(root: Root) -> tuple[Mount, ...]:
    """Every mount that this process sees."""
    return _read(f"{root.proc}/self/mountinfo")


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    found = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if not separator or len(fields) < 6 or len(kind) < 2:
            raise Malformed(f"expected 'ID PARENT MAJOR:MINOR ROOT POINT OPTIONS ... - TYPE SOURCE', got {line[:60]!r}")
        found.append(
            Mount(fields[2], unescape(fields[3]), unescape(fields[4]), kind[0], unescape(kind[1]), *fields[:2])
        )
    return tuple(found)


def unescape(text: str) -> str:
    """The kernel writes a space as \\040, and so tab, line feed and backslash."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


class View:
    """What a process with these mounts finds where: a mount hides what is below its point."""

    def __init__(self, mounts: Iterable[Mount]) -> None:
        self._mounts = tuple(mounts)
        ids = {mount.id for mount in self._mounts}
        self._inside: dict[str, list[Mount]] = {}
        for mount in self._mounts:
            # The first one's parent is outside of what the process sees.
            parent = mount.parent if mount.parent in ids and mount.parent != mount.id else ""
            self._inside.setdefault(parent, []).append(mount)

    def shows(self, mount: Mount) -> bool:
        """Whether its point leads to it, and not to another mounted over it or over a folder above."""
        return self._at(mount.point) == mount

    def path(self, mount: Mount) -> str | None:
        """Where this process reaches the file system of a mount, which may be another process's; None for nowhere."""
        same = (each for each in self._mounts if each.number == mount.number and self.shows(each))
        best = min(
            same,
            key=lambda each: (each.point != mount.point, each.root != mount.root, len(each.point)),
            default=None,
        )
        return best.point if best else None

    def _at(self, path: str) -> Mount | None:
        """The mount that a path leads to."""
        found = max(self._crossed("", path)[::-1], key=lambda mount: len(mount.point), default=None)
        left = len(self._mounts)  # mounts that name each other as parents end somewhere
        while found is not None and left:
            # The nearest is crossed first; of two at the same place the later one is on top.
            crossed = self._crossed(found.id, path)[::-1]
            if not crossed:
                break
            found, left = min(crossed, key=lambda mount: len(mount.point)), left - 1
        return found

    def _crossed(self, parent: str, path: str) -> list[Mount]:
        """Mounts within one that are on the way to the path."""
        inside = self._inside.get(parent, ())
        return [mount for mount in inside if f"{path}/".startswith(f"{mount.point.rstrip('/')}/")]


def local(root: Root, mounts: Iterable[Mount]) -> tuple[LocalMount, ...]:
    """Those on the host's own block devices: each device once, where it was mounted first at its shortest path."""
    view = View(mounts := tuple(mounts))
    chosen: dict[tuple[str, ...], tuple[bool, int, Mount]] = {}
    for mount in mounts:
        numbers = (mount.source,) if mount.kind == "zfs" else _numbers(root, mount)
        if numbers and (mount.root == "/" or mount.kind == "btrfs"):  # btrfs: the subvolume that is mounted
            rank = not view.shows(mount), len(mount.point)
            known = chosen.get(numbers)
            if known is None or rank < known[:2]:
                chosen[numbers] = *rank, mount
    found: dict[str, LocalMount] = {}
    for numbers, (hidden, _, mount) in chosen.items():
        stack = layers.Stack(mount.source, (), ()) if mount.kind == "zfs" else _stack(root, numbers)
        if stack is not None and not _LEFT_OUT.match(stack.device) and not (hidden and mount.point in found):
            found[mount.point] = LocalMount(mount, stack)
    return tuple(found.values())


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


def _read(path: str) -> tuple[Mount, ...]:
    try:
        return parse_mountinfo(read_text(path))
    except Malformed as error:
        raise Malformed(f"{path}: {error}") from error


def _numbers(root: Root, mount: Mount) -> tuple[str, ...]:
    """The numbers of the block devices that a file system is on; none where it is on no local one."""
    if not _MADE_UP.match(mount.number):
        return (mount.number,)
    if not mount.source.startswith("/dev/"):
        return ()
    name = os.path.basename(link_target(root.dev + mount.source.removeprefix("/dev")))
    told = (optional_text(f"{root.sys}/class/block/{device}/dev") for device in _btrfs_devices(root, name))
    return tuple(number for number in told if number)


def _btrfs_devices(root: Root, name: str) -> tuple[str, ...]:
    """All devices of the btrfs that this one is of."""
    folder = f"{root.sys}/fs/btrfs"
    for uuid in optional_names(folder):
        devices = optional_names(f"{folder}/{uuid}/devices")
        if name in devices:
            return devices
    return (name,)


def _stack(root: Root, numbers: Iterable[str]) -> layers.Stack | None:
    stacks = [stack for number in numbers if (stack := layers.stack(root, number))]
    if not stacks:
        return None
    arrays = dict.fromkeys(array for stack in stacks for array in stack.arrays)
    drives = dict.fromkeys(drive for stack in stacks for drive in stack.drives)
    return layers.Stack(stacks[0].device, tuple(arrays), tuple(drives))
