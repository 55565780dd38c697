"""Software RAID (md) as sysfs shows it to anyone.

    /sys/block/md0/md/level               raid0
    /sys/block/md0/md/array_state         clean    (active, active-idle, write-pending, readonly, read-auto: it serves;
                                                    clear, inactive, broken: it does not)
    /sys/block/md0/md/raid_disks          4        (empty for an array that is not assembled)
    /sys/block/md0/md/degraded            0        this and all of sync_action to mismatch_cnt not for raid0 and linear
    /sys/block/md0/md/sync_action         idle
    /sys/block/md0/md/sync_completed      81920 / 7501343744 sectors, none, delayed
    /sys/block/md0/md/sync_speed          203776   KiB/s, none
    /sys/block/md0/md/mismatch_cnt        0        sectors that the last check or repair found to differ
    /sys/block/md0/md/layout              258      raid10: near copies in the low byte, far copies in the next
    /sys/block/md0/md/dev-nvme0n1/state   in_sync  (a list: faulty, spare, write_mostly, blocked, journal, ...)
    /sys/block/md0/md/dev-nvme0n1/slot    0        (none, journal)
    /sys/block/md0/md/dev-nvme0n1/errors  0        read errors that cost it nothing: the others had the data
    /sys/block/md0/md/dev-nvme0n1/bad_blocks   65536 8   sectors, first and how many, that the others have; a line each
    /sys/block/md0/md/dev-nvme0n1/block   -> the member's folder; leads nowhere once the drive is gone

A raid0 that lost a drive says clean until somebody reads or writes; the link that leads nowhere tells at once.
Writing to sync_action starts a check, so nothing here ever writes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from gpuhost_exporter.errors import Absent, Gone, Malformed, Unsupported
from gpuhost_exporter.sources.block import SECTOR_BYTES
from gpuhost_exporter.sources.files import (
    Root,
    listed,
    names,
    optional_count,
    optional_text,
    read_text,
)

MemberState = Literal["active", "rebuilding", "spare", "journal", "faulty", "missing"]
MEMBER_STATES: tuple[MemberState, ...] = ("active", "rebuilding", "spare", "journal", "faulty", "missing")
SYNC_ACTIONS = ("idle", "resync", "recover", "check", "repair", "reshape", "frozen")

_PROGRESS = re.compile(r"([0-9]{1,20}) / ([0-9]{1,20})\Z")
_PRESENT = re.compile(r"([0-9]{1,10})(?: \([0-9]{1,10}\))?\Z")
_NOT_SERVING = frozenset({"clear", "inactive", "broken"})
# How many members each level can do without; raid10 depends on which.
_SPARED = {"raid0": 0, "linear": 0, "raid4": 1, "raid5": 1, "raid6": 2}


@dataclass(frozen=True, slots=True)
class Member:
    """`slot` is its place among raid_disks, None for a spare, a journal or a member that was thrown out.

    `corrected_errors` and `bad_bytes`, which md will not read from it any more, are None without redundancy.
    """

    name: str
    state: MemberState
    slot: int | None
    corrected_errors: int | None = None
    bad_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Sync:
    """A resync, recovery, check or reshape. The ratio is None while it waits or none is under way.

    `mismatched_bytes`: what the last check or repair found to differ between members.
    """

    action: str
    done_ratio: float | None
    bytes_per_second: float | None
    mismatched_bytes: int | None


@dataclass(frozen=True, slots=True)
class Array:
    """`degraded` and `sync` are None for levels without redundancy, raid_disks 0 for what is not assembled.

    `layout` is None for any level but raid10.
    """

    name: str
    level: str
    state: str
    raid_disks: int
    members: tuple[Member, ...]
    metadata: str | None
    uuid: str | None
    degraded: int | None
    sync: Sync | None
    layout: int | None

    def count(self, state: MemberState) -> int:
        """Members in a state; those that left without a trace count as missing."""
        present = sum(member.state == state for member in self.members)
        if state != "missing":
            return present
        filled = {m.slot for m in self.members if m.state in ("active", "rebuilding") and m.slot is not None}
        return max(present, self.raid_disks - len(filled) - self.count("faulty"))

    def reachable(self) -> bool:
        """Whether md serves the array and the drives to serve all of its data are there."""
        if self.state in _NOT_SERVING:
            return False
        slots = {member.slot for member in self.members if member.state == "active" and member.slot is not None}
        if self.level == "raid1":
            return bool(slots)
        if self.level == "raid10" and self.layout is not None:
            return raid10_reachable(self.raid_disks, self.layout, slots)
        spared = _SPARED.get(self.level)
        return spared is None or len(slots) >= self.raid_disks - spared


def arrays(root: Root) -> tuple[str, ...]:
    """Names of the md devices, without the containers of firmware RAID, which hold no data of their own.

    Raises Absent where the kernel's list of disks is not there: then nobody can say that an array is missing.
    """
    return tuple(
        name
        for name in names(f"{root.sys}/block")
        if name.startswith("md") and os.path.isdir(_folder(root, name)) and not _is_container(root, name)
    )


def read(root: Root, name: str) -> Array:
    """Raises Gone when the array was stopped meanwhile, SourceError when what md always tells cannot be read."""
    folder = _folder(root, name)
    with listed(folder):
        action = optional_text(f"{folder}/sync_action")
        level = read_text(f"{folder}/level")
        # Of other levels it says how blocks are laid out, or -1 for a raid0 that has no choice of it.
        layout = optional_text(f"{folder}/layout") if level == "raid10" else None
        disks = read_text(f"{folder}/raid_disks")
        return Array(
            name=name,
            members=tuple(_members(folder, redundant=action is not None)),
            level=level,
            raid_disks=parse_present(disks) if disks else 0,
            metadata=optional_text(f"{folder}/metadata_version"),
            uuid=optional_text(f"{folder}/uuid"),
            degraded=optional_count(f"{folder}/degraded"),
            sync=None if action is None else _sync(folder, action),
            layout=None if layout is None else parse_present(layout),
            state=_state(folder),
        )


def parse_member_state(text: str, slot: int | None) -> MemberState:
    """One word for md's list of flags: what the member does for the array."""
    flags = frozenset(text.split(","))
    if "faulty" in flags:
        return "faulty"
    if "in_sync" in flags:
        return "active"
    if "journal" in flags:
        return "journal"
    if "spare" in flags:
        return "spare" if slot is None else "rebuilding"
    raise Malformed(f"expected md member flags such as 'in_sync,write_mostly', got {text[:40]!r}")


