"""What the whole host writes: page cache dirtied and written back, and bytes of the devices.

/proc/vmstat      nr_dirtied 862294\nnr_written 649962     pages since boot
/proc/diskstats   259 0 nvme0n1 29910 10001 1916626 8694 6838 11751 2346472 4422 ...
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple, TypeVar

from gpuhost_exporter.errors import Malformed, SourceError
from gpuhost_exporter.sources import layers, mounts, raid
from gpuhost_exporter.sources.block import SECTOR_BYTES, Field
from gpuhost_exporter.sources.evidence import DeviceIo, HostIo, MountIo
from gpuhost_exporter.sources.files import (
    Root,
    followed,
    names,
    optional_count,
    optional_names,
    optional_text,
    read_text,
)

T = TypeVar("T")

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

_NO_DRIVE = re.compile(r"(?:ram|zram|loop|sr|fd|md|dm-|bcache|drbd)\d+\Z")
_PAGES = re.compile(r"^nr_(dirtied|written) (\d{1,19})$", re.MULTILINE)


class Pages(NamedTuple):
    dirtied_bytes: int
    written_bytes: int


class Drive(NamedTuple):
    read_bytes: int
    write_bytes: int


def parse_vmstat(text: str) -> Pages:
    told = {match[1]: int(match[2]) * PAGE_BYTES for match in _PAGES.finditer(text)}
    try:
        return Pages(told["dirtied"], told["written"])
    except KeyError as error:
        raise Malformed(f"/proc/vmstat: expected nr_{error.args[0]}, got {text[:40]!r}") from error


def drive_names(root: Root) -> frozenset[str]:
    """Disks with no other device below them."""
    try:
        return frozenset(name for name in names(f"{root.sys}/block") if not _NO_DRIVE.match(name))
    except SourceError:
        return frozenset()


def stacked_numbers(root: Root) -> frozenset[str]:
    """Numbers ("9:0") of arrays, mapped and loop devices: what has other devices below it."""
    try:
        stacked = [name for name in names(f"{root.sys}/block") if _NO_DRIVE.match(name)]
    except SourceError:
        return frozenset()
    return frozenset(filter(None, (optional_text(f"{root.sys}/block/{name}/dev") for name in stacked)))


def redundant_arrays(root: Root) -> dict[str, dict[str, str]]:
    """Arrays that write more than they are given (copies, parity, a resync), each with its members, partitions too, and
    what those are partitions of: {"md127": {"nvme4n1p2": "nvme4n1", "nvme5n1p2": "nvme5n1"}}."""
    found = {}
    for name, folder, level in _arrays(root):
        if level not in (None, "raid0", "linear"):
            paths = {member: followed(f"{folder}/slaves", member) for member in optional_names(f"{folder}/slaves")}
            found[name] = {member: os.path.basename(layers.drive_folder(path)) for member, path in paths.items()}
    return found


def mirrored_shares(root: Root) -> dict[str, float]:
    """By number ("9:1") of RAID 1 and 10 arrays: what their members write beyond what the array is given, a share of
    that; less while members are missing.

    /sys/block/md1/md/level raid10, raid_disks 4, degraded 0, layout 258: near copies in the lowest byte, far ones above
    """
    shares = {}
    for _, folder, level in _arrays(root):
        number = optional_text(f"{folder}/dev")
        disks = optional_count(f"{folder}/md/raid_disks")
        if number and disks and level in ("raid1", "raid10"):
            layout = optional_count(f"{folder}/md/layout") or 0
            copies = disks if level == "raid1" else (layout & 0xFF) * (layout >> 8 & 0xFF)
            present = disks - (optional_count(f"{folder}/md/degraded") or 0)
            shares[number] = max(0.0, copies * present / disks - 1)
    return shares


def _arrays(root: Root) -> Iterator[tuple[str, str, str | None]]:
    """Name, folder and level."""
    with suppress(SourceError):
        for name in raid.arrays(root):
            folder = f"{root.sys}/block/{name}"
            yield name, folder, optional_text(f"{folder}/md/level")


def mounted_devices(root: Root) -> dict[str, str]:
    """Mount point by the device that is mounted there: a partition, an array, a mapped device or a whole disk."""
    try:
        return {each.stack.device: each.mount.point for each in mounts.local(root, mounts.read(root))}
    except SourceError:
        return {}


def parse_drives(text: str, wanted: frozenset[str]) -> dict[str, Drive]:
    """Raises Malformed. A namespace and its multipath paths may both be there: only one of them counts, as a rule."""
    found = {}
    for line in text.splitlines():
        words = line.split(None, 3 + Field.WRITTEN_SECTORS + 1)
        if len(words) < 3 or words[2] not in wanted:
            continue
        try:
            read, written = int(words[3 + Field.READ_SECTORS]), int(words[3 + Field.WRITTEN_SECTORS])
        except (IndexError, ValueError) as error:
            raise Malformed(f"/proc/diskstats: expected counters, got {line.strip()[:60]!r}") from error
        found[words[2]] = Drive(read * SECTOR_BYTES, written * SECTOR_BYTES)
    return found


class HostCounters:
    """What came since the last look, of the whole host."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._names: frozenset[str] = frozenset()
        self._points: dict[str, str] = {}
        self._arrays: dict[str, dict[str, str]] = {}
        self._pages: Pages | None = None
        self._drives: dict[str, Drive] = {}

    def refresh(self) -> None:
        """Look for disks and mounts that have come or gone."""
        self._names = drive_names(self._root)
        self._points = mounted_devices(self._root)
        self._arrays = redundant_arrays(self._root)

    def look(self) -> HostIo:
        pages, before = _told(parse_vmstat, f"{self._root.proc}/vmstat"), self._pages
        wanted = self._names.union(self._points, self._arrays, *self._arrays.values())
        drives = _told(lambda text: parse_drives(text, wanted), f"{self._root.proc}/diskstats") or {}
        drives_before = self._drives
        self._pages, self._drives = pages, drives
        moved = {
            name: DeviceIo(name, drive.read_bytes - then.read_bytes, drive.write_bytes - then.write_bytes)
            for name, drive in drives.items()
            if (then := drives_before.get(name)) is not None
        }
        mounted = [MountIo(point, moved[name].write_bytes) for name, point in self._points.items() if name in moved]
        return HostIo(
            pages.dirtied_bytes - before.dirtied_bytes if pages and before else None,
            pages.written_bytes - before.written_bytes if pages and before else None,
            self._devices(moved) if drives_before else None,
            max(mounted, key=lambda mount: mount.write_bytes, default=None),
        )

    def _devices(self, moved: dict[str, DeviceIo]) -> tuple[DeviceIo, ...]:
        """What went to a redundant array counts as its own bytes, once, and not as its members'."""
        found = {name: device for name, device in moved.items() if name in self._names}
        for array, members in self._arrays.items():
            if array in moved and moved.keys() >= members.keys():
                found[array] = _plus(found.get(array, DeviceIo(array, 0, 0)), moved[array], 1)
                for member, whole in members.items():
                    found[whole] = _plus(found.get(whole, DeviceIo(whole, 0, 0)), moved[member], -1)
        return tuple(found.values())


def _plus(device: DeviceIo, other: DeviceIo, times: int) -> DeviceIo:
    read, written = device.read_bytes + times * other.read_bytes, device.write_bytes + times * other.write_bytes
    return DeviceIo(device.name, read, written)


def _told(parse: Callable[[str], T], path: str) -> T | None:
    try:
        return parse(read_text(path))
    except SourceError:
        return None
