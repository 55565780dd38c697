"""One scenario on one host: levels at any moment of it, and their exact integrals since it began.

A level wobbles around its mean by a sine that fits whole periods into its phase, so a whole phase's integral is
mean x seconds, and a part of it has a closed form: no counter is ever stepped along.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

from gpuhost_exporter.sim.hosts import HostSpec
from gpuhost_exporter.sim.scenario import GpuLevels, HostLevels, Phase, Scenario, is_ratio, moves

_GOLDEN_ANGLE = 2.399963229728653  # spreads the phases of any number of GPUs
_PCIE_SHARE = 0.8  # what collectives reach of a PCIe link


class _Track:
    """The levels of one subject, a GPU or the rest of the host, through the phases."""

    def __init__(
        self, phases: Sequence[Phase], levels: Sequence[tuple[float, ...]], names: tuple[str, ...], angle: float
    ) -> None:
        self.levels = levels
        self.angle = angle
        self.periods = [
            phase.period if math.isinf(phase.seconds) else phase.seconds / max(1, round(phase.seconds / phase.period))
            for phase in phases
        ]
        self.amplitudes = [
            tuple(_amplitude(name, level, phase.wobble) for name, level in zip(names, row, strict=True))
            for phase, row in zip(phases, levels, strict=True)
        ]
        self.before = [tuple(0.0 for _ in names)]  # integrals over the whole phases before each
        for phase, row in zip(phases, levels, strict=True):
            if not math.isinf(phase.seconds):
                self.before.append(
                    tuple(total + level * phase.seconds for total, level in zip(self.before[-1], row, strict=True))
                )

    def at(self, cycles: int, phase: int, seconds: float) -> tuple[list[float], list[float]]:
        """(levels, integrals) so many seconds into a phase, after so many whole cycles."""
        rate = math.tau / self.periods[phase]
        turn = rate * seconds + self.angle
        sine = math.sin(turn)
        area = (math.cos(self.angle) - math.cos(turn)) / rate
        now = []
        totals = []
        for level, amplitude, before, cycle in zip(
            self.levels[phase], self.amplitudes[phase], self.before[phase], self.before[-1], strict=True
        ):
            swing = level * amplitude
            now.append(level + swing * sine)
            totals.append(cycles * cycle + before + level * seconds + swing * area)
        return now, totals


def _amplitude(name: str, level: float, wobble: float) -> float:
    """How far a level swings, as a share of it: a ratio must stay below 1."""
    if not moves(name):
        return 0.0
    return min(wobble, 1 / level - 1) if is_ratio(name) and level else wobble


class Program:
    def __init__(self, scenario: Scenario, host: HostSpec, changes: Mapping[int, Mapping[str, float]]) -> None:
        """`changes`: levels by GPU that hold in every phase, whatever the scenario says."""
        phases = scenario.phases
        self._starts = [0.0]
        for phase in phases[:-1]:
            self._starts.append(self._starts[-1] + phase.seconds)
        self._cycle = self._starts[-1] + phases[-1].seconds  # infinite when it does not loop
        limit = _gpu_limit(host)
        self._host = _Track(phases, [_limit_host(host, phase.host) for phase in phases], HostLevels._fields, 0.0)
        self._gpus = []
        for gpu in host.gpus:
            rows = []
            for phase in phases:
                own = {number % len(host.gpus): levels for number, levels in phase.others}
                levels = own.get(gpu.index, phase.gpu)
                rows.append(limit(levels._replace(**changes.get(gpu.index, {}))))
            self._gpus.append(_Track(phases, rows, GpuLevels._fields, _GOLDEN_ANGLE * gpu.index))

    def gpu(self, index: int, seconds: float) -> tuple[GpuLevels, GpuLevels]:
        """(levels, integrals of them) of a GPU, so many seconds into the scenario."""
        now, totals = self._gpus[index].at(*self._locate(seconds))
        return GpuLevels._make(now), GpuLevels._make(totals)

    def host(self, seconds: float) -> tuple[HostLevels, HostLevels]:
        """(levels, integrals of them) of the rest of the host."""
        now, totals = self._host.at(*self._locate(seconds))
        return HostLevels._make(now), HostLevels._make(totals)

    def _locate(self, seconds: float) -> tuple[int, int, float]:
        cycles = 0
        if seconds >= self._cycle:
            cycles = int(seconds // self._cycle)
            seconds -= cycles * self._cycle
        phase = max(0, bisect_right(self._starts, seconds) - 1)
        return cycles, phase, seconds - self._starts[phase]


def _gpu_limit(host: HostSpec) -> Callable[[GpuLevels], GpuLevels]:
    """What the host's GPUs can do of what a scenario asks: without NVLink, collectives take PCIe."""
    model = host.model
    if model is None:
        return lambda levels: levels
    link_limit = 0.9 * model.links * model.link_megabytes_per_second * 1e6
    pcie_limit = _PCIE_SHARE * model.pcie_bytes_per_second

    def limit(levels: GpuLevels) -> GpuLevels:
        over_pcie = 0.0 if model.links else 0.1 * levels.nvlink
        return levels._replace(
            nvlink=min(levels.nvlink, link_limit),
            pcie_tx=min(levels.pcie_tx + over_pcie, pcie_limit),
            pcie_rx=min(levels.pcie_rx + over_pcie, pcie_limit),
        )

    return limit


def _limit_host(host: HostSpec, levels: HostLevels) -> HostLevels:
    ports = [port for port in host.ports if port.compute]
    read, write = host.read_limit, host.write_limit
    return levels._replace(
        nic=min(levels.nic, 0.95 * ports[0].gigabits * 125e6) if ports else 0.0,
        disk_read=min(levels.disk_read, read),
        disk_write=min(levels.disk_write, write),
        job_read=min(levels.job_read, read),
        job_write=min(levels.job_write, write),
        background_write=min(levels.background_write, write),
        dirtied=min(levels.dirtied, write),
    )
