"""Disks, md arrays and device mapper devices: the kernel's own I/O counters, and what each device is.

    /proc/diskstats    259 0 nvme0n1 29910 10001 1916626 8694 6838 11751 2346472 4422 0 6588 13448 3538 68 781 2 9 4
                       major minor name, then 11 numbers; 15 since Linux 4.18, 17 since 5.5 (Field names them)
    /sys/block/nvme0n1/size               7501476528      sectors of 512 bytes, whatever the drive's own sector is
    /sys/block/nvme0n1/queue/rotational   0
    /sys/block/nvme0n1/queue/scheduler    [none] mq-deadline
    /sys/block/nvme0n1/device/model       SAMSUNG MZQL23T8HCLS-00A07
    /sys/block/dm-0/dm/name               vg-root

Left out: partitions (their disk counts them), and ram, zram, loop, sr and fd devices, which have no drive behind them.

With native NVMe multipath, I/O goes to path devices (nvme0c1n1) that have no node in /dev. On kernels that do not
count at the namespace, nvme0n1 stays all zero; on those that do, both count. Disk.counting() says which to take.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum

from gpuhost_exporter.clock import Clock
from gpuhost_exporter.errors import Malformed, SourceError
from gpuhost_exporter.sources.files import (
    Root,
    names,
    optional_number,
    optional_text,
    read_count,
    read_dated,
    read_text,
)

SECTOR_BYTES = 512

_LEFT_OUT = re.compile(r"(?:ram|zram|loop|sr|fd)\d+\Z")
_PATH = re.compile(r"(nvme\d+)c\d+(n\d+)\Z")
_LENGTHS = (17, 15, 11)

# One line's numbers, in Field's order.
Fields = tuple[int, ...]


class Field(IntEnum):
    """Positions in Fields. Milliseconds are 32 bits wide and wrap; IN_FLIGHT is a level; the rest only grows."""

    READS = 0
    READ_MERGES = 1
    READ_SECTORS = 2
    READ_MILLISECONDS = 3
    WRITES = 4
    WRITE_MERGES = 5
    WRITTEN_SECTORS = 6
    WRITE_MILLISECONDS = 7
    IN_FLIGHT = 8
    BUSY_MILLISECONDS = 9
    WEIGHTED_MILLISECONDS = 10
    DISCARDS = 11
    DISCARD_MERGES = 12
    DISCARDED_SECTORS = 13
    DISCARD_MILLISECONDS = 14
    FLUSHES = 15
    FLUSH_MILLISECONDS = 16


_MILLISECONDS = frozenset(int(field) for field in Field if field.name.endswith("_MILLISECONDS"))
_GROWING = tuple(int(field) for field in Field if field not in _MILLISECONDS and field != Field.IN_FLIGHT)


@dataclass(frozen=True, slots=True)
class Disk:
    """A device's counters as the kernel gives them, and those of the multipath devices below it."""

    name: str
    fields: Fields
    paths: tuple[tuple[str, Fields], ...]

    def counting(self) -> dict[str, Fields]:
        """The devices whose counters are this disk's: itself, or its paths where only they count."""
        # Not by what is in flight: a level that comes and goes must not switch between the two.
        done = self.fields[: Field.IN_FLIGHT] + self.fields[Field.IN_FLIGHT + 1 :]
        if not self.paths or any(done):
            return {self.name: self.fields}
        return dict(self.paths)


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """What a device is. `mapping` is the name behind dm-N."""

    name: str
    size_bytes: int
    model: str | None
    scheduler: str | None
    rotational: bool | None
    mapping: str | None


@dataclass(frozen=True, slots=True)
class Stats:
    """The words behind each device's name, partitions included, at one moment."""

    at: float
    lines: Mapping[str, list[str]]

    def counters(self, wanted: Mapping[str, tuple[str, ...]]) -> dict[str, dict[str, Fields]]:
        """For each wanted device the counters of those that count for it: its own, or its multipath devices'.

        `wanted` names each device's multipath devices. One whose line is missing or torn is left out.
        """
        found = {}
        for name, paths in wanted.items():
            with suppress(Malformed):
                below = tuple((path, _fields_of(path, self.lines)) for path in paths)
                found[name] = Disk(name, _fields_of(name, self.lines), below).counting()
        return found


