"""A simulated host over time: a pure function of its control file and the seconds since its start."""

from __future__ import annotations

import math
import threading
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from gpuhost_exporter.sim import catalogue, scenario
from gpuhost_exporter.sim.control import Control, GpuChange
from gpuhost_exporter.sim.hosts import GpuModel, HostSpec
from gpuhost_exporter.sim.program import Program
from gpuhost_exporter.sim.scenario import Fault, FaultKind, GpuLevels, HostLevels

INLET_CELSIUS = 28.0
_THERMAL_SECONDS = 20.0  # temperature follows the mean power of so long
# Where counters stood when the simulation began: the host has been up for a while.
_ENERGY_BEFORE = 4.1e9  # joules
_NVLINK_BEFORE = 7.9e15  # bytes
_PCIE_BEFORE = 3.2e14

_LOGGED = frozenset({"xid", "sxid", "drive_failed", "array_recovering"})


@dataclass(frozen=True, slots=True)
class GpuMoment:
    """A GPU at a moment, in units of its model. Counters count since the driver was loaded or the GPU reset."""

    at: float
    levels: GpuLevels
    totals: GpuLevels  # integrals since the simulation began, resets ignored
    watts: float
    celsius: float
    memory_celsius: float
    sm_clock_mhz: int
    joules: float
    nvlink_bytes: float  # each direction
    pcie_tx_bytes: float
    pcie_rx_bytes: float
    power_capped_seconds: float
    thermal_slowdown_seconds: float
    memory_used_bytes: int
    processes: int


class Event(NamedTuple):
    at: float
    fault: Fault


@dataclass(frozen=True, slots=True)
class _Span:
    """One scenario from start to end, with what all counters had reached before it."""

    start: float
    end: float
    scenario: str
    changes: tuple[GpuChange, ...]
    program: Program
    faults: tuple[Fault, ...]  # times since the simulation began, cut at the span's end
    host_before: HostLevels
    gpus_before: tuple[GpuLevels, ...]