def parse_progress(text: str) -> float | None:
    """The share done of "81920 / 7501343744"; None for "none" and "delayed"."""
    if text in ("none", "delayed"):
        return None
    match = _PROGRESS.match(text)
    if match is None or not int(match[2]):
        raise Malformed(f"expected 'DONE / TOTAL' sectors, none or delayed, got {text[:40]!r}")
    return min(1.0, int(match[1]) / int(match[2]))


def parse_present(text: str) -> int:
    """The number in force now: during a reshape md writes "5 (4)", new and old."""
    match = _PRESENT.match(text)
    if match is None:
        raise Malformed(f"expected a number, or two during a reshape, got {text[:40]!r}")
    return int(match[1])


def parse_bad_blocks(text: str) -> int:
    """Bytes that are listed as bad: a line for each range of sectors."""
    ranges = [line.split() for line in text.splitlines()]
    if not all(len(words) == 2 and all(word.isdecimal() and len(word) <= 20 for word in words) for words in ranges):
        raise Malformed(f"expected lines of 'FIRST COUNT' sectors, got {text[:40]!r}")
    return sum(int(count) for _, count in ranges) * SECTOR_BYTES


def raid10_reachable(raid_disks: int, layout: int, slots: set[int]) -> bool:
    """Whether every block has a copy on one of the slots: copies lie on neighbours, around the end."""
    near = layout & 255
    copies = near * (layout >> 8 & 255)
    if not 0 < near <= copies <= raid_disks:
        return len(slots) == raid_disks
    return all(
        any((first + copy) % raid_disks in slots for copy in range(copies))
        for first in {step * near % raid_disks for step in range(raid_disks)}
    )


def _members(folder: str, *, redundant: bool) -> Iterator[Member]:
    for entry in names(folder):
        if entry.startswith("dev-"):
            # One that is taken out of the array just now is no fault of the array's reading.
            with suppress(Gone), listed(f"{folder}/{entry}"):
                yield _member(f"{folder}/{entry}", entry.removeprefix("dev-"), redundant=redundant)


def _member(folder: str, name: str, *, redundant: bool) -> Member:
    link = f"{folder}/block"
    slot_text = read_text(f"{folder}/slot")
    slot = int(slot_text) if slot_text.isdecimal() and len(slot_text) < 10 else None
    if os.path.islink(link) and not os.path.exists(link):
        return Member(name, "missing", slot)
    state = parse_member_state(read_text(f"{folder}/state"), slot)
    if not redundant:
        return Member(name, state, slot)
    return Member(name, state, slot, optional_count(f"{folder}/errors"), _bad_bytes(f"{folder}/bad_blocks"))


def _bad_bytes(path: str) -> int | None:
    try:
        return parse_bad_blocks(read_text(path))
    except (Absent, Unsupported):
        return None


def _state(folder: str) -> str:
    state = read_text(f"{folder}/array_state")
    if not state:
        raise Malformed(f"{folder}/array_state: expected a word such as clean, got nothing")
    return state


def _sync(folder: str, action: str) -> Sync:
    completed = optional_text(f"{folder}/sync_completed")
    speed = optional_count(f"{folder}/sync_speed")
    mismatched = optional_count(f"{folder}/mismatch_cnt")
    return Sync(
        action,
        None if completed is None else parse_progress(completed),
        None if speed is None else speed * 1024.0,
        None if mismatched is None else mismatched * SECTOR_BYTES,
    )


def _is_container(root: Root, name: str) -> bool:
    metadata = optional_text(f"{_folder(root, name)}/metadata_version") or ""
    return metadata.startswith("external:") and not metadata.startswith(("external:/", "external:-"))


def _folder(root: Root, name: str) -> str:
    return f"{root.sys}/block/{name}/md"