def read(root: Root) -> tuple[tuple[Disk, ...], dict[str, SourceError]]:
    """Every disk whose counters could be read, and the error of each that has none."""
    lines = split_diskstats(read_text(f"{root.proc}/diskstats"))
    disks: list[Disk] = []
    faults: dict[str, SourceError] = {}
    present = names(f"{root.sys}/block")
    paths = _paths_by_head(present)
    for name in present:
        if _LEFT_OUT.match(name) or _PATH.match(name):
            continue
        try:
            below = tuple((path, _fields_of(path, lines)) for path in paths.get(name, ()))
            disks.append(Disk(name, _fields_of(name, lines), below))
        except SourceError as error:
            faults[name] = error
    return tuple(disks), faults


def stats(root: Root, clock: Clock) -> Stats:
    text, at = read_dated(root, f"{root.proc}/diskstats", clock)
    return Stats(at, split_diskstats(text))


def drives(root: Root) -> dict[str, tuple[str, ...]]:
    """Disks that are neither put together from others (md, dm) nor without a drive, with their multipath devices."""
    present = names(f"{root.sys}/block")
    paths = _paths_by_head(present)
    return {
        name: tuple(paths.get(name, ()))
        for name in present
        if not (_LEFT_OUT.match(name) or _PATH.match(name) or name.startswith(("md", "dm-")))
    }


def describe(root: Root, name: str) -> BlockDevice:
    """What the device is. Raises SourceError when its size cannot be read."""
    folder = f"{root.sys}/block/{name}"
    scheduler = optional_text(f"{folder}/queue/scheduler")
    rotational = optional_number(f"{folder}/queue/rotational")
    return BlockDevice(
        name,
        read_count(f"{folder}/size") * SECTOR_BYTES,
        optional_text(f"{folder}/device/model"),
        parse_scheduler(scheduler) if scheduler else None,
        None if rotational is None else rotational != 0,
        optional_text(f"{folder}/dm/name"),
    )


def split_diskstats(text: str) -> dict[str, list[str]]:
    """The words behind each device's name; a line without a name is nobody's."""
    lines = (line.split() for line in text.splitlines())
    return {words[2]: words[3:] for words in lines if len(words) > 2}


def parse_fields(words: list[str]) -> Fields:
    """The numbers behind a device's name in /proc/diskstats; of a longer line those that are known."""
    length = next((length for length in _LENGTHS if len(words) >= length), 0)
    try:
        fields = tuple(map(int, words[:length]))
    except ValueError:
        fields = ()
    if not fields or min(fields) < 0:
        raise Malformed(f"expected 11, 15 or 17 counters, got {' '.join(words)[:60]!r}")
    return fields


def parse_scheduler(text: str) -> str | None:
    """The scheduler in use: the name in brackets, or the only one."""
    match = re.search(r"\[([^\]\s]+)\]", text)
    if match:
        return match[1]
    return text if re.fullmatch(r"\S+", text) else None


def growth(before: Fields | None, after: Fields) -> Fields:
    """What was added since `before`; without one, or when the counters started again, all but the time."""
    if before is None or restarted(before, after):
        return tuple(0 if position in _MILLISECONDS else value for position, value in enumerate(after))
    changes = [new - old for old, new in zip(before, after, strict=True)]
    changes[Field.IN_FLIGHT] = after[Field.IN_FLIGHT]
    for position in _MILLISECONDS:
        if position < len(changes) and changes[position] < 0:
            wrapped = changes[position] + (1 << 32)
            # A step back of a few jiffies is noise between processors, not a wrap.
            changes[position] = wrapped if wrapped < 1 << 31 else 0
    return tuple(changes)


def restarted(before: Fields, after: Fields) -> bool:
    """Whether another device now has the name: counters that never wrap went back."""
    if len(before) != len(after):
        return True
    return any(after[position] < before[position] for position in _GROWING if position < len(after))


def _fields_of(name: str, lines: Mapping[str, list[str]]) -> Fields:
    try:
        return parse_fields(lines[name])
    except KeyError:
        raise Malformed(f"/proc/diskstats: expected a line for {name}") from None
    except Malformed as error:
        raise Malformed(f"/proc/diskstats: {name}: {error}") from error


def _paths_by_head(present: tuple[str, ...]) -> dict[str, list[str]]:
    paths: dict[str, list[str]] = {}
    for name in present:
        if match := _PATH.match(name):
            paths.setdefault(match[1] + match[2], []).append(name)
    return paths
