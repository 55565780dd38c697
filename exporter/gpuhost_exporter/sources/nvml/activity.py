"""What moves every second: activity, memory, clocks, power, temperatures, bytes, processes.

A GPU that no process uses and that does nothing is read in full every 15 s only, and gives its last reading in
between: an exporter must not keep it warm. Processes alone do not tell: a container may see none of the host's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gpuhost_exporter.clock import Clock
from gpuhost_exporter.errors import Malformed
from gpuhost_exporter.sources.nvml import fields, quantities
from gpuhost_exporter.sources.nvml.calls import Calls
from gpuhost_exporter.sources.nvml.gpm import LONGEST_SECONDS, SHORTEST_SECONDS, Comparison, Pair
from gpuhost_exporter.sources.nvml.probe import LOST, Probe
from gpuhost_exporter.sources.nvml.readings import Activity, Fault, Process

IDLE_SECONDS = 15.0
IDLE_PROCESSES_SECONDS = 5.0

_CLOCK_SM = 1
_CLOCK_MEMORY = 2
_SENSOR_CORE = 0

# Each with the name that older drivers know it by.
_PROCESSES = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetComputeRunningProcesses_v2")
_TEMPERATURE = ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature")
_REASONS = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")

_FIELDS: tuple[fields.Field, ...] = (
    (fields.MEMORY_TEMPERATURE, 0),
    *((field, 0) for field in fields.THROTTLED),
    (fields.PCIE_TX_BYTES, 0),
    (fields.PCIE_RX_BYTES, 0),
)


class Memory(NamedTuple):
    total: int | None = None
    used: int | None = None
    free: int | None = None
    reserved: int | None = None


class _Gpu:
    """What is kept of one GPU from call to call."""

    def __init__(self) -> None:
        self.pair = Pair()
        self.last: Activity | None = None
        self.denied: tuple[Fault, ...] = ()  # when last was read
        self.processes: tuple[Process, ...] | None = None  # None: not told
        self.processes_at = float("-inf")


class Activities:
    def __init__(self, calls: Calls, clock: Clock) -> None:
        self._calls = calls
        self._clock = clock
        self._compare = Comparison(calls.nv)
        self._gpus: dict[str, _Gpu] = {}

    def read(self, probe: Probe) -> Iterator[Activity]:
        gpu = self._gpus.setdefault(probe.device.uuid, _Gpu())
        now = self._clock.now()
        try:
            if gpu.last is None or self._due(probe, gpu, gpu.last, now):
                if gpu.processes_at < now:
                    self._ask_processes(probe, gpu, now)
                gpu.last = self._read(probe, gpu, self._clock.now())
                gpu.denied = probe.denied()
            else:
                probe.still(gpu.denied)
        except LOST:
            gpu.last = None
            gpu.processes_at = float("-inf")
            gpu.pair.discard()
            raise
        yield gpu.last

    def idle(self, uuid: str) -> bool:
        """Whether the GPU is known to do nothing for nobody. It may have been given work since it was last read."""
        gpu = self._gpus.get(uuid)
        return gpu is not None and gpu.last is not None and not _in_use(gpu, gpu.last)

    def close(self) -> None:
        for uuid, gpu in self._gpus.items():
            gpu.pair.free(self._calls, uuid)
        self._gpus.clear()

    def _due(self, probe: Probe, gpu: _Gpu, last: Activity, now: float) -> bool:
        if now - last.at < SHORTEST_SECONDS:
            return False
        in_use = _in_use(gpu, last)
        if gpu.processes is not None and now - gpu.processes_at >= IDLE_PROCESSES_SECONDS:
            self._ask_processes(probe, gpu, now)
        changed = gpu.processes != last.processes
        return in_use or changed or last.gpm == "warming_up" or now - last.at >= IDLE_SECONDS

    @staticmethod
    def _ask_processes(probe: Probe, gpu: _Gpu, now: float) -> None:
        rows = probe.first(_PROCESSES)
        gpu.processes = None if rows is None else _processes(probe, rows)
        gpu.processes_at = now

    def _read(self, probe: Probe, gpu: _Gpu, now: float) -> Activity:
        device, calls = probe.device, probe.calls
        gpm = gpu.pair.measure(
            probe, self._compare, now, lambda sample: calls.hand(device, "nvmlGpmSampleGet", "sample", sample)
        )
        told = fields.read(probe, (*_FIELDS, *fields.link_byte_fields(probe, fields.ALL_LINKS)))
        link_tx, link_rx = told.link_bytes(fields.ALL_LINKS)
        rates = probe.value("nvmlDeviceGetUtilizationRates")
        memory = memory_of(probe)
        return Activity(
            uuid=device.uuid,
            since=gpm.since if gpm.since is not None else _since(gpu.last, now),
            at=now,
            gpm=gpm.state,
            graphics_ratio=gpm.values.get("graphics"),
            sm_active_ratio=gpm.values.get("sm_active"),
            sm_occupancy_ratio=gpm.values.get("sm_occupancy"),
            tensor_ratio=gpm.values.get("tensor"),
            fp64_ratio=gpm.values.get("fp64"),
            fp32_ratio=gpm.values.get("fp32"),
            fp16_ratio=gpm.values.get("fp16"),
            memory_bandwidth_ratio=gpm.values.get("memory_bandwidth"),
            pcie_tx_bytes_per_second=gpm.values.get("pcie_tx"),
            pcie_rx_bytes_per_second=gpm.values.get("pcie_rx"),
            utilization_ratio=probe.checked(quantities.PERCENT, getattr(rates, "gpu", None), "utilization"),
            memory_busy_ratio=probe.checked(quantities.PERCENT, getattr(rates, "memory", None), "memory utilization"),
            memory_total_bytes=memory.total,
            memory_used_bytes=memory.used,
            memory_free_bytes=memory.free,
            memory_reserved_bytes=memory.reserved,
            sm_clock_hertz=probe.quantity(quantities.MEGAHERTZ, "nvmlDeviceGetClockInfo", _CLOCK_SM),
            memory_clock_hertz=probe.quantity(quantities.MEGAHERTZ, "nvmlDeviceGetClockInfo", _CLOCK_MEMORY),
            power_watts=probe.quantity(quantities.MILLIWATTS, "nvmlDeviceGetPowerUsage"),
            energy_joules=probe.quantity(quantities.MILLIJOULES, "nvmlDeviceGetTotalEnergyConsumption"),
            core_celsius=probe.checked(quantities.CELSIUS, probe.first(_TEMPERATURE, _SENSOR_CORE), _TEMPERATURE[0]),
            memory_celsius=told.quantity(quantities.CELSIUS, fields.MEMORY_TEMPERATURE),
            margin_celsius=probe.quantity(quantities.MARGIN_CELSIUS, "nvmlDeviceGetMarginTemperature"),
            throttled_seconds=_throttled(told),
            clock_event_reasons=probe.counted(quantities.MASK, probe.first(_REASONS), _REASONS[0]),
            nvlink_tx_bytes=link_tx,
            nvlink_rx_bytes=link_rx,
            pcie_tx_bytes=told.whole(quantities.COUNTED_BYTES, fields.PCIE_TX_BYTES),
            pcie_rx_bytes=told.whole(quantities.COUNTED_BYTES, fields.PCIE_RX_BYTES),
            processes=gpu.processes,
        )


def _in_use(gpu: _Gpu, last: Activity) -> bool:
    return bool(gpu.processes or last.utilization_ratio or last.graphics_ratio)


def _since(last: Activity | None, now: float) -> float:
    return last.at if last is not None and now - last.at <= LONGEST_SECONDS else now


def _throttled(told: fields.Told) -> tuple[tuple[str, float], ...]:
    """Seconds by reason. What only the hardware does (thermal, power brake) has no stable id: see the reason bits."""
    seconds = ((reason, told.quantity(quantities.NANOSECONDS, field)) for field, reason in fields.THROTTLED.items())
    return tuple((reason, value) for reason, value in seconds if value is not None)


def memory_of(probe: Probe) -> Memory:
    """Version 2 of the structure; version 1, on drivers before 510, counts the driver's reserve as used."""
    name, version = "nvmlDeviceGetMemoryInfo", probe.calls.nv.nvmlMemory_v2
    block = probe.value(name, version)
    if block is None and probe.refused(name, (version,)):
        block = probe.value(name, 0)
    return Memory() if block is None else _memory(probe, block)


def _memory(probe: Probe, block: Any) -> Memory:
    raw = (block.total, block.used, block.free, getattr(block, "reserved", None))
    told = [probe.counted(quantities.BYTES, part, "memory") for part in raw]
    total = told[0]
    if total is None or any(part is not None and part > total for part in told):
        probe.failed("memory", Malformed(f"memory: more than there is: total, used, free, reserved = {raw}"))
        return Memory()
    return Memory(*told)


def _processes(probe: Probe, rows: Sequence[Any]) -> tuple[Process, ...]:
    """One entry a process: under MIG the list names it once per instance."""
    held: dict[int, int | None] = {}
    for row in rows:
        pid = probe.counted(quantities.PID, row.pid, "process id")
        if pid is None:
            continue
        memory = probe.counted(quantities.BYTES, row.usedGpuMemory, "memory of a process")
        before = held.get(pid)
        held[pid] = memory if before is None else before + (memory or 0)
    return tuple(Process(pid, memory) for pid, memory in sorted(held.items()))
