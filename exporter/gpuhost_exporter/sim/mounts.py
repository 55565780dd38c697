"""File systems of a simulated host: /proc/self/mountinfo, /proc/self/mountstats, and what statvfs() would answer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from gpuhost_exporter.sim.hosts import HostSpec
from gpuhost_exporter.sim.timeline import Timeline

_BLOCK = 4096
_USED = 0.4  # share of a file system when the simulation began
_KEPT = 1.5e12  # bytes of checkpoints that the job keeps before it deletes them
_SERVER = "filer1:/export/home"
_HOME = "/home"
_REQUEST = 1 << 20
_FIRST_ID = 27
_CALLS = 350_000  # operations before the simulation began


@dataclass(frozen=True, slots=True)
class FileSystem:
    point: str
    kind: str
    source: str
    number: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Room:
    f_frsize: int
    f_blocks: int
    f_bavail: int


def file_systems(host: HostSpec) -> tuple[FileSystem, ...]:
    return tuple(_file_systems(host))


def _file_systems(host: HostSpec) -> Iterator[FileSystem]:
    arrays = {array.name: array for array in host.arrays}
    system = next((drive for drive in host.drives if drive.partitions), host.drives[0])
    major, minor = system.number
    if host.system_array:
        mirror = arrays[host.system_array]
        yield FileSystem("/", "ext4", f"/dev/{mirror.name}", f"9:{mirror.number}", mirror.sectors * 512)
    elif system.partitions:
        yield FileSystem("/", "ext4", f"/dev/{system.name}p2", f"{major}:{minor + 2}", system.partitions[1] * 512)
    else:
        yield FileSystem("/", "ext4", f"/dev/{system.name}", f"{major}:{minor}", system.sectors * 512)
    if system.partitions:
        yield FileSystem(
            "/boot/efi", "vfat", f"/dev/{system.name}p1", f"{major}:{minor + 1}", system.partitions[0] * 512
        )
    if host.data_array:
        array = arrays[host.data_array]
        yield FileSystem("/data", "xfs", f"/dev/{array.name}", f"9:{array.number}", array.sectors * 512)
    else:
        for drive in host.drives:
            if drive.name in host.data_drives and drive is not system:
                number = f"{drive.number[0]}:{drive.number[1]}"
                yield FileSystem("/data", "xfs", f"/dev/{drive.name}", number, drive.sectors * 512)


def checkpoint_mount(host: HostSpec) -> tuple[int, str]:
    """(id in mountinfo, mount point) of where jobs write their checkpoints: /data where there is one."""
    points = {found.point: number for number, found in enumerate(file_systems(host), _FIRST_ID)}
    point = "/data" if "/data" in points else "/"
    return points[point], point


def mountinfo(host: HostSpec) -> str:
    lines = [
        "22 27 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw",
        "23 27 0:22 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw",
        "25 27 0:24 / /run rw,nosuid,nodev shared:5 - tmpfs tmpfs rw,size=26417660k,mode=755",
    ]
    lines += [
        f"{number} 1 {found.number} / {found.point} rw,noatime shared:{number} - {found.kind} {found.source} rw"
        for number, found in enumerate(file_systems(host), _FIRST_ID)
    ]
    if _has_home(host):
        lines.append(f"41 27 0:52 / {_HOME} rw,relatime shared:41 - nfs4 {_SERVER} rw,vers=4.2,proto=tcp")
    return "\n".join(lines)


def mountstats(timeline: Timeline, seconds: float) -> str:
    """The host's local mounts, and home folders that a server of the front end's network keeps."""
    lines = [f"device {found.source} mounted on {found.point} with fstype {found.kind}"
             for found in file_systems(timeline.host)]  # fmt: skip
    if _has_home(timeline.host):
        moved = timeline.host_levels(seconds)[1].frontend
        read, written = int(0.5 * moved), int(0.3 * moved)
        lines += [
            f"device {_SERVER} mounted on {_HOME} with fstype nfs4 statvers=1.1",
            f"\tage:\t{int(timeline.control.started_at + seconds)}",
            f"\tbytes:\t{read} {written} 0 0 {read} {written} {read // 4096} {written // 4096}",
            "\tper-op statistics",
            _operation("READ", read // _REQUEST, 0.002),
            _operation("WRITE", written // _REQUEST, 0.004),
            _operation("COMMIT", written // (16 * _REQUEST), 0.006),
            _operation("GETATTR", _CALLS + int(12 * seconds), 0.0004),
        ]
    return "\n".join(lines)


def rooms(timeline: Timeline, seconds: float) -> str:
    """What statvfs() answers, a line a file system: block size, blocks, free blocks, mount point."""
    kept = timeline.host_levels(seconds)[1].job_write % _KEPT
    lines = []
    for found in file_systems(timeline.host):
        blocks = found.size_bytes // _BLOCK
        free = blocks * (1 - _USED) - (kept / _BLOCK if found.point == "/data" else 0)
        lines.append(f"{_BLOCK} {blocks} {max(0, int(free))} {found.point}")
    return "\n".join(lines)


class Statvfs:
    """Stands for os.statvfs, which knows no other root: it answers for the simulated host whose tree is in `folder`."""

    def __init__(self, folder: str) -> None:
        self._path = f"{folder}/rooms"

    def __call__(self, point: str) -> Room:
        with open(self._path, encoding="utf-8") as file:
            for line in file:
                size, blocks, free, name = line.rstrip("\n").split(" ", 3)
                if name == point:
                    return Room(int(size), int(blocks), int(free))
        raise FileNotFoundError(2, os.strerror(2), point)


def _has_home(host: HostSpec) -> bool:
    return any(not port.compute for port in host.ports)


def _operation(name: str, count: int, latency: float) -> str:
    taken = int(1000 * latency * count)
    return f"\t{name:>12}: {count} {count} 0 {200 * count} {150 * count} {taken // 10} {taken // 2} {taken} 0"