class Timeline:
    def __init__(self, control: Control) -> None:
        self.control = control
        self.host = catalogue.host(control.host)
        self._programs: dict[tuple[str, int], Program] = {}
        self._spans: list[_Span] = []
        self._starts: list[float] = []
        self._log: list[Fault] = []  # of every span so far
        self._source = self._scenarios()
        self._growing = threading.Lock()  # the library's callers have threads

    def gpu_levels(self, index: int, seconds: float) -> tuple[GpuLevels, GpuLevels]:
        """(levels, integrals since the start) of a GPU."""
        span = self._span(seconds)
        levels, totals = span.program.gpu(index, seconds - span.start)
        before = span.gpus_before[index]
        return levels, GpuLevels._make([old + new for old, new in zip(before, totals, strict=True)])

    def host_levels(self, seconds: float) -> tuple[HostLevels, HostLevels]:
        """(levels, integrals since the start) of the rest of the host."""
        span = self._span(seconds)
        levels, totals = span.program.host(seconds - span.start)
        return levels, HostLevels._make([old + new for old, new in zip(span.host_before, totals, strict=True)])

    def pids(self, index: int, seconds: float) -> tuple[int, ...]:
        """Who holds a GPU."""
        span = self._span(seconds)
        for change in span.changes:
            if change.gpu == index and change.pids is not None:
                return change.pids
        levels = span.program.gpu(index, seconds - span.start)[0]
        return self.host.gpus[index].pids if levels.processes else ()

    def scenario(self, seconds: float) -> str:
        """The scenario that runs then; of a tour, the stop."""
        return self._span(seconds).scenario

    def gpu(self, index: int, seconds: float) -> GpuMoment:
        """A GPU's moment. The host must have GPUs."""
        model = self._model()
        levels, totals = self.gpu_levels(index, seconds)
        reset = self._last_reset(index, seconds)
        count = totals
        if reset is not None:
            at_reset = self.gpu_levels(index, reset)[1]
            count = GpuLevels._make([now - then for now, then in zip(totals, at_reset, strict=True)])
        loaded = reset is None
        span_watts = model.limit_watts - model.idle_watts
        watts = model.idle_watts + span_watts * levels.power
        mean = self._mean(index, seconds, totals)
        celsius = (
            INLET_CELSIUS
            + 0.7 * (index % 4)
            + model.celsius_per_watt * (model.idle_watts + span_watts * mean.power)
            + mean.heat
        )
        framebuffer = model.memory_bytes - model.reserved_bytes
        return GpuMoment(
            at=seconds,
            levels=levels,
            totals=totals,
            watts=watts,
            celsius=celsius,
            memory_celsius=celsius + 4 + 9 * mean.dram,
            sm_clock_mhz=15 * round(model.sm_clock_mhz * levels.clock / 15),
            joules=model.idle_watts * (seconds - (reset or 0.0))
            + span_watts * count.power
            + loaded * (_ENERGY_BEFORE + 1e7 * index),
            nvlink_bytes=count.nvlink + loaded * bool(model.links) * (_NVLINK_BEFORE + 1e12 * index),
            pcie_tx_bytes=count.pcie_tx + loaded * _PCIE_BEFORE,
            pcie_rx_bytes=count.pcie_rx + loaded * _PCIE_BEFORE * 1.4,
            power_capped_seconds=count.power_capped,
            thermal_slowdown_seconds=count.thermal_slowdown,
            memory_used_bytes=int(framebuffer * levels.memory),
            processes=round(levels.processes),
        )

    def faults(self, seconds: float) -> tuple[Fault, ...]:
        """What is wrong at that moment; times are seconds since the simulation began."""
        return tuple(fault for fault in self._span(seconds).faults if fault.at <= seconds < fault.until)

    def active(self, kind: FaultKind, seconds: float) -> Fault | None:
        """The fault of that kind at that moment, if there is one."""
        return next((fault for fault in self.faults(seconds) if fault.kind == kind), None)

    def events(self, seconds: float) -> list[Event]:
        """What has been worth a line in the kernel log until that moment, oldest first."""
        self._span(seconds)
        log = (Event(fault.at, fault) for fault in self._log if fault.kind in _LOGGED)
        return sorted((event for event in log if event.at <= seconds), key=lambda event: event.at)

    def link_errors(self, gpu: int, seconds: float) -> dict[int, int]:
        """Recovery errors that a GPU's links have had until that moment, where there are any."""
        self._span(seconds)
        totals: dict[int, float] = {}
        for fault in self._log:
            if fault.kind == "link_errors" and fault.gpu == gpu and fault.at < seconds:
                errors = fault.per_second * (min(seconds, fault.until) - fault.at)
                for link in fault.links:
                    totals[link] = totals.get(link, 0.0) + errors
        return {link: int(total) for link, total in totals.items()}

    def _mean(self, index: int, seconds: float, new: GpuLevels) -> GpuLevels:
        """Mean levels of the last while; before the start, the host did what it did at the start."""
        since = seconds - _THERMAL_SECONDS
        if since >= 0:
            old = self.gpu_levels(index, since)[1]
            return GpuLevels._make([(end - begin) / _THERMAL_SECONDS for begin, end in zip(old, new, strict=True)])
        first = self.gpu_levels(index, 0.0)[0]
        return GpuLevels._make(
            [(end - since * start) / _THERMAL_SECONDS for end, start in zip(new, first, strict=True)]
        )

    def _last_reset(self, gpu: int, seconds: float) -> float | None:
        self._span(seconds)
        resets = [
            fault.at for fault in self._log if fault.kind == "gpu_reset" and fault.gpu == gpu and fault.at <= seconds
        ]
        return max(resets, default=None)

    def _model(self) -> GpuModel:
        assert self.host.model is not None
        return self.host.model

    def _span(self, seconds: float) -> _Span:
        if not self._spans or seconds >= self._spans[-1].end:
            with self._growing:
                while not self._spans or seconds >= self._spans[-1].end:
                    self._extend(*next(self._source))
        return self._spans[max(0, bisect_right(self._starts, seconds, 0, len(self._spans)) - 1)]

    def _extend(self, start: float, end: float, name: str, segment: int) -> None:
        count = len(self.host.gpus)
        host_before = HostLevels._make([0.0] * len(HostLevels._fields))
        gpus_before = (GpuLevels._make([0.0] * len(GpuLevels._fields)),) * count
        if self._spans:
            last = self._spans[-1]
            length = start - last.start
            host_before = HostLevels._make(map(sum, zip(last.host_before, last.program.host(length)[1], strict=True)))
            gpus_before = tuple(
                GpuLevels._make(map(sum, zip(before, last.program.gpu(index, length)[1], strict=True)))
                for index, before in enumerate(last.gpus_before)
            )
        changes = self.control.segments[segment].gpus
        key = (name, segment if changes else -1)
        if key not in self._programs:
            levels = {change.gpu: change.levels for change in changes}
            self._programs[key] = Program(scenario.load(name), self.host, levels)
        faults = tuple(
            replace(
                fault,
                at=start + fault.at,
                until=min(start + fault.until, end),
                gpu=fault.gpu % max(1, count),
                drive=fault.drive % max(1, len(self.host.drives)),
            )
            for fault in (*scenario.load(name).faults, *self.control.segments[segment].faults)
            if start + fault.at < end and _concerns(self.host, fault)
        )
        self._log.extend(faults)
        self._starts.append(start)
        # Last: other threads look here first.
        self._spans.append(_Span(start, end, name, changes, self._programs[key], faults, host_before, gpus_before))

    def _scenarios(self) -> Iterator[tuple[float, float, str, int]]:
        """(start, end, scenario, segment) one after the other; the last one of the control file has no end."""
        segments = self.control.segments
        origin = self.control.started_at
        ends = [segment.started_at - origin for segment in segments[1:]] + [math.inf]
        for number, (segment, end) in enumerate(zip(segments, ends, strict=True)):
            start = segment.started_at - origin
            stops = scenario.load(segment.scenario).stops
            while stops and start < end:
                for stop in stops:
                    if start < end:
                        yield start, min(start + stop.seconds, end), stop.scenario, number
                        start += stop.seconds
            if not stops and start < end:
                yield start, end, segment.scenario, number


def _concerns(host: HostSpec, fault: Fault) -> bool:
    """Whether the host has what the fault is about."""
    if fault.kind in ("drive_failed", "array_recovering"):
        return bool(host.failing_drive)
    if fault.kind in ("drive_pulled", "drive_hangs"):
        return any(drive.controller for drive in host.drives)
    if fault.kind == "sxid":
        return bool(host.switches)
    if fault.kind in ("link_down", "link_errors"):
        return host.model is not None and host.model.links > max(fault.links)
    return bool(host.gpus)
