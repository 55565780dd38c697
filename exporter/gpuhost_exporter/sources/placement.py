"""How devices are placed and their DMA is treated. No privilege needed, but for ACS.

/sys/class/infiniband/mlx5_0/device/numa_node, /sys/class/nvme/nvme0/numa_node, /sys/bus/pci/devices/BDF/numa_node
/sys/bus/pci/devices/BDF/iommu_group/type     identity (passthrough), DMA, DMA-FQ     (Linux 5.11)
/sys/class/iommu                              empty: no IOMMU is on
/proc/cmdline                                 iommu=pt           (what older kernels were told)
/sys/bus/pci/devices/BDF/config               4096 bytes, of which an ordinary user gets 64
/sys/devices/system/cpu/cpufreq/policy0/scaling_governor       performance
/sys/devices/system/cpu/cpu0/cpuidle/state3/{name,latency,disable}   C6, 133 (microseconds), 0
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gpuhost_exporter.errors import Denied, Malformed, SourceError
from gpuhost_exporter.sources import pci
from gpuhost_exporter.sources.files import (
    Root,
    link_target,
    optional_count,
    optional_names,
    optional_number,
    optional_text,
    read_block,
)

IOMMU_MODES = ("off", "passthrough", "translated")
PATHS = ("switch", "switches", "host_bridge", "node", "system")

_ACS = 0x0D
# Source validation, request redirect, completion redirect, upstream forwarding: what sends peer traffic upwards.
_REDIRECTS = 0x1D
_CAPABILITIES = (4096 - 256) // 8
_FOR_EVERYBODY = 64
_GONE = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class SwitchPort:
    """A downstream port of a PCIe switch. `redirects` is None where its registers cannot be read."""

    bdf: str
    redirects: bool | None


@dataclass(frozen=True, slots=True)
class Registers:
    """What not everybody may read. `virtual_machine`: SMBIOS' own bit; None where it is not told."""

    switch_ports: tuple[SwitchPort, ...] = ()
    virtual_machine: bool | None = None


class PrivilegedRegisters:
    """The exporter's side: what the process that may read them found last."""

    def __init__(self) -> None:
        self._found = Registers()

    def put(self, found: Registers) -> None:
        self._found = found

    def fail(self, _kind: str, _message: str) -> None:
        """The reader has ended: what it found may change unseen."""
        self._found = Registers()

    def told(self) -> Registers:
        return self._found


def numa_nodes(root: Root, gpus: Mapping[str, str]) -> dict[str, int]:
    """Node by device: RDMA adapters, NVMe controllers, and `gpus`, addresses by name. What no firmware says is left
    out.
    """
    paths = {name: f"{root.sys}/bus/pci/devices/{bdf}" for name, bdf in gpus.items()}
    for kind in ("infiniband", "nvme"):
        folder = f"{root.sys}/class/{kind}"
        paths |= {name: f"{folder}/{name}/device" for name in optional_names(folder)}
    nodes = {name: optional_number(f"{path}/numa_node") for name, path in paths.items()}
    return {name: node for name, node in nodes.items() if node is not None and node >= 0}


def iommu_mode(root: Root, devices: Iterable[str]) -> str | None:
    """How the DMA of these PCI devices is treated: one of IOMMU_MODES, the costliest of theirs. None where it is not
    told."""
    if not optional_names(f"{root.sys}/class/iommu") and not optional_names(f"{root.sys}/kernel/iommu_groups"):
        return "off"
    kinds = {optional_text(f"{root.sys}/bus/pci/devices/{bdf}/iommu_group/type") for bdf in devices} - {None}
    if kinds:
        return "passthrough" if kinds == {"identity"} else "translated"
    words = (optional_text(f"{root.proc}/cmdline") or "").split()
    return "passthrough" if "iommu=pt" in words or "iommu.passthrough=1" in words else None


