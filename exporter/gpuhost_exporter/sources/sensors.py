"""Faults that the host's own chips tell the kernel. No privilege needed.

    /sys/devices/system/edac/mc/mc0/ce_count, ue_count            corrected and uncorrected errors of memory
    /sys/devices/system/edac/mc/mc0/dimm3/{dimm_label,dimm_ce_count,dimm_ue_count}     CPU_SrcID#0_MC#1_Chan#0_DIMM#0
    /sys/class/hwmon/hwmon4/{name,fan2_label,fan2_fault,fan2_alarm,power1_alarm,in1_alarm}
    /sys/class/power_supply/PSU1/{type,online}                    Mains, 1

Most servers show fans and power supplies to their BMC only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from gpuhost_exporter.sources.files import Root, optional_count, optional_names, optional_number, optional_text

_ALARM = re.compile(r"((fan|power)[0-9]{1,3})_(?:fault|(?:min_|crit_|cap_)?alarm)")
_METER = "power_meter"  # its alarm says that the machine draws more than it was allowed
_CONTROLLER = re.compile(r"mc[0-9]{1,3}")
_MODULE = re.compile(r"(?:dimm|rank)[0-9]{1,3}")


@dataclass(frozen=True, slots=True)
class MemoryErrors:
    """Of a controller, or of one module below it: counts since boot or since somebody reset them."""

    controller: str
    module: str | None  # the board's label, else dimm3
    corrected: int | None
    uncorrected: int | None


@dataclass(frozen=True, slots=True)
class Sensor:
    kind: str  # fan, power
    chip: str
    name: str
    faulty: bool


def memory_errors(root: Root) -> Iterator[MemoryErrors]:
    """Of every controller that has an EDAC driver, and of each of its modules."""
    folder = f"{root.sys}/devices/system/edac/mc"
    for controller in optional_names(folder):
        if not _CONTROLLER.fullmatch(controller):
            continue
        above = f"{folder}/{controller}"
        yield MemoryErrors(controller, None, optional_count(f"{above}/ce_count"), optional_count(f"{above}/ue_count"))
        for module in optional_names(above):
            if _MODULE.fullmatch(module):
                yield MemoryErrors(
                    controller,
                    optional_text(f"{above}/{module}/dimm_label") or module,
                    optional_count(f"{above}/{module}/dimm_ce_count"),
                    optional_count(f"{above}/{module}/dimm_ue_count"),
                )


def faults(root: Root) -> Iterator[Sensor]:
    """Every fan and power sensor with an alarm of its own, raised or not."""
    folder = f"{root.sys}/class/hwmon"
    for number in optional_names(folder):
        name = optional_text(f"{folder}/{number}/name") or ""
        if name == _METER:
            continue
        alarms: dict[tuple[str, str], bool] = {}
        for file in optional_names(f"{folder}/{number}"):
            match = _ALARM.fullmatch(file)
            raised = optional_number(f"{folder}/{number}/{file}") if match else None
            if match and raised is not None:
                key = (match[2], match[1])
                alarms[key] = alarms.get(key, False) or bool(raised)
        chip = f"{number}:{name}"
        for (kind, sensor), faulty in sorted(alarms.items()):
            yield Sensor(kind, chip, optional_text(f"{folder}/{number}/{sensor}_label") or sensor, faulty)
    folder = f"{root.sys}/class/power_supply"
    for supply in optional_names(folder):
        online = optional_number(f"{folder}/{supply}/online")
        if optional_text(f"{folder}/{supply}/type") == "Mains" and online is not None:
            yield Sensor("power", "power_supply", supply, not online)
