"""What a GPU does: how busy it is, with what, and what it draws. From NVML's activity readings, once a second."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gpuhost_exporter.collectors.per_gpu import NvmlCollector, gpu_counter, gpu_gauge, gpu_info, gpu_labels, told
from gpuhost_exporter.host import Host
from gpuhost_exporter.sources.nvml.readings import Activity, Gpu
from gpuhost_exporter.sources.processes import owners
from gpuhost_exporter.specs import Sample

# A GPU without a process is asked every 15 s, so that the exporter does not keep it awake.
OLDEST = 45.0

UTILIZATION = gpu_gauge(
    "gpuhost_gpu_utilization_ratio",
    "Share of time with work on the GPU, 0-1: GPM's graphics activity, else NVML's utilization. Training on bare "
    "metal holds 0.9 to 0.97, but so does a hung collective: read it with tensor activity.",
)
UTILIZATION_SOURCE = gpu_info(
    "gpuhost_gpu_utilization_source_info",
    "Which source gpuhost_gpu_utilization_ratio has now (gpm, nvml or none) and in label gpm why GPM is or is not "
    "that: ok, warming_up, unsupported, permission, mig or error.",
    "source",
    "gpm",
)
SM_ACTIVE = gpu_gauge(
    "gpuhost_gpu_sm_active_ratio",
    "Share of the streaming multiprocessors that were busy, averaged over time, 0-1, from GPM. One lone "
    "communication kernel shows about 0.15.",
)
SM_OCCUPANCY = gpu_gauge(
    "gpuhost_gpu_sm_occupancy_ratio",
    "Resident warps as a share of what the multiprocessors could hold, 0-1, from GPM. Fast kernels may be low.",
)
TENSOR_ACTIVE = gpu_gauge(
    "gpuhost_gpu_tensor_active_ratio",
    "Share of the tensor cores' issue capacity in use, 0-1, from GPM. Good training of large models shows 0.35-0.55.",
)
FP64_ACTIVE = gpu_gauge(
    "gpuhost_gpu_fp64_active_ratio",
    "Share of the FP64 units' capacity in use, 0-1, from GPM. High only in work that computes in double precision.",
)
FP32_ACTIVE = gpu_gauge(
    "gpuhost_gpu_fp32_active_ratio", "Share of the FP32 units' capacity in use, 0-1, from GPM. Tells the kind of work."
)
FP16_ACTIVE = gpu_gauge(
    "gpuhost_gpu_fp16_active_ratio",
    "Share of the FP16 units' capacity in use outside of the tensor cores, 0-1, from GPM. Low in most training.",
)
MEMORY_BANDWIDTH_RATIO = gpu_gauge(
    "gpuhost_gpu_memory_bandwidth_ratio",
    "Memory bandwidth in use as a share of the peak, 0-1, from GPM. Near 1 the memory is the bottleneck.",
)
MEMORY_BANDWIDTH = gpu_gauge(
    "gpuhost_gpu_memory_bandwidth_bytes_per_second",
    "Memory bandwidth in use: gpuhost_gpu_memory_bandwidth_ratio times the peak. NVML counts no memory bytes.",
)
MEMORY_BANDWIDTH_PEAK = gpu_gauge(
    "gpuhost_gpu_memory_bandwidth_peak_bytes_per_second",
    "Peak by which the bandwidth ratio becomes bytes per second. Label source: product (its data sheet) or clock "
    "(highest memory clock x 2 x bus width, for a product not in the table; may be a few percent high).",
    "source",
)
MEMORY_BANDWIDTH_BYTES = gpu_counter(
    "gpuhost_gpu_memory_bandwidth_bytes_total",
    "Bytes moved to and from GPU memory since the exporter started: the bandwidth of each of GPM's windows times its "
    "length. Times without a reading count nothing.",
)
MEMORY_BUSY = gpu_gauge(
    "gpuhost_gpu_memory_busy_ratio",
    "Share of time in which GPU memory was read or written at all, 0-1, from NVML. Not a bandwidth.",
)
MEMORY_TOTAL = gpu_gauge("gpuhost_gpu_memory_total_bytes", "GPU memory in all. Good is what the product has.")
MEMORY_USED = gpu_gauge(
    "gpuhost_gpu_memory_used_bytes", "GPU memory held by processes, without what the driver reserves for itself."
)
MEMORY_FREE = gpu_gauge("gpuhost_gpu_memory_free_bytes", "GPU memory that processes can still allocate.")
MEMORY_RESERVED = gpu_gauge(
    "gpuhost_gpu_memory_reserved_bytes", "GPU memory that the driver and firmware keep for themselves."
)
SM_CLOCK = gpu_gauge(
    "gpuhost_gpu_sm_clock_hertz",
    "Clock of the multiprocessors now. Under load it is good near gpuhost_gpu_sm_clock_max_hertz.",
)
MEMORY_CLOCK = gpu_gauge("gpuhost_gpu_memory_clock_hertz", "Clock of the memory now. Under load it is at its highest.")
SM_CLOCK_MAX = gpu_gauge("gpuhost_gpu_sm_clock_max_hertz", "Highest clock of the multiprocessors.")
MEMORY_CLOCK_MAX = gpu_gauge("gpuhost_gpu_memory_clock_max_hertz", "Highest clock of the memory.")
POWER = gpu_gauge(
    "gpuhost_gpu_power_watts",
    "Power drawn, from Ampere on averaged over a second. Near 150 W at full utilization an H100 waits instead of "
    "computing.",
)
ENERGY = gpu_counter(
    "gpuhost_gpu_energy_joules_total", "Energy drawn since the driver was loaded, as the GPU counts it."
)
TEMPERATURE = gpu_gauge(
    "gpuhost_gpu_temperature_celsius",
    "Temperature by sensor: core or memory (HBM). Good with gpuhost_gpu_temperature_margin_celsius well above 0.",
    "sensor",
)
TEMPERATURE_MARGIN = gpu_gauge(
    "gpuhost_gpu_temperature_margin_celsius",
    "Degrees left until the GPU lowers its clocks. At 0 or below it slows down.",
)
THROTTLED = gpu_counter(
    "gpuhost_gpu_throttled_seconds_total",
    "Seconds for which clocks were held down, by reason, as the GPU counts them since the driver was loaded. Reason "
    "power at full load is normal; thermal, board_limit and reliability are not. For hw_thermal, hw_power_brake and "
    "hw_slowdown, which holds with either, the GPU has no counter: these are sampled once a second (every 15 s without "
    "a process) and counted since the exporter started. Good is no increase.",
    "reason",
)
THROTTLE_ACTIVE = gpu_gauge(
    "gpuhost_gpu_throttle_active",
    "Whether clocks are held down now for a reason that somebody should look into: hw_slowdown, sw_thermal, "
    "hw_thermal or hw_power_brake. Good is 0.",
    "reason",
)
NVLINK_BYTES = gpu_counter(
    "gpuhost_gpu_nvlink_bytes_total",
    "Payload bytes over all NVLinks of the GPU since the driver was loaded; tx leaves the GPU. The same bytes as in "
    "gpuhost_nvlink_bytes_total, which has them by link.",
    "direction",
)
PCIE_RATE = gpu_gauge(
    "gpuhost_gpu_pcie_bytes_per_second",
    "Bytes over PCIe, from GPM; tx leaves the GPU. High tx in training is copying to the host, as checkpoints do.",
    "direction",
)
PCIE_BYTES = gpu_counter(
    "gpuhost_gpu_pcie_bytes_total",
    "Bytes over PCIe since the exporter started, from the GPU's counters; tx leaves the GPU. Where the hardware's "
    "counter starts over, what it lost then is not counted.",
    "direction",
)
PROCESSES = gpu_gauge("gpuhost_gpu_processes", "Processes that hold a context on the GPU for computing.")
USERS = gpu_gauge(
    "gpuhost_gpu_users",
    "Distinct users who own the processes on the GPU. Absent where they cannot be seen, as in a container without the "
    "host's process ids. More than 1 on a dedicated GPU is somebody else's work.",
)
AGE = gpu_gauge(
    "gpuhost_gpu_activity_age_seconds",
    "Age of the GPU's activity readings: about 1 with a process on it, up to 15 without, because asking an idle GPU "
    "every second would keep it awake.",
)

_TOLD = (
    (SM_ACTIVE, "sm_active_ratio"),
    (SM_OCCUPANCY, "sm_occupancy_ratio"),
    (TENSOR_ACTIVE, "tensor_ratio"),
    (FP64_ACTIVE, "fp64_ratio"),
    (FP32_ACTIVE, "fp32_ratio"),
    (FP16_ACTIVE, "fp16_ratio"),
    (MEMORY_BANDWIDTH_RATIO, "memory_bandwidth_ratio"),
    (MEMORY_BUSY, "memory_busy_ratio"),
    (MEMORY_TOTAL, "memory_total_bytes"),
    (MEMORY_USED, "memory_used_bytes"),
    (MEMORY_FREE, "memory_free_bytes"),
    (MEMORY_RESERVED, "memory_reserved_bytes"),
    (SM_CLOCK, "sm_clock_hertz"),
    (MEMORY_CLOCK, "memory_clock_hertz"),
    (POWER, "power_watts"),
    (ENERGY, "energy_joules"),
    (TEMPERATURE_MARGIN, "margin_celsius"),
)
_CLOCK_LIMITS = ((SM_CLOCK_MAX, "sm_clock_max_hertz"), (MEMORY_CLOCK_MAX, "memory_clock_max_hertz"))
_SENSORS = (("core", "core_celsius"), ("memory", "memory_celsius"))
_DIRECTED = (
    (NVLINK_BYTES, "rx", "nvlink_rx_bytes"),
    (NVLINK_BYTES, "tx", "nvlink_tx_bytes"),
    (PCIE_RATE, "rx", "pcie_rx_bytes_per_second"),
    (PCIE_RATE, "tx", "pcie_tx_bytes_per_second"),
)
_PCIE_COUNTERS = (("rx", "pcie_rx_bytes"), ("tx", "pcie_tx_bytes"))
# Of these the GPU itself counts no seconds.
_SAMPLED = (("hw_slowdown", 0x8), ("hw_thermal", 0x40), ("hw_power_brake", 0x80))
# NVML's bits; 0x4, the power cap, is normal at full load.
_ACTIONABLE = (("hw_slowdown", 0x8), ("sw_thermal", 0x20), ("hw_thermal", 0x40), ("hw_power_brake", 0x80))


@dataclass(slots=True)
class Integral:
    """A rate summed over time."""

    total: float = 0.0
    until: float = 0.0

    def add(self, rate: float, since: float, at: float) -> None:
        """Count a rate over the part of its window that is not counted yet."""
        since = max(since, self.until)
        if at > since:
            self.total += rate * (at - since)
            self.until = at


@dataclass(slots=True)
class Advance:
    """How far a hardware counter has moved since it was first seen."""

    last: int
    total: int = 0

    def add(self, value: int) -> None:
        # It wrapped or was reset: at least what it shows now has come since.
        self.total += value - self.last if value >= self.last else value
        self.last = value


class GpuCollector(NvmlCollector):
    name = "gpu"
    help = "Activity, memory, clocks, power, temperature and traffic of each GPU"
    source = "NVML: GPM samples, utilization, memory, clocks, power, energy, temperature, field values, processes"
    privilege = (
        "CAP_SYS_ADMIN for GPM where the driver keeps profiling to administrators (RmProfilingAdminOnly: 1 in "
        "/proc/driver/nvidia/params); nothing for the rest"
    )
    interval = 1.0
    subject = "activity"
    specs = (
        UTILIZATION,
        UTILIZATION_SOURCE,
        SM_ACTIVE,
        SM_OCCUPANCY,
        TENSOR_ACTIVE,
        FP64_ACTIVE,
        FP32_ACTIVE,
        FP16_ACTIVE,
        MEMORY_BANDWIDTH_RATIO,
        MEMORY_BANDWIDTH,
        MEMORY_BANDWIDTH_PEAK,
        MEMORY_BANDWIDTH_BYTES,
        MEMORY_BUSY,
        MEMORY_TOTAL,
        MEMORY_USED,
        MEMORY_FREE,
        MEMORY_RESERVED,
        SM_CLOCK,
        MEMORY_CLOCK,
        SM_CLOCK_MAX,
        MEMORY_CLOCK_MAX,
        POWER,
        ENERGY,
        TEMPERATURE,
        TEMPERATURE_MARGIN,
        THROTTLED,
        THROTTLE_ACTIVE,
        NVLINK_BYTES,
        PCIE_RATE,
        PCIE_BYTES,
        PROCESSES,
        USERS,
        AGE,
    )

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._memory_bytes: dict[str, Integral] = {}
        self._pcie_bytes: dict[tuple[str, str], Advance] = {}
        self._throttled: dict[tuple[str, str], Integral] = {}

    def poll(self, now: float) -> Iterator[Sample]:
        activities = tuple(self.of_gpus(self.ask(), Activity))
        # At the same instant: what the processes did is set against what their GPUs did.
        self.host.processes.follow(
            {gpu.uuid: [process.pid for process in activity.processes or ()] for gpu, activity in activities}
        )
        for gpu, activity in activities:
            if now - activity.at > OLDEST:
                continue
            yield from self._utilization(gpu, activity)
            yield from told(_TOLD, gpu_labels(gpu), activity)
            yield from told(_CLOCK_LIMITS, gpu_labels(gpu), gpu)
            yield from self._memory_bandwidth(gpu, activity)
            yield from self._labelled(gpu, activity)
            yield from self._throttling(gpu, activity)
            yield from self._pcie(gpu, activity)
            yield from self._processes(gpu, activity)
            yield AGE(*gpu_labels(gpu), value=max(0.0, now - activity.at))

    def _utilization(self, gpu: Gpu, activity: Activity) -> Iterator[Sample]:
        labels = gpu_labels(gpu)
        if activity.graphics_ratio is not None:
            source = "gpm"
            yield UTILIZATION(*labels, value=activity.graphics_ratio)
        elif activity.utilization_ratio is not None:
            source = "nvml"
            yield UTILIZATION(*labels, value=activity.utilization_ratio)
        else:
            source = "none"
        yield UTILIZATION_SOURCE(*labels, source, activity.gpm)

    def _memory_bandwidth(self, gpu: Gpu, activity: Activity) -> Iterator[Sample]:
        labels = gpu_labels(gpu)
        product = self.host.targets.product(gpu.name)
        peak, source = product and product.memory_bandwidth_bytes_per_second, "product"
        if not peak and gpu.memory_clock_max_hertz and gpu.memory_bus_bits:
            peak, source = gpu.memory_clock_max_hertz * 2 * gpu.memory_bus_bits / 8, "clock"
        if peak:
            yield MEMORY_BANDWIDTH_PEAK(*labels, source, value=peak)
            if activity.memory_bandwidth_ratio is not None:
                rate = activity.memory_bandwidth_ratio * peak
                yield MEMORY_BANDWIDTH(*labels, value=rate)
                self._memory_bytes.setdefault(gpu.uuid, Integral()).add(rate, activity.since, activity.at)
            elif activity.gpm == "warming_up":
                # Shown before it moves: a counter that is born with a value hides its first bytes from increase().
                self._memory_bytes.setdefault(gpu.uuid, Integral())
        if counted := self._memory_bytes.get(gpu.uuid):
            yield MEMORY_BANDWIDTH_BYTES(*labels, value=counted.total)

    def _labelled(self, gpu: Gpu, activity: Activity) -> Iterator[Sample]:
        labels = gpu_labels(gpu)
        for sensor, field in _SENSORS:
            celsius = getattr(activity, field)
            if celsius is not None:
                yield TEMPERATURE(*labels, sensor, value=celsius)
        for spec, direction, field in _DIRECTED:
            traffic = getattr(activity, field)
            if traffic is not None:
                yield spec(*labels, direction, value=traffic)

    def _throttling(self, gpu: Gpu, activity: Activity) -> Iterator[Sample]:
        labels = gpu_labels(gpu)
        for reason, seconds in activity.throttled_seconds:
            yield THROTTLED(*labels, reason, value=seconds)
        for reason, bit in _SAMPLED:
            key = (gpu.uuid, reason)
            if activity.clock_event_reasons is not None:
                counted = self._throttled.setdefault(key, Integral())
                counted.add(float(bool(activity.clock_event_reasons & bit)), activity.since, activity.at)
            if key in self._throttled:
                yield THROTTLED(*labels, reason, value=self._throttled[key].total)
        if activity.clock_event_reasons is not None:
            for reason, bit in _ACTIONABLE:
                yield THROTTLE_ACTIVE(*labels, reason, value=float(bool(activity.clock_event_reasons & bit)))

    def _pcie(self, gpu: Gpu, activity: Activity) -> Iterator[Sample]:
        for direction, field in _PCIE_COUNTERS:
            key = (gpu.uuid, direction)
            value = getattr(activity, field)
            if value is not None:
                self._pcie_bytes.setdefault(key, Advance(value)).add(value)
            if key in self._pcie_bytes:
                yield PCIE_BYTES(*gpu_labels(gpu), direction, value=self._pcie_bytes[key].total)

    def _processes(self, gpu: Gpu, activity: Activity) -> Iterator[Sample]:
        if activity.processes is None:
            return
        labels = gpu_labels(gpu)
        pids = {process.pid for process in activity.processes}
        yield PROCESSES(*labels, value=len(pids))
        users = owners(self.host.root, pids)
        if users or not pids:
            yield USERS(*labels, value=len(users))
