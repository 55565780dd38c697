"""What each array and each drive in none delivers while it is asked for more, and what it could."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar

from gpuhost_exporter.collector import Collector
from gpuhost_exporter.errors import SourceError
from gpuhost_exporter.host import Host
from gpuhost_exporter.saturation import DIRECTIONS, LARGE_BYTES, LIMITS, Counting, PageCache, Reading, Saturation
from gpuhost_exporter.sources import block, mounts, pagecache, pressure, volumes
from gpuhost_exporter.sources.block import SECTOR_BYTES, Field
from gpuhost_exporter.sources.volumes import Volume
from gpuhost_exporter.specs import Sample, Spec, counter, gauge

SATURATED_SECONDS = counter(
    "gpuhost_storage_saturated_seconds_total",
    "Seconds in which the array, or the drive in no array, was asked for more than it gave: large blocks, four "
    "requests or more waiting at a drive that is busy all the time. 0 under small random I/O, when idle, and while "
    "md rebuilds.",
    "device",
    "direction",
)
SATURATED_BYTES = counter(
    "gpuhost_storage_saturated_bytes_total",
    "Bytes moved in those seconds. Its increase divided by that of gpuhost_storage_saturated_seconds_total is what "
    "the storage delivers under demand: compare it with gpuhost_storage_target_bytes_per_second.",
    "device",
    "direction",
)
LIMITED = counter(
    "gpuhost_storage_limited_seconds_total",
    "Seconds held back, by what: array (most members are saturated), member (one is and the others wait for it) or "
    "submitter (tasks wait for large buffered writes that the kernel hands out too slowly to keep the drives busy).",
    "device",
    "by",
)
LIMITING = counter(
    "gpuhost_storage_member_limited_seconds_total",
    "Seconds in which this member held the array back while its siblings waited for it. Good is 0.",
    "device",
    "member",
)
LATENCY_RATIO = gauge(
    "gpuhost_storage_member_latency_ratio",
    "The member's mean latency as a multiple of the median of its siblings', over the last minute of I/O. About 1 is "
    "good. Absent until each member has done a request a second.",
    "device",
    "member",
)
TARGET = gauge(
    "gpuhost_storage_target_bytes_per_second",
    "Throughput under demand that counts as good, and below which it is poor: the guide's or the site's, at most "
    "what the PCIe links of the drives let through. Absent for mirrors, for what holds the operating system, and for "
    "drives whose link is not known (SATA, SAS, virtual, behind a RAID controller) unless the site sets the figure.",
    "device",
    "direction",
    "band",
)

_LAYOUT_SECONDS = 15.0
_SETTLING_SECONDS = 5.0  # a device is listed before all of its files are there
_TARGET_SECONDS = 120.0
_OPERATING_SYSTEM = ("/", "/boot", "/boot/efi", "/usr")


class StorageCollector(Collector):
    name: ClassVar[str] = "storage"
    help: ClassVar[str] = "What arrays deliver while asked for more, what holds them back, and their targets"
    source: ClassVar[str] = "/proc/diskstats, /proc/vmstat, /proc/pressure/io, /sys/block/md*/md, PCIe links"
    interval: ClassVar[float] = 1.0
    subsystems: ClassVar[frozenset[str]] = frozenset({"block"})
    specs: ClassVar[tuple[Spec, ...]] = (
        SATURATED_SECONDS,
        SATURATED_BYTES,
        LIMITED,
        LIMITING,
        LATENCY_RATIO,
        TARGET,
    )

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._longest = 3 * self.seconds_between_polls()
        self._volumes: tuple[Volume, ...] = ()
        self._wanted: dict[str, tuple[str, ...]] = {}
        self._folds: dict[str, tuple[Volume, Saturation]] = {}
        self._listed: frozenset[str] = frozenset()
        self._targets: tuple[Sample, ...] = ()
        self._found_at = self._aimed_at = self._settled_at = float("-inf")

    def poll(self, now: float) -> Iterator[Sample]:
        stats = block.stats(self.host.root, self.host.clock)
        if stats.lines.keys() != self._listed:  # a drive or an array came or left
            self._listed, self._settled_at = frozenset(stats.lines), now + _SETTLING_SECONDS
        if now <= self._settled_at or now - self._found_at >= _LAYOUT_SECONDS:
            self._find(now)
        counters = stats.counters(self._wanted)
        cache = self._page_cache(counters)
        for volume, fold in self._folds.values():
            if not volume.synchronizing and all(member in counters for member in volume.members):
                members = {member: counters[member] for member in volume.members}
                own = None if volume.striped else counters.get(volume.name)
                fold.add(Reading(stats.at, members, own, cache))
            yield from _samples(volume, fold)
        yield from self._targets

    def _find(self, now: float) -> None:
        root = self.host.root
        found, paths, faults = volumes.read(root)
        for name, error in faults.items():
            self.fault(name, error)
        for volume in found:
            self.recovered(volume.name)
        before = self._volumes
        # An array that could not be read goes on as it was known.
        self._volumes = found + tuple(volume for volume in self._volumes if volume.name in faults)
        folds = {}
        for volume in self._volumes:
            known = self._folds.get(volume.name)
            fold = known[1] if known else Saturation(large=_large(volume), longest=self._longest)
            folds[volume.name] = volume, fold
        self._folds = folds
        needed = [name for volume in self._volumes for name in (*volume.members, volume.name)]
        self._wanted = {name: paths.get(name, ()) for name in needed}
        self._found_at = now
        if now - self._aimed_at >= _TARGET_SECONDS or self._volumes != before:
            self._targets = tuple(self._aims())
            self._aimed_at = now

    def _aims(self) -> Iterator[Sample]:
        rates = volumes.link_rates(self.host.root)
        guide, site = self.host.targets.guide, self.host.targets.site
        bands = {"good": "storage_good_bytes_per_second", "poor": "storage_poor_bytes_per_second"}
        spared = self._operating_system()
        for volume in self._volumes:
            if volume.level == "raid1" or volume.name in spared:
                continue
            can = volumes.deliverable(volume, rates)
            # What its drives can do bounds the target; where nothing tells that, only the site can say what to ask.
            for direction, most in zip(DIRECTIONS, can or (math.inf, math.inf), strict=True):
                share = min(1.0, most / guide.storage_good_bytes_per_second)
                for band, figure in bands.items():
                    if can or figure in site:
                        yield TARGET(volume.name, direction, band, value=getattr(guide, figure) * share)

    def _operating_system(self) -> frozenset[str]:
        """Arrays and drives that the operating system is on."""
        try:
            found = mounts.local(self.host.root, mounts.read(self.host.root))
        except SourceError:
            return frozenset()
        stacks = [known.stack for known in found if known.mount.point in _OPERATING_SYSTEM]
        return frozenset(name for stack in stacks for name in (*stack.arrays, *stack.drives))

    def _page_cache(self, counters: Mapping[str, Counting]) -> PageCache | None:
        root = self.host.root
        try:
            memory = pagecache.read(root)
        except SourceError:
            return None
        try:
            stalled = next((s.seconds for s in pressure.read(root, "io") if s.kind == "some"), None)
        except SourceError:
            stalled = None  # the kernel keeps no pressure figures
        moved = sum(
            fields[Field.READ_SECTORS] + fields[Field.WRITTEN_SECTORS]
            for volume in self._volumes
            for member in volume.members
            for fields in counters.get(member, {}).values()
        )
        return PageCache(memory.written, moved * SECTOR_BYTES, memory.throttled(), stalled)


def _large(volume: Volume) -> float:
    """Bytes of a mean request from which a load is sequential: less where none can be so large."""
    largest = volume.largest_request
    return LARGE_BYTES if largest is None else min(LARGE_BYTES, 0.75 * largest)


def _samples(volume: Volume, fold: Saturation) -> Iterator[Sample]:
    totals, name = fold.totals, volume.name
    for direction in DIRECTIONS:
        yield SATURATED_SECONDS(name, direction, value=totals.saturated_seconds[direction])
        yield SATURATED_BYTES(name, direction, value=totals.saturated_bytes[direction])
    for by in LIMITS:
        yield LIMITED(name, by, value=totals.limited_seconds[by])
    if len(volume.members) > 1:
        for member, seconds in {**dict.fromkeys(volume.members, 0.0), **totals.limiting_seconds}.items():
            yield LIMITING(name, member, value=seconds)
    for member, ratio in fold.ratios.items():
        yield LATENCY_RATIO(name, member, value=ratio)
