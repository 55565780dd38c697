"""A simulated host's /sys: PCI devices in the tree of their bridges, and the classes that link to them."""

from __future__ import annotations

from gpuhost_exporter.sim import drive_health, tree_block
from gpuhost_exporter.sim.hosts import Array, Drive, HostSpec, PciDevice, System
from gpuhost_exporter.sim.timeline import Timeline
from gpuhost_exporter.sim.tree_files import Files

_SPEEDS = {1: "2.5", 2: "5.0", 3: "8.0", 4: "16.0", 5: "32.0"}
_BRIDGE = 0x060400
_AER_CORRECTABLE = ("RxErr", "BadTLP", "BadDLLP", "Rollover", "Timeout", "NonFatalErr", "CorrIntErr", "HeaderOF")
_AER_FATAL = (
    "Undefined", "DLP", "SDES", "TLP", "FCP", "CmpltTO", "CmpltAbrt", "UnxCmplt", "RxOF", "MalfTLP", "ECRC",
    "UnsupReq", "ACSViol", "UncorrIntErr", "BlockedTLP", "AtomicOpBlocked", "TLPBlockedErr", "PoisonTLPBlocked",
)  # fmt: skip


def write_fixed(files: Files, host: HostSpec) -> None:
    """What never changes."""
    for device in host.devices:
        _pci(files, device, host.system)
    for array in host.arrays:
        _array(files, array, host)
    _machine(files, host)


def write_drives(files: Files, timeline: Timeline, seconds: float) -> None:
    """Block devices: they come and go."""
    host = timeline.host
    last = host.system.discard_and_flush
    found = tree_block.present(timeline, seconds)
    pulled = tree_block.pulled(timeline, seconds)
    for drive in host.drives:
        folder = block_folder(drive)
        if drive not in found:
            files.remove(f"sys/block/{drive.name}")
            files.remove(f"sys/{folder}")
            if drive.name == pulled:
                _pull(files, drive)
            continue
        _pci(files, drive.pci, host.system)
        counters = tree_block.drive(timeline, drive, seconds)
        stat = tree_block.stat(counters.fields(last))
        files.put(f"sys/{folder}/stat", stat)
        files.put(f"sys/{folder}/inflight", f"{counters.in_flight[0]:8d} {counters.in_flight[1]:8d}")
        _block(files, folder, drive)
        for name, _ in tree_block.partitions(drive):
            files.put(f"sys/{folder}/{name}/stat", stat)
    hangs = timeline.active("drive_hangs", seconds)
    for place, drive in enumerate(host.drives):
        if drive.controller and drive.name != pulled:
            folder = f"sys/{drive.pci.folder}/nvme/{drive.controller}"
            _controller(files, drive, host.system)
            files.put(f"{folder}/state", "live" if drive in found else "dead")
            if host.system.nvme_hwmon:
                files.put(
                    f"{folder}/hwmon{drive.controller.removeprefix('nvme')}/temp1_input",
                    str(1000 * drive_health.celsius(timeline, drive, seconds) - 150),
                )
            silent = hangs is not None and hangs.drive == place
            page = b"" if silent else drive_health.page(timeline, drive, seconds)
            files.put_block(f"dev/{drive.controller}", page)
    for array in host.arrays:
        folder = f"sys/devices/virtual/block/{array.name}"
        fields = tree_block.array(timeline, array, seconds).fields(last)
        files.put(f"{folder}/stat", tree_block.stat(fields))
        files.put_all(f"{folder}/md", tree_block.md_files(array, tree_block.array_state(timeline, array, seconds)))


def write_links(files: Files, timeline: Timeline, seconds: float) -> None:
    """The PCIe links of GPUs: one that fell off the bus answers all ones."""
    system = timeline.host.system
    lost = {fault.gpu for fault in timeline.faults(seconds) if fault.kind == "gpu_lost"}
    for gpu in timeline.host.gpus:
        off = gpu.index in lost
        folder = f"sys/{gpu.pci.folder}"
        files.put(f"{folder}/current_link_speed", "Unknown" if off else _speed(gpu.pci.generation, system))
        files.put(f"{folder}/current_link_width", "63" if off else str(gpu.pci.width))


