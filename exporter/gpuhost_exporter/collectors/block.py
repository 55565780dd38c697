"""Disks: bytes, operations and time, from the kernel's counters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from gpuhost_exporter.collector import Collector
from gpuhost_exporter.host import Host
from gpuhost_exporter.sources import block
from gpuhost_exporter.sources.block import SECTOR_BYTES, BlockDevice, Disk, Field, Fields, growth, restarted
from gpuhost_exporter.specs import Sample, Spec, counter, gauge, info

READ_BYTES = counter(
    "gpuhost_block_read_bytes_total",
    "Bytes read from the device since it appeared. An array's bytes are its members' bytes too: never add both.",
    "device",
)
WRITTEN_BYTES = counter(
    "gpuhost_block_written_bytes_total",
    "Bytes written to the device since it appeared. An array's bytes are its members' bytes too: never add both.",
    "device",
)
READS = counter("gpuhost_block_reads_completed_total", "Reads completed since the device appeared.", "device")
WRITES = counter("gpuhost_block_writes_completed_total", "Writes completed since the device appeared.", "device")
READ_SECONDS = counter(
    "gpuhost_block_read_seconds_total",
    "Seconds that reads took, added up over reads, since this exporter started. "
    "Its rate divided by that of reads completed is the mean latency: under 0.001 is good for NVMe.",
    "device",
)
WRITE_SECONDS = counter(
    "gpuhost_block_write_seconds_total",
    "Seconds that writes took, added up over writes, since this exporter started. "
    "Its rate divided by that of writes completed is the mean latency: under 0.001 is good for NVMe.",
    "device",
)
IO_SECONDS = counter(
    "gpuhost_block_io_seconds_total",
    "Seconds with any I/O under way since this exporter started. A rate of 1 is a busy drive, "
    "not a saturated one: NVMe works in parallel.",
    "device",
)
WEIGHTED_SECONDS = counter(
    "gpuhost_block_weighted_io_seconds_total",
    "Seconds of I/O weighted by how many were under way, since this exporter started. "
    "Its rate is the mean queue depth.",
    "device",
)
IN_FLIGHT = gauge("gpuhost_block_in_flight", "Reads and writes under way at the moment of reading.", "device")
DISCARDS = counter(
    "gpuhost_block_discards_completed_total", "Discards (TRIM) completed since the device appeared.", "device"
)
DISCARDED_BYTES = counter(
    "gpuhost_block_discarded_bytes_total", "Bytes discarded (TRIM) since the device appeared.", "device"
)
DISCARD_SECONDS = counter(
    "gpuhost_block_discard_seconds_total",
    "Seconds that discards took, added up over discards, since this exporter started.",
    "device",
)
FLUSHES = counter(
    "gpuhost_block_flushes_completed_total", "Cache flushes completed since the device appeared.", "device"
)
FLUSH_SECONDS = counter(
    "gpuhost_block_flush_seconds_total",
    "Seconds that cache flushes took, added up over flushes, since this exporter started.",
    "device",
)
SIZE = gauge("gpuhost_block_size_bytes", "Size of the device in bytes.", "device")
INFO = info(
    "gpuhost_block_info",
    "What the device is: model, I/O scheduler, whether it rotates, and the device mapper's name of a dm device.",
    "device",
    "model",
    "scheduler",
    "rotational",
    "mapping",
)

# What an array's own queue does not tell on kernels that keep no time for it: all of these read 0 then.
_TIMES = (
    (READ_SECONDS, Field.READ_MILLISECONDS),
    (WRITE_SECONDS, Field.WRITE_MILLISECONDS),
    (IO_SECONDS, Field.BUSY_MILLISECONDS),
    (WEIGHTED_SECONDS, Field.WEIGHTED_MILLISECONDS),
    (DISCARD_SECONDS, Field.DISCARD_MILLISECONDS),
    (FLUSH_SECONDS, Field.FLUSH_MILLISECONDS),
)
_COUNTS = (
    (READ_BYTES, Field.READ_SECTORS, SECTOR_BYTES),
    (WRITTEN_BYTES, Field.WRITTEN_SECTORS, SECTOR_BYTES),
    (READS, Field.READS, 1),
    (WRITES, Field.WRITES, 1),
    (DISCARDS, Field.DISCARDS, 1),
    (DISCARDED_BYTES, Field.DISCARDED_SECTORS, SECTOR_BYTES),
    (FLUSHES, Field.FLUSHES, 1),
)

DESCRIBE_SECONDS = 60.0


class BlockCollector(Collector):
    name: ClassVar[str] = "block"
    help: ClassVar[str] = "Bytes, operations, latency and queue depth of disks and arrays"
    source: ClassVar[str] = "/proc/diskstats, /sys/block"
    interval: ClassVar[float] = 1.0
    specs: ClassVar[tuple[Spec, ...]] = (
        *(spec for spec, _, _ in _COUNTS),
        *(spec for spec, _ in _TIMES),
        IN_FLIGHT,
        SIZE,
        INFO,
    )

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._accounts: dict[str, Account] = {}
        self._devices: dict[str, BlockDevice] = {}
        self._described: set[str] | None = None
        self._described_at = 0.0

    def poll(self, now: float) -> Iterator[Sample]:
        disks, faults = block.read(self.host.root)
        for device, error in faults.items():
            self.fault(device, error)
        # A device that is there but could not be read keeps its account: its counters go on where they were.
        present = {disk.name for disk in disks} | faults.keys()
        self._accounts = {name: account for name, account in self._accounts.items() if name in present}
        for disk in disks:
            self.recovered(disk.name)
            account = self._accounts.get(disk.name)
            if account is None:
                account = self._accounts[disk.name] = Account()
            account.add(disk)
            yield from _samples(disk, account.totals)
        yield from self._descriptions(present, now)

    def _descriptions(self, present: set[str], now: float) -> Iterator[Sample]:
        if present != self._described or now - self._described_at >= DESCRIBE_SECONDS:
            self._described, self._described_at = present, now
            self._devices = {}
            for name in sorted(present):
                with self.guard(f"{name} description"):
                    self._devices[name] = block.describe(self.host.root, name)
        self.post("block", tuple(self._devices.values()))
        for device in self._devices.values():
            yield SIZE(device.name, value=device.size_bytes)
            rotational = "" if device.rotational is None else str(int(device.rotational))
            yield INFO(device.name, device.model or "", device.scheduler or "", rotational, device.mapping or "")


class Account:
    """One disk's counters, which survive 32-bit wraps and a change of the devices that count for it.

    What the kernel keeps in 64 bits goes on from the kernel's value. Milliseconds start at 0: resumed from a
    wrapped value after a restart of the exporter, they would look like a jump of weeks.
    """

    __slots__ = ("_last", "totals")

    def __init__(self) -> None:
        self.totals: Fields = ()
        self._last: dict[str, Fields] = {}

    def add(self, disk: Disk) -> None:
        counting = disk.counting()
        known = self._last
        if not self.totals or (disk.name in known and restarted(known[disk.name], disk.fields)):
            self.totals = (0,) * len(disk.fields)
            known = {}
        levels = [0] * len(disk.fields)
        levels[: Field.IN_FLIGHT] = self.totals[: Field.IN_FLIGHT]
        levels[Field.IN_FLIGHT + 1 :] = self.totals[Field.IN_FLIGHT + 1 :]
        for name, fields in counting.items():
            for position, change in enumerate(growth(known.get(name), fields)):
                levels[position] += change
        self.totals = tuple(levels)
        self._last = {**known, disk.name: disk.fields, **dict(disk.paths)}


def _samples(disk: Disk, totals: Fields) -> Iterator[Sample]:
    length = len(totals)
    for spec, field, factor in _COUNTS:
        if field < length:
            yield spec(disk.name, value=totals[field] * factor)
    if disk.name.startswith("md") and not any(disk.fields[field] for _, field in _TIMES if field < length):
        return
    yield IN_FLIGHT(disk.name, value=totals[Field.IN_FLIGHT])
    for spec, field in _TIMES:
        if field < length:
            yield spec(disk.name, value=totals[field] / 1000)
