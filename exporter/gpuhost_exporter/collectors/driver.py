"""The driver and the GPUs as such: which are there and whether they answer.

Told by the exporter's own bookkeeping, and by the PCI bus, which shows GPUs that no driver has taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from gpuhost_exporter.collector import Collector
from gpuhost_exporter.collectors.per_gpu import gpu_gauge, gpu_info, gpu_labels, one_of
from gpuhost_exporter.errors import Absent
from gpuhost_exporter.host import Host
from gpuhost_exporter.sources.nvml.book import GPU_STATES
from gpuhost_exporter.sources.nvml.client import STATES
from gpuhost_exporter.sources.nvml.readings import Driver, Gpu
from gpuhost_exporter.sources.pci import gpus as gpus_on_bus
from gpuhost_exporter.specs import Sample, counter, gauge, info

GPU_UP = gpu_gauge(
    "gpuhost_gpu_up",
    "Whether the GPU answers through NVIDIA's driver: 1 is good. At 0 gpuhost_gpu_state says why, or "
    "gpuhost_nvml_state where the driver as a whole cannot be read. A GPU that was broken before the exporter "
    "started has no uuid.",
)
GPUS_ON_BUS = gauge(
    "gpuhost_gpus_on_bus",
    "NVIDIA GPUs on the PCI bus, with or without a driver; not those kept for virtual machines. Good is as many as "
    "gpuhost_gpu_up has series: more means that the driver is missing or has not taken all. Absent where there is no "
    "PCI bus.",
)
GPU_STATE = gpu_gauge(
    "gpuhost_gpu_state",
    "State of the GPU, 1 for the current one of ok, lost (fell off the bus), needs_reset, hung (a call did not "
    "return), missing, unreadable and unknown (the driver cannot be read). Good is ok.",
    "state",
)
GPU_INFO = gpu_info(
    "gpuhost_gpu_info",
    "Identity of the GPU; bdf is its PCI address as in sysfs. A lost GPU keeps its last known identity.",
    "name",
    "bdf",
    "serial",
    "vbios",
    "architecture",
    "compute_capability",
    "virtualization_mode",
)
DRIVER_INFO = info(
    "gpuhost_driver_info",
    "Versions of NVIDIA's driver, of its management library NVML and of CUDA as the driver last told them.",
    "driver_version",
    "nvml_version",
    "cuda_version",
)
NVML_STATE = gauge(
    "gpuhost_nvml_state",
    "State of the way to NVIDIA's driver, 1 for the current one. Good is ok; no_gpus, no_library and no_driver are "
    "normal where gpuhost_gpus_on_bus is 0, released is by request.",
    "state",
)
RELEASE_END = gauge(
    "gpuhost_nvml_release_end_timestamp_seconds",
    "When a release asked for with gpuhost-exporter release ends by itself, in seconds since the epoch. Absent while "
    "none is under way.",
)
READER_RESTARTS = counter(
    "gpuhost_nvml_reader_restarts_total",
    "Times that the process which reads NVML was ended and had to be started again, by reason. Good is none by "
    "crashed and hung.",
    "reason",
)
READER_STUCK = gauge(
    "gpuhost_nvml_reader_stuck",
    "NVML readers that were killed and that the kernel cannot end: 0 is good. The driver needs a reboot.",
)
IN_FLIGHT = gauge(
    "gpuhost_nvml_in_flight_seconds",
    "Seconds since the request to NVML that is now under way was sent, 0 when none is. Seconds here mean that the "
    "driver is slow or hangs.",
)

_BUS_SECONDS = 60.0


class DriverCollector(Collector):
    name = "driver"
    help = "State of the driver and of every GPU known"
    source = "what the NVML reader last answered, /sys/bus/pci/devices; touches no hardware"
    interval = 1.0
    specs = (
        GPU_UP,
        GPUS_ON_BUS,
        GPU_STATE,
        GPU_INFO,
        DRIVER_INFO,
        NVML_STATE,
        RELEASE_END,
        READER_RESTARTS,
        READER_STUCK,
        IN_FLIGHT,
    )

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._on_bus: tuple[str, ...] | None = None
        self._counted_at = float("-inf")
        self._facts: tuple[object, ...] = ()
        self._told: tuple[Sample, ...] = ()

    def poll(self, now: float) -> Iterator[Sample]:
        nvml = self.host.nvml
        if now - self._counted_at >= _BUS_SECONDS:
            self._counted_at = now
            before, self._on_bus = self._on_bus, self._look()
            # Where the kernel's announcements do not reach, as in some containers.
            for bdf in set(self._on_bus or ()) - set(before or ()) if before is not None else ():
                nvml.recheck(bdf)
        gpus = nvml.gpus()
        self.post("gpus", gpus)
        states, unopened, restarts = nvml.gpu_states(), nvml.unopened(), nvml.restarts()
        on_bus = None if self._on_bus is None else len(self._on_bus)
        facts = (on_bus, gpus, states, unopened, nvml.driver(), nvml.state(), restarts, nvml.stuck())
        if facts != self._facts:
            self._facts, self._told = facts, tuple(self._samples(*facts))
        yield from self._told
        until = nvml.released_until()
        if until is not None:
            yield RELEASE_END(value=self.host.clock.wall() - now + until)
        yield IN_FLIGHT(value=nvml.in_flight_seconds(now))

    @staticmethod
    def _samples(
        on_bus: int | None,
        gpus: tuple[Gpu, ...],
        states: dict[str, str],
        unopened: dict[int, str],
        driver: Driver | None,
        nvml_state: str,
        restarts: dict[str, int],
        stuck: int,
    ) -> Iterator[Sample]:
        if on_bus is not None:
            yield GPUS_ON_BUS(value=on_bus)
        for gpu in gpus:
            labels = gpu_labels(gpu)
            state = states.get(gpu.uuid, "unknown")
            yield GPU_UP(*labels, value=float(state == "ok"))
            yield from one_of(GPU_STATE, labels, GPU_STATES, state)
            yield GPU_INFO(
                *labels,
                gpu.name,
                gpu.bdf,
                gpu.serial or "",
                gpu.vbios or "",
                gpu.architecture or "",
                gpu.compute_capability or "",
                gpu.virtualization_mode or "",
            )
        for index, state in unopened.items():
            labels = (str(index), "")
            yield GPU_UP(*labels, value=0)
            yield from one_of(GPU_STATE, labels, GPU_STATES, state)
        if driver:
            yield DRIVER_INFO(driver.driver_version, driver.nvml_version, driver.cuda_version or "")
        yield from one_of(NVML_STATE, (), STATES, nvml_state)
        for reason, count in restarts.items():
            yield READER_RESTARTS(reason, value=count)
        yield READER_STUCK(value=stuck)

    def _look(self) -> tuple[str, ...] | None:
        with self.guard("PCI bus"), suppress(Absent):  # a machine without PCI is none that fails
            return gpus_on_bus(self.host.root)
        return None
