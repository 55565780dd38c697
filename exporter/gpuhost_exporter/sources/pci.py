"""PCI devices in sysfs: how many NVIDIA GPUs there are, and a device's place and link. No privilege needed.

    /sys/bus/pci/devices/0000:18:00.0 -> ../../../devices/pci0000:15/0000:15:01.0/0000:18:00.0
        vendor               0x10de             (NVIDIA)
        class                0x030200           (display controller: 0x0300xx VGA, 0x0302xx 3D)
        driver -> ../../../../../bus/pci/drivers/nvidia     (no such link while none is bound)
        physfn -> ../0000:18:00.0               (of a virtual function: the device that it is a part of)
        current_link_speed   32.0 GT/s PCIe     (kernels before 5.7: 32 GT/s; Unknown when the link is down)
        current_link_width   16                 (63 once the device no longer answers)
        max_link_speed, max_link_width          what this end could do
        numa_node            0                  (-1: the firmware does not say)
        aer_dev_correctable  RxErr 0 ... TOTAL_ERR_COR 0    (no such file where the kernel does not own AER)

The folder above a device is the port it is plugged into, which has a link of its own with the same files.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from gpuhost_exporter.errors import Malformed
from gpuhost_exporter.sources.files import Root, link_target, names, optional_names, optional_number, optional_text

# GT/s per lane -> generation, and the share of raw bits left by 8b/10b, 128b/130b and 242B/256B coding.
_GENERATIONS = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}
_CODING = {1: 8 / 10, 2: 8 / 10, 3: 128 / 130, 4: 128 / 130, 5: 128 / 130, 6: 242 / 256}
_TRANSFERS = {generation: speed * 1e9 for speed, generation in _GENERATIONS.items()}
_WIDTHS = frozenset({1, 2, 4, 8, 12, 16, 32})

_SPEED = re.compile(r"(\d{1,3}(?:\.\d{1,3})?) GT/s(?: PCIe)?\Z")
_BDF = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\Z")
_NVIDIA = 0x10DE
_NVSWITCH_CLASS = 0x0680
_GPU_CLASSES = frozenset({0x0300, 0x0302})
_FOR_GUESTS = frozenset({"vfio-pci", "pci-stub"})  # keep a device for a virtual machine
_SEVERITIES = (
    ("correctable", "aer_dev_correctable", "TOTAL_ERR_COR"),
    ("nonfatal", "aer_dev_nonfatal", "TOTAL_ERR_NONFATAL"),
    ("fatal", "aer_dev_fatal", "TOTAL_ERR_FATAL"),
)


@dataclass(frozen=True, slots=True)
class PciLink:
    """One end of a link. Generations 1-6, widths in lanes."""

    generation: int | None
    width: int | None
    generation_max: int | None
    width_max: int | None


@dataclass(frozen=True, slots=True)
class PciDevice:
    bdf: str
    link: PciLink
    slot_bdf: str | None  # the port above; None on a root bus, as in most virtual machines
    slot: PciLink | None
    numa_node: int | None
    aer: tuple[tuple[str, int], ...]  # correctable|nonfatal|fatal, errors since the kernel found the device


def read_device(root: Root, bdf: str) -> PciDevice:
    """Raises Absent when there is no such device, Malformed when a file holds something else than it should."""
    if not _BDF.match(bdf):
        raise Malformed(f"expected a PCI address such as 0000:41:00.0, got {bdf[:40]!r}")
    folder = link_target(f"{root.sys}/bus/pci/devices/{bdf}")
    names(folder)
    above = os.path.dirname(folder)
    slot_bdf = os.path.basename(above)
    slot = _read_link(above) if _BDF.match(slot_bdf) else None
    numa_node = optional_number(f"{folder}/numa_node")
    return PciDevice(
        bdf,
        _read_link(folder),
        slot_bdf if slot else None,
        slot,
        numa_node if numa_node is not None and numa_node >= 0 else None,
        tuple(
            (severity, parse_aer_total(text, total))
            for severity, file, total in _SEVERITIES
            if (text := optional_text(f"{folder}/{file}")) is not None
        ),
    )


def gpus(root: Root) -> tuple[str, ...]:
    """NVIDIA GPUs on the bus that are this host's to use: neither kept for a virtual machine nor a part of another.

    Raises Absent where the host shows no PCI bus. Touches no device: the kernel keeps what these files say.
    """
    devices = f"{root.sys}/bus/pci/devices"
    return tuple(bdf for bdf in names(devices) if _is_gpu(f"{devices}/{bdf}"))


def count_nvswitches(root: Root) -> int:
    """NVSwitches on the bus; none where there is no bus. Those of NVLink 5 are no PCI devices."""
    devices = f"{root.sys}/bus/pci/devices"
    return sum(
        optional_number(f"{devices}/{bdf}/vendor") == _NVIDIA
        and (optional_number(f"{devices}/{bdf}/class") or 0) >> 8 == _NVSWITCH_CLASS
        for bdf in optional_names(devices)
    )


def bridges(root: Root, bdf: str) -> tuple[str, ...]:
    """The bridges above a device, from the root port down: root port, then a switch's upstream and downstream port."""
    parts = link_target(f"{root.sys}/bus/pci/devices/{bdf}").split("/")[:-1]
    return tuple(part for part in parts if _BDF.match(part))


def address(folder: str) -> str:
    """The PCI device that a folder below /sys/devices belongs to, as a virtio interface's does; empty without one."""
    return next((part for part in reversed(folder.split("/")) if _BDF.match(part)), "")


def bytes_per_second(generation: int, width: int) -> float | None:
    """What a link carries in one direction before protocol overhead; None for a generation not known here."""
    coding = _CODING.get(generation)
    return None if coding is None else _TRANSFERS[generation] * coding / 8 * width


def parse_generation(text: str) -> int | None:
    """The generation of "32.0 GT/s PCIe"; None for "Unknown"."""
    if text.startswith("Unknown"):
        return None
    match = _SPEED.match(text)
    generation = _GENERATIONS.get(float(match[1])) if match else None
    if generation is None:
        raise Malformed(f"expected a PCIe speed such as '32.0 GT/s PCIe', got {text[:40]!r}")
    return generation


def parse_aer_total(text: str, total: str) -> int:
    """The number on the line `total` of an aer_dev_* file."""
    match = re.search(rf"^{total} ([0-9]{{1,20}})$", text, re.MULTILINE)
    if match is None:
        raise Malformed(f"expected a line '{total} NUMBER', got {text[:40]!r}")
    return int(match[1])


def _is_gpu(folder: str) -> bool:
    if (
        optional_number(f"{folder}/vendor") != _NVIDIA
        or (optional_number(f"{folder}/class") or 0) >> 8 not in _GPU_CLASSES
    ):
        return False
    return os.path.basename(link_target(f"{folder}/driver")) not in _FOR_GUESTS and not os.path.lexists(
        f"{folder}/physfn"
    )


def _read_link(folder: str) -> PciLink:
    return PciLink(
        _generation(f"{folder}/current_link_speed"),
        _width(f"{folder}/current_link_width"),
        _generation(f"{folder}/max_link_speed"),
        _width(f"{folder}/max_link_width"),
    )


def _generation(path: str) -> int | None:
    text = optional_text(path)
    return None if text is None else parse_generation(text)


def _width(path: str) -> int | None:
    width = optional_number(path)
    return width if width in _WIDTHS else None