def path_between(root: Root, one: str, other: str) -> str:
    """What is between two PCI devices: one of PATHS, nearest first."""
    left, right = _place(root, one), _place(root, other)
    shared = next((depth for depth, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), None)
    shared = min(len(left), len(right)) if shared is None else shared
    if shared > 1:
        return "switch" if shared >= max(len(left), len(right)) - 1 else "switches"
    if shared:
        return "host_bridge"
    nodes = {optional_number(f"{root.sys}/bus/pci/devices/{bdf}/numa_node") for bdf in (one, other)}
    return "node" if len(nodes) == 1 and not nodes & {None, -1} else "system"


class Nearness:
    """Remembers what is between devices: which slot one is in does not change while the machine runs."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._paths: dict[tuple[str, str], str] = {}

    def nearest(self, one: str, others: Iterable[str]) -> tuple[str | None, frozenset[str]]:
        """(what is between the device and the nearest of the others, those that are so near)."""
        found = {other: self._path(one, other) for other in others}
        path = min(found.values(), key=PATHS.index, default=None)
        return path, frozenset(other for other, between in found.items() if between == path)

    def _path(self, one: str, other: str) -> str:
        if (one, other) not in self._paths:
            self._paths[one, other] = path_between(self._root, one, other)
        return self._paths[one, other]


def switch_ports(root: Root) -> tuple[SwitchPort, ...]:
    """Downstream switch ports above GPUs and RDMA adapters. Those of virtual machines have none."""
    devices = list(_present_gpus(root))
    folder = f"{root.sys}/class/infiniband"
    devices += [os.path.basename(link_target(f"{folder}/{name}/device")) for name in optional_names(folder)]
    # Of the bridges above a device, every second one below the root port: root port, upstream, downstream, ...
    found = dict.fromkeys(port for bdf in devices for port in pci.bridges(root, bdf)[2::2])
    return tuple(SwitchPort(bdf, _redirects(f"{root.sys}/bus/pci/devices/{bdf}/config")) for bdf in found)


def governors(root: Root) -> Counter[str]:
    """Frequency policies by governor; none where the kernel does not scale frequencies."""
    folder = f"{root.sys}/devices/system/cpu/cpufreq"
    texts = (optional_text(f"{folder}/{name}/scaling_governor") for name in optional_names(folder))
    return Counter(text for text in texts if text)


def idle_states(root: Root) -> dict[str, float]:
    """Seconds to wake from each idle state that the first CPU may use."""
    folder = f"{root.sys}/devices/system/cpu/cpu0/cpuidle"
    found = {}
    for state in optional_names(folder):
        name = optional_text(f"{folder}/{state}/name")
        latency = optional_count(f"{folder}/{state}/latency")
        if name and latency is not None and not optional_number(f"{folder}/{state}/disable"):
            found[name] = latency / 1e6
    return found


def parse_redirects(config: bytes) -> bool:
    """Whether ACS sends peer traffic upwards, by a port's configuration space. False where it has no ACS.

    Raises Denied for the part that an ordinary user gets, Malformed for a list of capabilities that does not end.
    """
    if len(config) <= _FOR_EVERYBODY:
        raise Denied(f"{len(config)} bytes of configuration space; grant CAP_SYS_ADMIN")
    place = 0x100
    for _ in range(_CAPABILITIES):
        if place + 8 > len(config):
            return False
        header, _, control = struct.unpack_from("<IHH", config, place)
        if header == _GONE:
            raise Malformed("configuration space: all ones, as from a device that is gone")
        if header & 0xFFFF == _ACS:
            return bool(control & _REDIRECTS)
        place = header >> 20 & 0xFFC
        if not place:
            return False
    raise Malformed("configuration space: a list of capabilities that leads back to itself")


def _redirects(path: str) -> bool | None:
    try:
        return parse_redirects(read_block(path))
    except SourceError:
        return None


def _place(root: Root, bdf: str) -> list[str]:
    """A device's folders from its host bridge, pci0000:15, down to the port that it is plugged into."""
    parts = link_target(f"{root.sys}/bus/pci/devices/{bdf}").split("/")
    bridge = next((place for place, part in enumerate(parts) if part.startswith("pci0")), len(parts))
    return parts[bridge:-1]


def _present_gpus(root: Root) -> tuple[str, ...]:
    try:
        return pci.gpus(root)
    except SourceError:
        return ()
