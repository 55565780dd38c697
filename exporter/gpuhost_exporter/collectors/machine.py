"""The machine: make, model, kernel, boot time, processors and memory, and faults that its chips tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from gpuhost_exporter.collector import Collector
from gpuhost_exporter.host import Host
from gpuhost_exporter.sources import machine, sensors
from gpuhost_exporter.specs import Sample, Spec, counter, gauge, info

INFO = info(
    "gpuhost_machine_info",
    "Who made the machine and what it runs: system vendor, product, BIOS version, kernel, processor model.",
    "vendor",
    "product",
    "bios",
    "kernel",
    "processor",
)
BOOT_TIME = gauge("gpuhost_boot_time_seconds", "When the kernel booted, in seconds since the epoch.")
PROCESSORS = gauge("gpuhost_machine_processors", "Logical processors that are online.")
MEMORY_ERRORS = counter(
    "gpuhost_memory_errors_total",
    "Errors of host memory that a memory controller has found, by kind: corrected, uncorrected. An uncorrected one "
    "kills what used the page; a steady rise of corrected ones announces it. Absent where the kernel has no EDAC "
    "driver for the machine.",
    "controller",
    "kind",
)
DIMM_ERRORS = counter(
    "gpuhost_memory_dimm_errors_total",
    "Errors of a memory module that has had any, by kind: which one to exchange.",
    "controller",
    "dimm",
    "kind",
)
FAN_FAULT = gauge(
    "gpuhost_fan_fault",
    "Whether a fan is broken or too slow by its own sensor chip: 0 is good. Absent where only the BMC can tell.",
    "chip",
    "sensor",
)
POWER_FAULT = gauge(
    "gpuhost_power_supply_fault",
    "Whether a power supply gives no power or raises an alarm: 0 is good. Absent where only the BMC can tell.",
    "chip",
    "sensor",
)
MEMORY = gauge("gpuhost_machine_memory_bytes", "Memory that the kernel manages, in bytes.")


class MachineCollector(Collector):
    name: ClassVar[str] = "machine"
    help: ClassVar[str] = "Make, model, kernel, boot time, size of the machine; faults of its memory, fans and power"
    source: ClassVar[str] = "/sys/class/dmi/id, /proc/stat, /proc/meminfo, /proc/cpuinfo, EDAC, hwmon"
    interval: ClassVar[float] = 60.0
    specs: ClassVar[tuple[Spec, ...]] = (
        INFO,
        BOOT_TIME,
        PROCESSORS,
        MEMORY,
        MEMORY_ERRORS,
        DIMM_ERRORS,
        FAN_FAULT,
        POWER_FAULT,
    )

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._identity: machine.Identity | None = None

    def poll(self, now: float) -> Iterator[Sample]:
        if self._identity is None:
            self._identity = machine.identity(self.host.root)
        of = self._identity
        yield INFO(*(text or "" for text in (of.vendor, of.product, of.bios, of.kernel, of.processor)))
        with self.guard("stat"):
            running = machine.running(self.host.root)
            yield BOOT_TIME(value=running.boot_time)
            yield PROCESSORS(value=running.processors)
        with self.guard("meminfo"):
            yield MEMORY(value=machine.memory_bytes(self.host.root))
        yield from self._hardware()

    def _hardware(self) -> Iterator[Sample]:
        for errors in sensors.memory_errors(self.host.root):
            for kind, count in (("corrected", errors.corrected), ("uncorrected", errors.uncorrected)):
                if errors.module is None and count is not None:
                    yield MEMORY_ERRORS(errors.controller, kind, value=count)
                elif errors.module is not None and count:
                    yield DIMM_ERRORS(errors.controller, errors.module, kind, value=count)
        for sensor in sensors.faults(self.host.root):
            spec = FAN_FAULT if sensor.kind == "fan" else POWER_FAULT
            yield spec(sensor.chip, sensor.name, value=float(sensor.faulty))
