"""Software RAID arrays: whether their data can be reached, their members, and rebuilding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from gpuhost_exporter.board import Listed
from gpuhost_exporter.collector import Collector
from gpuhost_exporter.errors import SourceError
from gpuhost_exporter.sources import raid
from gpuhost_exporter.specs import Sample, Spec, counter, gauge, info

UP = gauge(
    "gpuhost_array_up",
    "Whether md serves the array and the members that hold its data are there (1). "
    "A RAID0 without one of its drives is 0 at once, though md still calls it clean, and so is an array that was here "
    "or is configured and is not there.",
    "device",
)
INFO = info(
    "gpuhost_array_info",
    "The array's RAID level, metadata version and UUID as the kernel tells them.",
    "device",
    "level",
    "metadata",
    "uuid",
)
EXPECTED = gauge("gpuhost_array_members_expected", "Members that the array is made of, spares not counted.", "device")
MEMBERS = gauge(
    "gpuhost_array_members",
    "Members by state. Good is every expected member active, none missing and none faulty.",
    "device",
    "state",
)
MEMBER_UP = gauge(
    "gpuhost_array_member_up",
    "Whether this member does its part (1): active, or a spare or journal device in order. "
    "A member that rebuilds, failed or is gone is 0.",
    "device",
    "member",
)
DEGRADED = gauge(
    "gpuhost_array_degraded_members",
    "Members that md misses, by its own count. Good is 0. Absent for levels without redundancy, such as RAID0.",
    "device",
)
SYNC = gauge(
    "gpuhost_array_sync_action",
    "What md does for the array's redundancy: 1 for the action under way, idle when none. "
    "A recovery or check takes bandwidth from the job. Absent for levels without redundancy.",
    "device",
    "action",
)
PROGRESS = gauge(
    "gpuhost_array_sync_progress_ratio",
    "Share done of the recovery, resync, check or reshape under way, 0 to 1. Absent when none is.",
    "device",
)
SPEED = gauge(
    "gpuhost_array_sync_bytes_per_second",
    "Speed of the recovery, resync, check or reshape under way in bytes a second. Absent when none is.",
    "device",
)
MISMATCHED = gauge(
    "gpuhost_array_mismatched_bytes",
    "Bytes that the last check or repair found to differ between members, 0 before the first. Good is 0; a mirror that "
    "holds swap may differ harmlessly. Absent for levels without redundancy.",
    "device",
)
CORRECTED = counter(
    "gpuhost_array_member_corrected_errors_total",
    "Read errors of the member that md made good from the others, by its own count, kept in the member. Good is no "
    "increase: the drive is failing. Absent for levels without redundancy.",
    "device",
    "member",
)
BAD = gauge(
    "gpuhost_array_member_bad_bytes",
    "Bytes of the member that could not be read or written and that md now keeps on the other members only. Good is 0. "
    "Absent for levels without redundancy.",
    "device",
    "member",
)

_IN_ORDER = frozenset({"active", "spare", "journal"})


class RaidCollector(Collector):
    name: ClassVar[str] = "raid"
    help: ClassVar[str] = "Software RAID arrays: reachable, members, rebuilding"
    source: ClassVar[str] = "/sys/block/md*/md"
    interval: ClassVar[float] = 5.0
    subsystems: ClassVar[frozenset[str]] = frozenset({"block"})
    specs: ClassVar[tuple[Spec, ...]] = (
        UP,
        INFO,
        EXPECTED,
        MEMBERS,
        MEMBER_UP,
        DEGRADED,
        SYNC,
        PROGRESS,
        SPEED,
        MISMATCHED,
        CORRECTED,
        BAD,
    )

    def poll(self, now: float) -> Iterator[Sample]:
        arrays: list[raid.Array] = []
        try:
            listed = raid.arrays(self.host.root)
        except SourceError:
            self.post("listed arrays", None)
            raise
        for name in listed:
            with self.guard(name):
                array = raid.read(self.host.root, name)
                arrays.append(array)
                yield from _samples(array)
        self.post("arrays", tuple(arrays))
        identities = {array.name: _identity(array) for array in arrays}
        self.post("listed arrays", tuple(Listed(name, identities.get(name)) for name in listed))
        # A stopped or lost array leaves nothing behind to read; inventory knows that it should be there.
        for name in self.host.board.last("missing arrays", tuple, now) or ():
            if name not in listed:
                yield UP(name, value=0)


def _identity(array: raid.Array) -> str:
    """Its UUID; its name where none is told, or only zeros: it is not assembled yet, or has no superblock."""
    return array.uuid if array.uuid and array.uuid.strip("0-") else array.name


def _samples(array: raid.Array) -> Iterator[Sample]:
    yield UP(array.name, value=float(array.reachable()))
    yield INFO(array.name, array.level, array.metadata or "", array.uuid or "")
    if array.raid_disks:
        yield EXPECTED(array.name, value=array.raid_disks)
    for state in raid.MEMBER_STATES:
        yield MEMBERS(array.name, state, value=array.count(state))
    for member in array.members:
        yield MEMBER_UP(array.name, member.name, value=float(member.state in _IN_ORDER))
        if member.corrected_errors is not None:
            yield CORRECTED(array.name, member.name, value=member.corrected_errors)
        if member.bad_bytes is not None:
            yield BAD(array.name, member.name, value=member.bad_bytes)
    if array.degraded is not None:
        yield DEGRADED(array.name, value=array.degraded)
    if array.sync is not None:
        for action in raid.SYNC_ACTIONS:
            yield SYNC(array.name, action, value=float(array.sync.action == action))
        if array.sync.mismatched_bytes is not None:
            yield MISMATCHED(array.name, value=array.sync.mismatched_bytes)
        if array.sync.done_ratio is not None:
            yield PROGRESS(array.name, value=array.sync.done_ratio)
            if array.sync.bytes_per_second is not None:
                yield SPEED(array.name, value=array.sync.bytes_per_second)
