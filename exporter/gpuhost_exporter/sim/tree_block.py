"""Disks and arrays of a simulated host: what /proc/diskstats, /proc/mdstat and /sys/block say of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gpuhost_exporter.sim.hosts import Array, Drive, HostSpec
from gpuhost_exporter.sim.timeline import Timeline

SECTOR = 512
_REQUEST = 256 * 1024
_SLOW_MEMBER = 2
# Where counters stood when the simulation began.
_READ_BEFORE = 6.1e13
_WRITTEN_BEFORE = 2.3e13
_SYSTEM_WRITE = 1.5e6  # bytes a second of logs and the like
_SYSTEM_READ = 2e4
_RECOVERY_RATE = 520e6  # bytes a second
_MERGED = 16  # requests of a member that one of the array becomes


@dataclass(frozen=True, slots=True)
class Counters:
    """A block device's, as the kernel counts them."""

    read_bytes: float
    written_bytes: float
    read_seconds: float
    write_seconds: float
    busy_seconds: float
    in_flight: tuple[int, int]  # reads, writes
    request_bytes: int = _REQUEST

    def fields(self, last: int) -> tuple[int, ...]:
        """The fields of diskstats, with `last` of those for discards and flushes."""
        reads, writes = int(self.read_bytes / self.request_bytes), int(self.written_bytes / self.request_bytes)
        weighted = int(1000 * (self.read_seconds + self.write_seconds))
        return (
            reads,
            reads // _MERGED,
            int(self.read_bytes / SECTOR),
            int(1000 * self.read_seconds) & 0xFFFFFFFF,
            writes,
            writes // _MERGED,
            int(self.written_bytes / SECTOR),
            int(1000 * self.write_seconds) & 0xFFFFFFFF,
            sum(self.in_flight),
            int(1000 * self.busy_seconds) & 0xFFFFFFFF,
            weighted & 0xFFFFFFFF,
            *(0,) * last,
        )


def drive(timeline: Timeline, which: Drive, seconds: float) -> Counters:
    host = timeline.host
    if which.name not in host.data_drives:
        written = _SYSTEM_WRITE * seconds
        return Counters(
            0.02 * _READ_BEFORE + _SYSTEM_READ * seconds,
            0.3 * _WRITTEN_BEFORE + written,
            4.1e3 + 1e-4 * seconds,
            9.2e4 + written / 1e9,
            5.5e4 + written / 1.2e9,
            (0, 0),
        )
    levels, totals = timeline.host_levels(seconds)
    share = 1 / len(host.data_drives)
    slow = float(is_slow_member(host, which))
    return Counters(
        read_bytes=share * (_READ_BEFORE + totals.disk_read),
        written_bytes=share * (_WRITTEN_BEFORE + totals.disk_write),
        read_seconds=3.1e5 + totals.read_queue + slow * totals.slow_queue,
        write_seconds=1.2e5 + totals.write_queue,
        busy_seconds=1.9e5 + totals.disk_busy + slow * totals.slow_busy,
        in_flight=(round(levels.read_queue + slow * levels.slow_queue), round(levels.write_queue)),
    )


def is_slow_member(host: HostSpec, which: Drive) -> bool:
    """Whether it is the data drive that is slow in scenarios."""
    drives = host.data_drives
    return which.name in drives and drives.index(which.name) == _SLOW_MEMBER % len(drives)


def array(timeline: Timeline, which: Array, seconds: float) -> Counters:
    """An array's: a stripe's bytes are the sum of its members', a mirror's writes are one member's."""
    host = timeline.host
    drives = [found for found in host.drives if found.name in {name.removesuffix("p2") for name in which.members}]
    members = [drive(timeline, found, seconds) for found in drives]
    copies = len(members) if which.level == "raid1" else 1
    timed = host.system.discard_and_flush > 4  # kernels since 5.11 or so keep time for md
    return Counters(
        read_bytes=sum(member.read_bytes for member in members),
        written_bytes=sum(member.written_bytes for member in members) / copies,
        read_seconds=timed * sum(member.read_seconds for member in members),
        write_seconds=timed * sum(member.write_seconds for member in members) / copies,
        busy_seconds=timed * max(member.busy_seconds for member in members),
        in_flight=(0, 0),
        request_bytes=2 * _REQUEST,
    )


def present(timeline: Timeline, seconds: float) -> tuple[Drive, ...]:
    """The drives that serve blocks at that moment."""
    host = timeline.host
    gone = {pulled(timeline, seconds)}
    if timeline.active("drive_failed", seconds) is not None:
        gone.add(host.failing_drive)
    return tuple(found for found in host.drives if found.name not in gone)


def pulled(timeline: Timeline, seconds: float) -> str:
    """The drive that is not in its slot at that moment, nothing where all are."""
    fault = timeline.active("drive_pulled", seconds)
    return timeline.host.drives[fault.drive].name if fault else ""