def _pull(files: Files, drive: Drive) -> None:
    for name in (
        f"sys/class/nvme/{drive.controller}",
        f"sys/bus/pci/devices/{drive.pci.bdf}",
        f"sys/{drive.pci.folder}",
        f"dev/{drive.controller}",
    ):
        files.remove(name)


def block_folder(drive: Drive) -> str:
    """Where a drive's block device is, below /sys."""
    if drive.controller:
        return f"{drive.pci.folder}/nvme/{drive.controller}/{drive.name}"
    return f"{drive.pci.folder}/virtio{drive.number[1] // 16}/block/{drive.name}"


def _speed(generation: int, system: System) -> str:
    if not generation:
        return "Unknown"
    text = _SPEEDS[generation]
    return f"{text} GT/s{system.pcie_suffix}" if system.pcie_suffix else f"{text.removesuffix('.0')} GT/s"


def _pci(files: Files, device: PciDevice, system: System) -> None:
    above = device.folder.rsplit("/", 1)[0]
    folder = device.folder
    for number, bdf in enumerate(reversed(device.path)):
        speed = _speed(device.generation_slot if number == 0 else max(4, device.generation_slot), system)
        files.put_all(
            f"sys/{above}",
            {
                "vendor": "0x8086" if number == len(device.path) - 1 else "0x1000",
                "device": "0x352a" if number == len(device.path) - 1 else "0xc030",
                "class": f"0x{_BRIDGE:06x}",
                "numa_node": str(device.numa),
                "current_link_speed": speed,
                "current_link_width": str(device.width),
                "max_link_speed": speed,
                "max_link_width": str(device.width),
            },
        )
        files.link(f"sys/bus/pci/devices/{bdf}", f"sys/{above}")
        above = above.rsplit("/", 1)[0]
    files.link(f"sys/bus/pci/devices/{device.bdf}", f"sys/{folder}")
    files.put_all(
        f"sys/{folder}",
        {
            "vendor": f"0x{device.vendor:04x}",
            "device": f"0x{device.device:04x}",
            "subsystem_vendor": f"0x{device.subsystem[0]:04x}",
            "subsystem_device": f"0x{device.subsystem[1]:04x}",
            "class": f"0x{device.pci_class:06x}",
            "numa_node": str(device.numa),
            "local_cpulist": _cpus(system, device.numa),
            "current_link_speed": _speed(device.generation, system),
            "current_link_width": str(device.width),
            "max_link_speed": _speed(device.generation_device, system),
            "max_link_width": str(device.width),
            "aer_dev_correctable": _aer(_AER_CORRECTABLE, "COR"),
            "aer_dev_fatal": _aer(_AER_FATAL, "FATAL"),
            "aer_dev_nonfatal": _aer(_AER_FATAL, "NONFATAL"),
        },
    )
    if not system.hypervisor:
        group = f"sys/kernel/iommu_groups/{int(device.bdf[5:7], 16)}"
        files.put(f"{group}/reserved_regions", "0x00000000fee00000 0x00000000feefffff msi")
        if system.iommu:
            files.put(f"{group}/type", system.iommu)
        files.link(f"sys/{folder}/iommu_group", group)


def _aer(names: tuple[str, ...], kind: str) -> str:
    return "\n".join(f"{name} 0" for name in (*names, f"TOTAL_ERR_{kind}"))


def _cpus(system: System, numa: int) -> str:
    if numa < 0:
        return f"0-{system.threads - 1}"
    cores = system.cores // system.sockets
    first, second = numa * cores, system.cores + numa * cores
    return f"{first}-{first + cores - 1},{second}-{second + cores - 1}"


