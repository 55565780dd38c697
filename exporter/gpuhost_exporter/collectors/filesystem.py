"""Mounted file systems on the host's own drives: the room on them, and which drives are below."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from gpuhost_exporter.collector import Collector
from gpuhost_exporter.sources import bypass, mounts
from gpuhost_exporter.sources.bypass import Bypass
from gpuhost_exporter.specs import Sample, Spec, gauge, info

INFO = info(
    "gpuhost_filesystem_info",
    "Where a local file system is mounted, on which device, and the md array that this rests on, if any.",
    "mountpoint",
    "device",
    "fstype",
    "array",
)
DRIVE_INFO = info(
    "gpuhost_filesystem_drive_info",
    "A drive that the file system rests on, through partitions, LVM, encryption and md. `device` is the drive as "
    "gpuhost_block_info names it.",
    "mountpoint",
    "device",
)
SIZE = gauge("gpuhost_filesystem_size_bytes", "Size of the local file system in bytes.", "mountpoint")
FREE = gauge(
    "gpuhost_filesystem_free_bytes",
    "Bytes that an ordinary user can still write to the local file system. Good is more than the next checkpoint "
    "needs. Absent while the file system does not answer, and where the exporter cannot see it: in a container that "
    "has nothing of it mounted.",
    "mountpoint",
)
BYPASS = info(
    "gpuhost_storage_bypass_info",
    "What moves data past the counters of block devices or of the page cache. By kind: gpudirect (nvidia-fs), "
    "userspace_driver (an NVMe drive that SPDK or the like drives itself), fuse and parallel (file systems that "
    "count for themselves).",
    "kind",
    "name",
    "detail",
)

MOST = 64  # containers mount by the hundred


class FilesystemCollector(Collector):
    name: ClassVar[str] = "filesystem"
    help: ClassVar[str] = "Room on local file systems, the drives below them, and what bypasses the counters"
    source: ClassVar[str] = "/proc/1/mountinfo, /sys/dev/block, statvfs(), /proc/driver/nvidia-fs"
    privilege: ClassVar[str] = "in a container: the host's process namespace (pid: host), for its mounts"
    interval: ClassVar[float] = 15.0
    subsystems: ClassVar[frozenset[str]] = frozenset({"block"})
    specs: ClassVar[tuple[Spec, ...]] = (INFO, DRIVE_INFO, SIZE, FREE, BYPASS)

    def poll(self, now: float) -> Iterator[Sample]:
        root = self.host.root
        mounted = mounts.read(root)
        local = sorted(mounts.local(root, mounted), key=lambda found: found.mount.point)
        self.post("filesystems", tuple(local))
        view = mounts.View(mounts.own(root))
        for found in local[:MOST]:
            point, stack = found.mount.point, found.stack
            yield INFO(point, stack.device, found.mount.kind, ",".join(stack.arrays))
            for drive in stack.drives:
                yield DRIVE_INFO(point, drive)
            with self.guard(point):
                path = view.path(found.mount)
                if path:
                    capacity = self.host.capacities.read(path)
                    yield SIZE(point, value=capacity.size_bytes)
                    yield FREE(point, value=capacity.free_bytes)
        with self.guard("nvidia-fs"):
            loaded = bypass.gpudirect(root)
            if loaded:
                yield _bypass(loaded)
        for found_drive in bypass.userspace_drives(root):
            yield _bypass(found_drive)
        for found_mount in list(bypass.mounted(mounted))[:MOST]:
            yield _bypass(found_mount)


def _bypass(found: Bypass) -> Sample:
    return BYPASS(found.kind, found.name, found.detail)
