"""What a simulated host is made of. Only what never moves; what moves is in timeline.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FIRST_PID = 4711


@dataclass(frozen=True, slots=True)
class PciDevice:
    """`path` are the bridges above it, from the root port down; the last is the slot."""

    bdf: str  # 0000:1b:00.0
    path: tuple[str, ...]
    vendor: int
    device: int
    pci_class: int
    numa: int
    generation: int  # what the link runs at
    width: int
    generation_device: int  # what the device could do
    generation_slot: int
    subsystem: tuple[int, int] = (0, 0)

    @property
    def folder(self) -> str:
        """Below /sys: devices/pci0000:15/0000:15:01.0/0000:1b:00.0."""
        return "/".join(("devices", "pci" + self.path[0].rsplit(":", 1)[0], *self.path, self.bdf))


@dataclass(frozen=True, slots=True)
class GpuModel:
    name: str
    architecture: int  # NVML_DEVICE_ARCH_*
    compute_capability: tuple[int, int]
    memory_bytes: int
    reserved_bytes: int
    memory_bus_bits: int
    memory_clock_mhz: int
    sm_clock_mhz: int
    sm_count: int
    limit_watts: int
    min_limit_watts: int
    idle_watts: int
    celsius_per_watt: float
    slowdown_celsius: int
    pcie_bytes_per_second: float  # one direction
    vbios: str
    links: int = 0
    link_megabytes_per_second: int = 0  # one direction, as NVML tells it
    link_version: int = 0  # NVML's enumeration, 6 is NVLink 4
    gpm: bool = False
    hbm: bool = True


@dataclass(frozen=True, slots=True)
class MigInstance:
    uuid: str
    position: int  # index for nvmlDeviceGetMigDeviceHandleByIndex; positions may have gaps
    gpu_instance: int
    slices: int
    memory_bytes: int

    @property
    def profile(self) -> str:
        return f"{self.slices}g.{self.memory_bytes // 10**9}gb"


@dataclass(frozen=True, slots=True)
class Gpu:
    index: int
    uuid: str
    serial: str
    pci: PciDevice
    mig: tuple[MigInstance, ...] = ()

    @property
    def pids(self) -> tuple[int, ...]:
        """The job's processes on it, one for the GPU or one for each of its instances."""
        if self.mig:
            return tuple(FIRST_PID + 10 * self.index + number for number in range(len(self.mig)))
        return (FIRST_PID + self.index,)


@dataclass(frozen=True, slots=True)
class Drive:
    """A disk; `controller` is empty where it is not NVMe."""

    name: str  # nvme0n1, vda
    controller: str  # nvme0
    number: tuple[int, int]
    model: str
    serial: str
    firmware: str
    sectors: int  # of 512 bytes
    pci: PciDevice
    read_bytes_per_second: float
    write_bytes_per_second: float
    partitions: tuple[int, ...] = ()  # sectors of each


@dataclass(frozen=True, slots=True)
class Array:
    name: str  # md0
    number: int
    level: Literal["raid0", "raid1"]
    members: tuple[str, ...]  # block devices, nvme0n1 or nvme4n1p2
    sectors: int
    chunk_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Port:
    device: str  # mlx5_0
    netdev: str
    gigabits: int
    rate: str  # "400 Gb/sec (4X NDR)"
    link_layer: Literal["Ethernet", "InfiniBand"]
    pci: PciDevice
    compute: bool  # one of the GPUs' ports, else the front end's


@dataclass(frozen=True, slots=True)
class Driver:
    version: str
    cuda: int  # 12080
    open_module: bool = True
    missing: frozenset[str] = frozenset()  # functions that this library does not have
    last_field: int = 250  # highest field id that it knows


@dataclass(frozen=True, slots=True)
class System:
    kernel: str
    distribution: str
    vendor: str
    product: str
    serial: str
    bios: str
    cpu_vendor: str
    cpu_model: str
    sockets: int
    cores: int  # in all
    threads: int  # in all
    memory_kib: int
    cmdline: str
    steal: float = 0.0  # share of CPU time
    hypervisor: bool = False
    iommu: str = "DMA-FQ"  # of each group; empty before 5.11
    governor: str = "performance"
    corrected_errors: int = 0  # of the first memory controller
    pressure: bool = True
    discard_and_flush: int = 6  # trailing fields of diskstats: 6 since 5.5, 4 since 4.18
    nvme_hwmon: bool = True
    unified_cgroups: bool = True
    pcie_suffix: str = " PCIe"  # "32.0 GT/s PCIe" now, "32 GT/s" before 5.7


@dataclass(frozen=True, slots=True)
class HostSpec:
    name: str
    description: str
    system: System
    driver: Driver | None = None
    model: GpuModel | None = None
    gpus: tuple[Gpu, ...] = ()
    switches: tuple[PciDevice, ...] = ()  # NVSwitches
    fabric: bool = False  # the GPUs register with a fabric manager
    virtualization: int = 0  # as NVML numbers it
    drives: tuple[Drive, ...] = ()
    arrays: tuple[Array, ...] = ()
    ports: tuple[Port, ...] = ()
    data_array: str = ""
    system_array: str = ""
    data_drives: tuple[str, ...] = ()

    @property
    def read_limit(self) -> float:
        """What the drives that hold the job's data can deliver together, bytes a second."""
        return sum(drive.read_bytes_per_second for drive in self.drives if drive.name in self.data_drives)

    @property
    def write_limit(self) -> float:
        """What the drives that hold the job's data can take together, bytes a second."""
        return sum(drive.write_bytes_per_second for drive in self.drives if drive.name in self.data_drives)

    @property
    def failing_drive(self) -> str:
        """The drive that fails in scenarios: the mirror's second; empty where there is no mirror."""
        members = next((array.members for array in self.arrays if array.name == self.system_array), ("",))
        return members[-1].removesuffix("p2")

    @property
    def devices(self) -> tuple[PciDevice, ...]:
        """Every PCI device of the host that has a driver of interest."""
        return (
            *(gpu.pci for gpu in self.gpus),
            *self.switches,
            *(drive.pci for drive in self.drives),
            *(port.pci for port in self.ports),
        )
