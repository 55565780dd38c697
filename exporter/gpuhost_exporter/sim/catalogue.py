"""The hosts that can be simulated."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.sim import parts
from gpuhost_exporter.sim.hosts import Drive, Driver, Gpu, HostSpec, MigInstance, PciDevice, Port, System

# Added by drivers newer than 470.
_NOT_IN_470 = frozenset(
    {
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetGpuFabricInfoV",
        "nvmlDeviceGetGpuMaxPcieLinkGeneration",
        "nvmlDeviceGetGraphicsRunningProcesses_v3",
        "nvmlDeviceGetMarginTemperature",
        "nvmlDeviceGetMemoryBusWidth",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetSramEccErrorStatus",
        "nvmlDeviceGetSupportedClocksEventReasons",
        "nvmlDeviceGetTemperatureV",
        "nvmlGpmMetricsGet",
        "nvmlGpmMigSampleGet",
        "nvmlGpmQueryDeviceSupport",
        "nvmlGpmSampleAlloc",
        "nvmlGpmSampleFree",
        "nvmlGpmSampleGet",
    }
)

_SUPERMICRO = System(
    kernel="6.8.0-57-generic",
    distribution="Ubuntu",
    vendor="Supermicro",
    product="SYS-821GE-TNHR",
    serial="S512415X4A08231",
    bios="2.3",
    cpu_vendor="GenuineIntel",
    cpu_model="Intel(R) Xeon(R) Platinum 8480C",
    sockets=2,
    cores=112,
    threads=224,
    memory_kib=2_113_412_744,
    cmdline="BOOT_IMAGE=/vmlinuz-6.8.0-57-generic root=/dev/md127 ro iommu=pt",
    iommu="identity",
)


def _h100x8() -> HostSpec:
    data = parts.data_drives(4, 5, 7.68, (13.5e9, 6.9e9))
    system = parts.system_drives(4)
    front = PciDevice(
        "0000:29:00.0",
        ("0000:28:01.0",),
        0x15B3,
        0x101D,
        0x020000,
        0,
        4,
        16,
        4,
        5,
        (0x15B3, 0x0016),
    )
    return HostSpec(
        name="h100x8",
        description="HGX H100: 8 GPUs behind NVSwitch, 4 NVMe in a RAID0, 8 x 400G and one 100G RoCE port",
        system=_SUPERMICRO,
        driver=Driver("580.65.06", 13000),
        model=parts.H100,
        gpus=parts.hgx("h100x8", 0x2330, 5, 0x16C1, {}),
        switches=parts.nvswitches(),
        fabric=True,
        drives=(*data, *system),
        arrays=(parts.stripe(data), parts.mirror(system)),
        ports=(
            *parts.compute_ports(400, "400 Gb/sec (4X NDR)", "Ethernet", 0x1021, 5),
            Port("mlx5_8", "eno1np0", 100, "100 Gb/sec (4X EDR)", "Ethernet", front, compute=False),
        ),
        data_array="md0",
        system_array="md127",
        data_drives=tuple(drive.name for drive in data),
    )


def _mig() -> HostSpec:
    def instance(gpu: int, position: int, gpu_instance: int, slices: int, gigabytes: int) -> MigInstance:
        return MigInstance(
            f"MIG-{parts.identifier('mig', gpu, gpu_instance)}", position, gpu_instance, slices, gigabytes * 10**9
        )

    halves = (instance(0, 0, 1, 3, 40), instance(0, 1, 2, 3, 40))
    mixed = (instance(1, 0, 1, 4, 40), instance(1, 2, 5, 2, 20), instance(1, 3, 13, 1, 10))
    base = _h100x8()
    return HostSpec(
        name="mig",
        description="HGX H100 with GPUs 0 and 1 divided into MIG instances",
        system=base.system,
        driver=Driver("570.133.20", 12080),
        model=parts.H100,
        gpus=parts.hgx("mig", 0x2330, 5, 0x16C1, {0: halves, 1: mixed}),
        switches=base.switches,
        fabric=True,
        drives=base.drives,
        arrays=base.arrays,
        ports=base.ports,
        data_array=base.data_array,
        system_array=base.system_array,
        data_drives=base.data_drives,
    )


def _l40s() -> HostSpec:
    data = parts.data_drives(2, 4, 3.84, (6.8e9, 4.0e9))
    buses = (0x01, 0x41, 0x81, 0xC1)
    gpus = tuple(
        Gpu(
            index,
            f"GPU-{parts.identifier('l40s', index)}",
            f"13238230{index:02d}{bus:03d}",
            parts.gpu_device(f"0000:{bus:02x}:00.0", (f"0000:{bus - 1:02x}:01.1",), index // 2, 0x26B9, 4, 0x1851),
        )
        for index, bus in enumerate(buses)
    )
    return HostSpec(
        name="l40s",
        description="4 L40S on PCIe 4: no NVLink, no GPM",
        system=System(
            kernel="5.15.0-136-generic",
            distribution="Ubuntu",
            vendor="Dell Inc.",
            product="PowerEdge R7625",
            serial="7XQ2M24",
            bios="1.9.5",
            cpu_vendor="AuthenticAMD",
            cpu_model="AMD EPYC 9354 32-Core Processor",
            sockets=2,
            cores=64,
            threads=128,
            memory_kib=792_320_512,
            cmdline="BOOT_IMAGE=/vmlinuz-5.15.0-136-generic root=/dev/nvme2n1p2 ro",
            governor="ondemand",
        ),
        driver=Driver("550.144.03", 12040, last_field=230),
        model=parts.L40S,
        gpus=gpus,
        drives=(*data, parts.system_drives(2)[0]),
        arrays=(parts.stripe(data),),
        data_array="md0",
        data_drives=tuple(drive.name for drive in data),
    )


def _vm() -> HostSpec:
    def function(slot: int, vendor: int, device: int, pci_class: int, generation: int) -> PciDevice:
        width = 16 if generation else 0
        return PciDevice(
            f"0000:{slot:02x}:00.0", (f"0000:00:{slot:02x}.0",), vendor, device, pci_class, -1, generation, width,
            generation, generation, (0x10DE, 0x16C1),
        )  # fmt: skip

    def disk(index: int, letter: str, sectors: int, rates: tuple[float, float]) -> Drive:
        pci = function(3 + index, 0x1AF4, 0x1042, 0x010000, 0)
        return Drive(f"vd{letter}", "", (252, 16 * index), "", f"disk-{letter}", "", sectors, pci, *rates)

    return HostSpec(
        name="vm",
        description="a virtual machine with 8 H100 passed through, virtio disks and stolen CPU time",
        system=System(
            kernel="6.5.0-1025-kvm",
            distribution="Ubuntu",
            vendor="QEMU",
            product="Standard PC (Q35 + ICH9, 2009)",
            serial="",
            bios="rel-1.16.2-0-gea1b7a073390",
            cpu_vendor="GenuineIntel",
            cpu_model="Intel(R) Xeon(R) Platinum 8480+",
            sockets=1,
            cores=104,
            threads=208,
            memory_kib=1_857_650_120,
            cmdline="BOOT_IMAGE=/boot/vmlinuz-6.5.0-1025-kvm root=/dev/vda1 ro console=ttyS0",
            steal=0.012,
            hypervisor=True,
        ),
        driver=Driver("570.133.20", 12080),
        model=parts.H100,
        gpus=tuple(
            Gpu(
                index,
                f"GPU-{parts.identifier('vm', index)}",
                f"16531230{index:02d}774",
                function(6 + index, 0x10DE, 0x2330, 0x030200, 5),
            )
            for index in range(8)
        ),
        fabric=True,
        virtualization=1,
        drives=(disk(0, "a", 419_430_400, (0.6e9, 0.4e9)), disk(1, "b", 8_589_934_592, (2.0e9, 1.2e9))),
        data_drives=("vdb",),
    )


def _oldkernel() -> HostSpec:
    data = parts.data_drives(4, 4, 3.84, (6.8e9, 4.0e9))
    return HostSpec(
        name="oldkernel",
        description="8 A100 on a 4.18 kernel and a 470 driver: no pressure, no GPM, short diskstats",
        system=System(
            kernel="4.18.0-305.el8.x86_64",
            distribution="Red Hat",
            vendor="NVIDIA",
            product="DGXA100 920-23687-2530-000",
            serial="1560622000213",
            bios="1.13",
            cpu_vendor="AuthenticAMD",
            cpu_model="AMD EPYC 7742 64-Core Processor",
            sockets=2,
            cores=128,
            threads=256,
            memory_kib=1_056_538_112,
            cmdline="BOOT_IMAGE=(hd0,gpt2)/vmlinuz-4.18.0-305.el8.x86_64 root=/dev/nvme4n1p2 ro",
            iommu="",
            corrected_errors=12,
            pressure=False,
            discard_and_flush=4,
            nvme_hwmon=False,
            unified_cgroups=False,
            pcie_suffix="",
        ),
        driver=Driver("470.199.02", 11040, open_module=False, missing=_NOT_IN_470, last_field=160),
        model=parts.A100,
        gpus=parts.hgx("oldkernel", 0x20B2, 4, 0x1463, {}),
        drives=(*data, parts.system_drives(4)[0]),
        arrays=(parts.stripe(data),),
        ports=tuple(parts.compute_ports(200, "200 Gb/sec (4X HDR)", "InfiniBand", 0x101B, 4)),
        data_array="md0",
        data_drives=tuple(drive.name for drive in data),
    )


def _nogpu() -> HostSpec:
    drive = parts.system_drives(0)[0]
    return HostSpec(
        name="nogpu",
        description="an ordinary server without NVIDIA's library",
        system=System(
            kernel="6.1.0-32-amd64",
            distribution="Debian",
            vendor="HPE",
            product="ProLiant DL360 Gen11",
            serial="CZ2D3K01QF",
            bios="U54",
            cpu_vendor="GenuineIntel",
            cpu_model="Intel(R) Xeon(R) Gold 6430",
            sockets=2,
            cores=64,
            threads=128,
            memory_kib=263_840_156,
            cmdline="BOOT_IMAGE=/boot/vmlinuz-6.1.0-32-amd64 root=/dev/nvme0n1p2 ro quiet",
        ),
        drives=(drive,),
        data_drives=(drive.name,),
    )


_HOSTS: dict[str, Callable[[], HostSpec]] = {
    "h100x8": _h100x8,
    "l40s": _l40s,
    "vm": _vm,
    "mig": _mig,
    "oldkernel": _oldkernel,
    "nogpu": _nogpu,
}


def names() -> tuple[str, ...]:
    return tuple(_HOSTS)


@cache
def host(name: str) -> HostSpec:
    """The host of that name; ConfigError lists those there are."""
    if name not in _HOSTS:
        raise ConfigError(f"unknown simulated host {name!r}; known: {', '.join(_HOSTS)}")
    return _HOSTS[name]()
