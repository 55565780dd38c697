"""What moves data without the kernel's block layer or page cache counting it.

    /proc/driver/nvidia-fs/stats                        GDS Version: 1.13.1.3
                                                        NVFS statistics(ver: 4.0)
                                                        NVFS Driver(version: 2.24.2)
                                                        Mellanox PeerDirect Supported: True
                                                        IO stats: Enabled, peer IO stats: Disabled
    /sys/bus/pci/devices/0000:41:00.0/class             0x010802   an NVMe drive
    /sys/bus/pci/devices/0000:41:00.0/driver -> ../../../bus/pci/drivers/vfio-pci      nvme is the kernel's own

GPUDirect Storage reads local drives through the block layer, which counts it, but past the page cache. A drive that a
program drives itself (SPDK, DPDK) has no block device at all. FUSE file systems and parallel ones (Weka, Lustre, ...)
move their data in programs or modules with counters of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from gpuhost_exporter.errors import Absent, Denied, Malformed
from gpuhost_exporter.sources.files import Root, followed, optional_names, optional_text, read_text
from gpuhost_exporter.sources.mounts import Mount

Kind = Literal["gpudirect", "userspace_driver", "fuse", "parallel"]

_NVME_CLASS = re.compile(r"0x0108[0-9a-f]{2}\Z")
_USERSPACE = frozenset({"vfio-pci", "uio_pci_generic", "igb_uio"})
_PARALLEL = frozenset({"lustre", "wekafs", "gpfs", "beegfs", "panfs", "ceph", "daosfs"})
_IO_STATS = re.compile(r"IO stats: (Enabled|Disabled)")
# Not for data: control interfaces and desktops.
_CONTROL = frozenset({"fusectl", "fuse.lxcfs", "fuse.gvfsd-fuse", "fuse.portal"})


@dataclass(frozen=True, slots=True)
class Bypass:
    """`name` is a PCI address, a mount point or a module; `detail` the driver, the file system, or what it counts."""

    kind: Kind
    name: str
    detail: str


def gpudirect(root: Root) -> Bypass | None:
    """The nvidia-fs module, where it is loaded. Raises SourceError when its statistics cannot be read."""
    path = f"{root.proc}/driver/nvidia-fs/stats"
    try:
        text = read_text(path)
    except Absent:
        return None
    except Denied:
        return Bypass("gpudirect", "nvidia-fs", "statistics not readable")
    try:
        return Bypass("gpudirect", "nvidia-fs", parse_io_stats(text))
    except Malformed as error:
        raise Malformed(f"{path}: {error}") from error


def parse_io_stats(text: str) -> str:
    """Whether nvidia-fs counts bytes: by default it does not (module parameter rw_stats_enabled)."""
    match = _IO_STATS.search(text)
    if match is None:
        raise Malformed(f"expected a line 'IO stats: Enabled' or Disabled, got {text[:60]!r}")
    return f"statistics {match[1].lower()}"


def userspace_drives(root: Root) -> Iterator[Bypass]:
    """NVMe drives that a program has taken from the kernel."""
    folder = f"{root.sys}/bus/pci/devices"
    for address in optional_names(folder):
        driver = followed(f"{folder}/{address}", "driver").rpartition("/")[2]  # the name only: its folder is not asked
        if driver in _USERSPACE and _NVME_CLASS.match(optional_text(f"{folder}/{address}/class") or ""):
            yield Bypass("userspace_driver", address, driver)


def mounted(mounts: Iterable[Mount]) -> Iterator[Bypass]:
    """File systems that count for themselves."""
    for mount in mounts:
        if mount.kind in _PARALLEL:
            yield Bypass("parallel", mount.point, mount.kind)
        elif mount.kind.startswith("fuse") and mount.kind not in _CONTROL:
            yield Bypass("fuse", mount.point, mount.kind)
