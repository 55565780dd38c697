"""What the catalogue builds its hosts from: GPU models, PCI places, drives and ports."""

from __future__ import annotations

import zlib

from gpuhost_exporter.sim.hosts import Array, Drive, Gpu, GpuModel, MigInstance, PciDevice, Port

H100 = GpuModel(
    name="NVIDIA H100 80GB HBM3",
    architecture=9,
    compute_capability=(9, 0),
    memory_bytes=85_520_809_984,
    reserved_bytes=552_337_408,
    memory_bus_bits=5120,
    memory_clock_mhz=2619,
    sm_clock_mhz=1980,
    sm_count=132,
    limit_watts=700,
    min_limit_watts=200,
    idle_watts=74,
    celsius_per_watt=0.058,
    slowdown_celsius=87,
    pcie_bytes_per_second=55e9,
    vbios="96.00.A5.00.01",
    links=18,
    link_megabytes_per_second=26562,
    link_version=6,
    gpm=True,
)
A100 = GpuModel(
    name="NVIDIA A100-SXM4-80GB",
    architecture=7,
    compute_capability=(8, 0),
    memory_bytes=85_198_045_184,
    reserved_bytes=598_736_896,
    memory_bus_bits=5120,
    memory_clock_mhz=1593,
    sm_clock_mhz=1410,
    sm_count=108,
    limit_watts=400,
    min_limit_watts=100,
    idle_watts=58,
    celsius_per_watt=0.09,
    slowdown_celsius=89,
    pcie_bytes_per_second=26e9,
    vbios="92.00.36.00.10",
    links=12,
    link_megabytes_per_second=25000,
    link_version=4,
)
L40S = GpuModel(
    name="NVIDIA L40S",
    architecture=8,
    compute_capability=(8, 9),
    memory_bytes=48_305_799_168,
    reserved_bytes=664_797_184,
    memory_bus_bits=384,
    memory_clock_mhz=9001,
    sm_clock_mhz=2520,
    sm_count=142,
    limit_watts=350,
    min_limit_watts=100,
    idle_watts=34,
    celsius_per_watt=0.12,
    slowdown_celsius=89,
    pcie_bytes_per_second=26e9,
    vbios="95.02.66.00.02",
    hbm=False,
)


def identifier(*parts: object) -> str:
    """Made up, and the same each time, in the form of a UUID. Not uuid5: OpenSSL's hashes would come with it."""
    name = "/".join(map(str, parts))
    digits = "".join(f"{zlib.crc32(f'{name}/{part}'.encode()):08x}" for part in range(4))
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def gpu_device(bdf: str, path: tuple[str, ...], numa: int, device: int, generation: int, subsystem: int) -> PciDevice:
    return PciDevice(
        bdf, path, 0x10DE, device, 0x030200, numa, generation, 16, generation, generation, (0x10DE, subsystem)
    )


def hgx(
    name: str, device: int, generation: int, subsystem: int, mig: dict[int, tuple[MigInstance, ...]]
) -> tuple[Gpu, ...]:
    """Eight GPUs, each behind the PCIe switch that it shares with its network port."""
    gpus = []
    pairs = zip(_GPU_BUSES, _PORT_BUSES, strict=True)
    for index, (bus, port_bus) in enumerate(pairs):
        pci = gpu_device(f"0000:{bus:02x}:00.0", _switch(port_bus, 1), index // 4, device, generation, subsystem)
        gpus.append(
            Gpu(index, f"GPU-{identifier(name, index)}", f"16520230{index:02d}{bus:03d}", pci, mig.get(index, ()))
        )
    return tuple(gpus)


_GPU_BUSES = (0x1B, 0x43, 0x52, 0x61, 0x9D, 0xC3, 0xD1, 0xDF)
_PORT_BUSES = (0x18, 0x40, 0x4F, 0x5E, 0x9A, 0xC0, 0xCE, 0xDC)


def _switch(port_bus: int, downstream: int) -> tuple[str, ...]:
    return (
        f"0000:{port_bus - 3:02x}:01.0",
        f"0000:{port_bus - 2:02x}:00.0",
        f"0000:{port_bus - 1:02x}:{downstream:02x}.0",
    )


def compute_ports(gigabits: int, rate: str, link_layer: str, device: int, generation: int) -> list[Port]:
    return [
        Port(
            f"mlx5_{index}",
            f"ens{index + 1}np0" if link_layer == "Ethernet" else f"ib{index}",
            gigabits,
            rate,
            "Ethernet" if link_layer == "Ethernet" else "InfiniBand",
            PciDevice(
                f"0000:{bus:02x}:00.0",
                _switch(bus, 0),
                0x15B3,
                device,
                0x020000,
                index // 4,
                generation,
                16,
                generation,
                generation,
                (0x15B3, 0x0023),
            ),
            compute=True,
        )
        for index, bus in enumerate(_PORT_BUSES)
    ]


def _nvme(
    index: int,
    bus: int,
    model: str,
    serial: str,
    terabytes: float,
    generation: int,
    rates: tuple[float, float],
) -> Drive:
    sectors = {0.96: 1_875_385_008, 3.84: 7_501_476_528, 7.68: 15_002_931_888}[terabytes]
    pci = PciDevice(
        f"0000:{bus:02x}:00.0",
        (f"0000:{bus - 1:02x}:{index + 1:02x}.0",),
        0x144D,
        0xA824 if generation == 4 else 0xA826,
        0x010802,
        0 if bus < 0x80 else 1,
        generation,
        4,
        generation,
        generation,
        (0x144D, 0xA801),
    )
    partitions = (1_050_624, sectors - 1_054_720) if terabytes == 0.96 else ()
    return Drive(
        f"nvme{index}n1", f"nvme{index}", (259, 4 * index), model, serial, "OPPA4B5Q", sectors, pci, *rates,
        partitions,
    )  # fmt: skip


def data_drives(count: int, generation: int, terabytes: float, rates: tuple[float, float]) -> list[Drive]:
    model = "SAMSUNG MZWLO7T6HBLA-00A07" if generation == 5 else "SAMSUNG MZQL23T8HCLS-00A07"
    buses = (0x2A, 0x2C, 0xAB, 0xAD)
    return [
        _nvme(index, buses[index], model, f"S7L2NE0W40{index:02d}21", terabytes, generation, rates)
        for index in range(count)
    ]


def system_drives(first: int) -> list[Drive]:
    return [
        _nvme(first + index, 0x22 + 2 * index, "SAMSUNG MZ1L2960HCJR-00A07", f"S665NE0R60{index:02d}18", 0.96, 4,
              (5.0e9, 1.4e9))
        for index in range(2)
    ]  # fmt: skip


def stripe(drives: list[Drive]) -> Array:
    sectors = sum(drive.sectors - 264_192 for drive in drives)
    return Array("md0", 0, "raid0", tuple(drive.name for drive in drives), sectors, 512 * 1024)


def mirror(drives: list[Drive]) -> Array:
    return Array("md127", 127, "raid1", tuple(f"{drive.name}p2" for drive in drives), drives[0].partitions[1] - 264_192)


def nvswitches() -> tuple[PciDevice, ...]:
    return tuple(
        PciDevice(
            f"0000:0{bus}:00.0",
            (f"0000:0{bus - 4}:0{bus - 4}.0",),
            0x10DE,
            0x22A3,
            0x068000,
            0,
            4,
            2,
            4,
            4,
            (0x10DE, 0x1796),
        )
        for bus in (7, 8, 9)
    )
