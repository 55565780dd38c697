"""Pressure: seconds that tasks waited for processor, memory, I/O or interrupts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from gpuhost_exporter.collector import Collector
from gpuhost_exporter.errors import Unsupported
from gpuhost_exporter.sources import pressure
from gpuhost_exporter.specs import Sample, Spec, counter

STALLED = counter(
    "gpuhost_pressure_stalled_seconds_total",
    "Seconds since boot in which at least one task (some) or every task with work (full) waited for the resource. "
    "A rate near 0 is good; on a large host watch some, for full needs every task to wait.",
    "resource",
    "kind",
)


class PressureCollector(Collector):
    name: ClassVar[str] = "pressure"
    help: ClassVar[str] = "Seconds that tasks waited for processor, memory, I/O or interrupts"
    source: ClassVar[str] = "/proc/pressure"
    interval: ClassVar[float] = 1.0
    specs: ClassVar[tuple[Spec, ...]] = (STALLED,)

    def poll(self, now: float) -> Iterator[Sample]:
        switched_off: list[Unsupported] = []
        resources = pressure.resources(self.host.root)
        for resource in resources:
            with self.guard(resource):
                try:
                    stalls = pressure.read(self.host.root, resource)
                except Unsupported as error:
                    switched_off.append(error)
                    raise
                for stall in stalls:
                    yield STALLED(stall.resource, stall.kind, value=stall.seconds)
        if len(switched_off) == len(resources) > 0:
            raise switched_off[0]
