"""NVMe drives: identity, state, temperature and PCIe link."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

from gpuhost_exporter.board import Listed
from gpuhost_exporter.collector import Collector
from gpuhost_exporter.collectors.nvme_health import fresh_health
from gpuhost_exporter.errors import SourceError
from gpuhost_exporter.host import Host
from gpuhost_exporter.sources import nvme, pci
from gpuhost_exporter.specs import Sample, Spec, gauge, info

UP = gauge(
    "gpuhost_nvme_up",
    "Whether the controller is live and takes I/O (1), or is resetting, connecting, being deleted or dead (0).",
    "device",
)
INFO = info(
    "gpuhost_nvme_info",
    "What the controller is and where it sits.",
    "device",
    "model",
    "serial",
    "firmware",
    "transport",
    "address",
    "numa_node",
)
NAMESPACE_INFO = info(
    "gpuhost_nvme_namespace_info",
    "Which block device (namespace) is behind which controller. Their numbers differ with multipath.",
    "device",
    "namespace",
)
TEMPERATURE = gauge(
    "gpuhost_nvme_temperature_celsius",
    "Temperature in celsius by sensor. The composite is what the drive slows down by, for most from about 70.",
    "device",
    "sensor",
)
GENERATION = gauge(
    "gpuhost_nvme_pcie_generation", "PCIe generation that the link runs at now. Good is the maximum.", "device"
)
GENERATION_MAX = gauge(
    "gpuhost_nvme_pcie_generation_max", "Highest PCIe generation that both drive and slot can do.", "device"
)
WIDTH = gauge(
    "gpuhost_nvme_pcie_width", "PCIe lanes that the link runs with now. Good is the maximum, 4 for most.", "device"
)
WIDTH_MAX = gauge("gpuhost_nvme_pcie_width_max", "Most PCIe lanes that both drive and slot can do.", "device")

DRIVE_GENERATION_MAX = gauge(
    "gpuhost_nvme_pcie_drive_generation_max",
    "Highest PCIe generation that the drive can do in any slot. Above gpuhost_nvme_pcie_generation_max it sits in a "
    "slot that holds it back.",
    "device",
)
DRIVE_WIDTH_MAX = gauge(
    "gpuhost_nvme_pcie_drive_width_max",
    "Most PCIe lanes that the drive can do in any slot. Above gpuhost_nvme_pcie_width_max it sits in a slot that holds "
    "it back.",
    "device",
)


class NvmeCollector(Collector):
    name: ClassVar[str] = "nvme"
    help: ClassVar[str] = "NVMe drives: identity, state, temperature, PCIe link"
    source: ClassVar[str] = "/sys/class/nvme, /sys/bus/pci/devices; the health log where the kernel has no monitor"
    interval: ClassVar[float] = 15.0
    # A controller is announced while it starts; that it takes I/O shows by its namespaces.
    subsystems: ClassVar[frozenset[str]] = frozenset({"nvme", "block"})
    specs: ClassVar[tuple[Spec, ...]] = (
        UP,
        INFO,
        NAMESPACE_INFO,
        TEMPERATURE,
        GENERATION,
        GENERATION_MAX,
        WIDTH,
        WIDTH_MAX,
        DRIVE_GENERATION_MAX,
        DRIVE_WIDTH_MAX,
    )

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._known: dict[str, nvme.Controller] = {}

    def poll(self, now: float) -> Iterator[Sample]:
        root = self.host.root
        drives: list[nvme.Controller] = []
        try:
            listed = nvme.controllers(root)
        except SourceError:
            self.post("listed drives", None)
            raise
        for name in listed:
            with self.guard(name):
                drive = nvme.read(root, name)
                drives.append(drive)
                yield from _identity(drive)
                with self.guard(f"{name} temperature"):
                    yield from self._temperatures(name, now)
                if drive.transport == "pcie" and drive.address:
                    with self.guard(f"{name} link"):
                        yield from _link(name, pci.read_device(root, drive.address))
        self.post("drives", tuple(drives))
        known = {name: drive for name, drive in self._known.items() if name in listed}
        self._known = known | {drive.name: drive for drive in drives}
        self.post("listed drives", tuple(self._listed(listed)))

    def _temperatures(self, name: str, now: float) -> Iterator[Sample]:
        """From the kernel's monitor, which needs no privilege, else from the drive's health log."""
        readings = nvme.temperatures(self.host.root, name)
        if not readings:
            health = fresh_health(self.host, name, now)
            readings = health.temperatures if health else ()
        for reading in readings:
            yield TEMPERATURE(name, reading.sensor, value=reading.celsius)

    def _listed(self, names: Iterable[str]) -> Iterator[Listed]:
        """Those in the host's own slots; one that never could be read may be any."""
        for name in names:
            drive = self._known.get(name)
            if drive is None or drive.transport == "pcie":
                yield Listed(name, (drive.serial or name) if drive else None)


def _identity(drive: nvme.Controller) -> Iterator[Sample]:
    yield UP(drive.name, value=float(drive.state == "live"))
    yield INFO(
        drive.name,
        drive.model or "",
        drive.serial or "",
        drive.firmware or "",
        drive.transport or "",
        drive.address or "",
        "" if drive.numa_node is None else str(drive.numa_node),
    )
    for namespace in drive.namespaces:
        yield NAMESPACE_INFO(drive.name, namespace)


def _link(name: str, device: pci.PciDevice) -> Iterator[Sample]:
    ends = [device.link] if device.slot is None else [device.link, device.slot]
    now = (
        (GENERATION, device.link.generation),
        (WIDTH, device.link.width),
        (GENERATION_MAX, _least([end.generation_max for end in ends])),
        (WIDTH_MAX, _least([end.width_max for end in ends])),
        (DRIVE_GENERATION_MAX, device.link.generation_max),
        (DRIVE_WIDTH_MAX, device.link.width_max),
    )
    for spec, value in now:
        if value is not None:
            yield spec(name, value=value)


def _least(values: list[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)