def _controller(files: Files, drive: Drive, system: System) -> None:
    folder = f"sys/{drive.pci.folder}/nvme/{drive.controller}"
    files.put_all(
        folder,
        {
            "model": f"{drive.model:<40}",
            "serial": f"{drive.serial:<20}",
            "firmware_rev": drive.firmware,
            "transport": "pcie",
            "address": drive.pci.bdf,
            "cntlid": "6",
            "numa_node": str(drive.pci.numa),
            "subsysnqn": f"nqn.1994-11.com.samsung:nvme:PM:2.5-inch:{drive.serial}",
        },
    )
    if system.nvme_hwmon:
        hwmon = f"{folder}/hwmon{drive.controller.removeprefix('nvme')}"
        files.put_all(hwmon, {"name": "nvme", "temp1_max": "81850", "temp1_crit": "84850"})
    files.link(f"{folder}/device", f"sys/{drive.pci.folder}")
    files.link(f"sys/class/nvme/{drive.controller}", folder)


def _block(files: Files, folder: str, drive: Drive) -> None:
    major, minor = drive.number
    files.put_all(
        f"sys/{folder}",
        {
            "size": str(drive.sectors),
            "dev": f"{major}:{minor}",
            "ro": "0",
            "removable": "0",
            "queue/logical_block_size": "512",
            "queue/physical_block_size": "4096",
            "queue/rotational": "0",
            "queue/nr_requests": "1023",
            "queue/max_sectors_kb": "256",
            "queue/iostats": "1",
            "queue/scheduler": "[none] mq-deadline",
        },
    )
    files.link(f"sys/{folder}/device", f"sys/{folder.rsplit('/', 1 if drive.controller else 2)[0]}")
    files.link(f"sys/block/{drive.name}", f"sys/{folder}")
    files.link(f"sys/dev/block/{major}:{minor}", f"sys/{folder}")
    for number, (name, sectors) in enumerate(tree_block.partitions(drive), 1):
        files.put_all(
            f"sys/{folder}/{name}",
            {"size": str(sectors), "dev": f"{major}:{minor + number}", "partition": str(number)},
        )
        files.link(f"sys/dev/block/{major}:{minor + number}", f"sys/{folder}/{name}")


def _array(files: Files, array: Array, host: HostSpec) -> None:
    folder = f"sys/devices/virtual/block/{array.name}"
    files.put_all(
        folder,
        {
            "size": str(array.sectors),
            "dev": f"9:{array.number}",
            "ro": "0",
            "inflight": f"{0:8d} {0:8d}",
            "queue/logical_block_size": "512",
            "queue/rotational": "0",
            "queue/iostats": "1",
        },
    )
    files.link(f"sys/block/{array.name}", folder)
    files.link(f"sys/dev/block/9:{array.number}", folder)
    for slot, member in enumerate(array.members):
        drive = next(found for found in host.drives if member.startswith(found.name))
        where = f"sys/{block_folder(drive)}" + (f"/{member}" if member != drive.name else "")
        files.link(f"{folder}/slaves/{member}", where)
        files.link(f"{folder}/md/dev-{member}/block", where)
        files.link(f"{folder}/md/rd{slot}", f"{folder}/md/dev-{member}")


def _machine(files: Files, host: HostSpec) -> None:
    system = host.system
    files.put_all(
        "sys/devices/virtual/dmi/id",
        {
            "sys_vendor": system.vendor,
            "product_name": system.product,
            "product_version": "0123456789",
            "product_serial": system.serial,
            "board_vendor": system.vendor,
            "board_name": system.product,
            "bios_vendor": "SeaBIOS" if system.hypervisor else "American Megatrends International, LLC.",
            "bios_version": system.bios,
            "bios_date": "11/06/2024",
        },
    )
    files.link("sys/class/dmi/id", "sys/devices/virtual/dmi/id")
    files.put("sys/devices/system/cpu/online", f"0-{system.threads - 1}")
    for node in range(system.sockets):
        files.put(f"sys/devices/system/node/node{node}/cpulist", _cpus(system, node))
    if host.driver is not None:
        files.put("sys/module/nvidia/version", host.driver.version)