def diskstats(timeline: Timeline, seconds: float) -> str:
    """
    259       0 nvme0n1 58174133 3635883 29785156250 310000 ...
    259      17 nvme4n1p1 412 25 210944 71 ...
    """
    last = timeline.host.system.discard_and_flush
    lines = []
    for which in present(timeline, seconds):
        counters = drive(timeline, which, seconds)
        major, minor = which.number
        lines.append(_row(major, minor, which.name, counters.fields(last)))
        for number, (name, _) in enumerate(partitions(which), 1):
            own = counters if number == len(which.partitions) else _UNUSED
            lines.append(_row(major, minor + number, name, own.fields(last)))
    lines += [
        _row(9, which.number, which.name, array(timeline, which, seconds).fields(last))
        for which in timeline.host.arrays
    ]
    return "\n".join(lines)


_UNUSED = Counters(1.1e8, 4096.0, 0.07, 0.001, 0.06, (0, 0))


def _row(major: int, minor: int, name: str, fields: tuple[int, ...]) -> str:
    return f"{major:4d} {minor:7d} {name} {' '.join(map(str, fields))}"


def stat(fields: tuple[int, ...]) -> str:
    """/sys/block/X/stat: the same numbers, each at least eight wide."""
    return " ".join(f"{value:8d}" for value in fields)


def partitions(which: Drive) -> Iterator[tuple[str, int]]:
    """(name, sectors) of a drive's partitions."""
    for number, sectors in enumerate(which.partitions, 1):
        yield f"{which.name}p{number}", sectors


@dataclass(frozen=True, slots=True)
class ArrayState:
    """A mirror's or a stripe's health. `recovered` is the share that a recovery has done, None without one."""

    faulty: tuple[str, ...] = ()
    recovered: float | None = None


def array_state(timeline: Timeline, which: Array, seconds: float) -> ArrayState:
    host = timeline.host
    if which.name != host.system_array:
        return ArrayState()
    if timeline.active("drive_failed", seconds) is not None:
        return ArrayState(faulty=(which.members[-1],))
    recovery = timeline.active("array_recovering", seconds)
    if recovery is not None:
        # A bitmap says what changed while the drive was away: only the rest of the array is copied.
        left = _RECOVERY_RATE * (recovery.until - seconds) / (which.sectors * SECTOR)
        return ArrayState((), max(0.0, 1 - left))
    return ArrayState()


def md_files(which: Array, state: ArrayState) -> dict[str, str]:
    """The files of /sys/block/mdX/md."""
    files = {
        "level": which.level,
        "raid_disks": str(len(which.members)),
        "array_state": "clean",
        "metadata_version": "1.2",
        "chunk_size": str(which.chunk_bytes),
    }
    recovering = state.recovered is not None
    for slot, member in enumerate(which.members):
        last = slot == len(which.members) - 1
        word = "faulty" if member in state.faulty else "spare" if recovering and last else "in_sync"
        files[f"dev-{member}/state"] = word
        files[f"dev-{member}/errors"] = "0"
        files[f"dev-{member}/bad_blocks"] = ""
        files[f"dev-{member}/slot"] = "none" if word == "faulty" else str(slot)
    if which.level == "raid1":
        done = int(which.sectors * (state.recovered or 0.0))
        files |= {
            "degraded": str(int(bool(state.faulty) or recovering)),
            "sync_action": "recover" if recovering else "idle",
            "sync_completed": f"{done} / {which.sectors}" if recovering else "none",
            "sync_speed": str(int(_RECOVERY_RATE / 1024)) if recovering else "none",
            "mismatch_cnt": "0",
        }
    return files


def mdstat(host: HostSpec, states: dict[str, ArrayState]) -> str:
    """
    Personalities : [raid0] [raid1]
    md127 : active raid1 nvme5n1p2[1] nvme4n1p2[0]
          937036992 blocks super 1.2 [2/2] [UU]
    """
    levels = sorted({which.level for which in host.arrays})
    lines = [f"Personalities : {''.join(f'[{level}] ' for level in levels)}"]
    for which in sorted(host.arrays, key=lambda found: -found.number):
        state = states[which.name]
        members = " ".join(
            f"{member}[{slot}]{'(F)' if member in state.faulty else ''}"
            for slot, member in reversed(list(enumerate(which.members)))
        )
        lines.append(f"{which.name} : active {which.level} {members}")
        blocks = f"      {which.sectors // 2} blocks super 1.2"
        if which.level == "raid0":
            lines += [f"{blocks} {which.chunk_bytes // 1024}k chunks", "      "]
            continue
        count = len(which.members)
        up = count - bool(state.faulty or state.recovered is not None)
        lines.append(f"{blocks} [{count}/{up}] [{'U' * up}{'_' * (count - up)}]")
        if state.recovered is not None:
            lines.append(_progress(which, state.recovered))
        lines.append("      ")
    return "\n".join([*lines, "unused devices: <none>"])


def _progress(which: Array, share: float) -> str:
    total = which.sectors // 2
    speed = int(_RECOVERY_RATE / 1024)
    bar = "=" * int(20 * share)
    return (
        f"      [{bar}>{'.' * (20 - len(bar))}]  recovery = {100 * share:.1f}% ({int(total * share)}/{total}) "
        f"finish={(1 - share) * total / speed / 60:.1f}min speed={speed}K/sec"
    )
