"""A GPU's way to the host: PCIe generation and width now and at best, replays and AER errors. From NVML and sysfs."""

from __future__ import annotations

from collections.abc import Iterator

from gpuhost_exporter.collectors.per_gpu import NvmlCollector, gpu_counter, gpu_gauge, gpu_info, gpu_labels
from gpuhost_exporter.sources.nvml.readings import Gpu, Health
from gpuhost_exporter.sources.pci import PciDevice, PciLink, read_device
from gpuhost_exporter.specs import Sample

# The health collector reads the same subject every 15 s: taken from the board rather than asked for twice.
_SHARED = 20.0
_UNTOLD = PciLink(None, None, None, None)

GENERATION = gpu_gauge(
    "gpuhost_gpu_pcie_generation",
    "PCIe generation that the GPU's link runs at now. Under load good is gpuhost_gpu_pcie_generation_max of link; idle "
    "GPUs lower it to save power.",
)
WIDTH = gpu_gauge(
    "gpuhost_gpu_pcie_width_lanes",
    "PCIe lanes that the GPU's link uses now. Good is gpuhost_gpu_pcie_width_max_lanes of link, mostly 16.",
)
GENERATION_MAX = gpu_gauge(
    "gpuhost_gpu_pcie_generation_max",
    "Highest PCIe generation of each part: device (the GPU), slot (the port it is plugged into) and link (both "
    "together). Good is slot at least as high as device.",
    "part",
)
WIDTH_MAX = gpu_gauge(
    "gpuhost_gpu_pcie_width_max_lanes",
    "Most PCIe lanes of each part: device (the GPU), slot (the port it is plugged into) and link (both together).",
    "part",
)
REPLAYS = gpu_counter(
    "gpuhost_gpu_pcie_replays_total",
    "PCIe packets that had to be sent again, as the GPU counts them. A steady rate means a bad riser, slot or retimer.",
)
AER_ERRORS = gpu_counter(
    "gpuhost_gpu_pcie_aer_errors_total",
    "PCIe errors that the kernel logged for the GPU, by severity: correctable, nonfatal or fatal. Good is no increase.",
    "severity",
)
PCIE_INFO = gpu_info(
    "gpuhost_gpu_pcie_info",
    "Where the GPU is plugged in: its PCI address, that of the port above it and the NUMA node; empty where the host "
    "does not tell, as in most virtual machines.",
    "bdf",
    "slot_bdf",
    "numa_node",
)


class PcieCollector(NvmlCollector):
    name = "pcie"
    help = "PCIe link of each GPU against what device and slot could do, replays and AER errors"
    source = "NVML: PCIe link and replay counter; /sys/bus/pci/devices/*: link, port above, NUMA node, aer_dev_*"
    interval = 15.0
    subject = "health"
    specs = (GENERATION, WIDTH, GENERATION_MAX, WIDTH_MAX, REPLAYS, AER_ERRORS, PCIE_INFO)

    def poll(self, now: float) -> Iterator[Sample]:
        states = self.host.nvml.gpu_states()
        for gpu, health in self.of_gpus(self._shared(now), Health):
            if states.get(gpu.uuid) != "ok":
                continue
            device = None
            with self.guard(f"GPU {gpu.index} ({gpu.bdf})"):
                device = read_device(self.host.root, gpu.bdf)
            yield from _link(gpu, health, device)
            yield from _errors(gpu, health, device)

    def _shared(self, now: float) -> tuple[object, ...]:
        posted: tuple[object, ...] = self.host.board.last(self.subject, tuple, now) or ()
        taken = [reading.at for reading in posted if isinstance(reading, Health)]
        return posted if taken and min(taken) > now - _SHARED else self.ask()


def _link(gpu: Gpu, health: Health, device: PciDevice | None) -> Iterator[Sample]:
    labels = gpu_labels(gpu)
    link = device.link if device else _UNTOLD
    slot = (device and device.slot) or _UNTOLD
    generation = _first(health.pcie_generation, link.generation)
    width = _first(health.pcie_width, link.width)
    if generation is not None:
        yield GENERATION(*labels, value=generation)
    if width is not None:
        yield WIDTH(*labels, value=width)
    device_generation = _first(health.pcie_generation_device_max, link.generation_max)
    device_width = link.width_max
    slot_generation, slot_width = slot.generation_max, slot.width_max
    for spec, part, value in (
        (GENERATION_MAX, "device", device_generation),
        (GENERATION_MAX, "slot", slot_generation),
        (GENERATION_MAX, "link", _first(health.pcie_generation_max, _lower(device_generation, slot_generation))),
        (WIDTH_MAX, "device", device_width),
        (WIDTH_MAX, "slot", slot_width),
        (WIDTH_MAX, "link", _first(health.pcie_width_max, _lower(device_width, slot_width))),
    ):
        if value is not None:
            yield spec(*labels, part, value=value)


def _errors(gpu: Gpu, health: Health, device: PciDevice | None) -> Iterator[Sample]:
    labels = gpu_labels(gpu)
    if health.pcie_replays is not None:
        yield REPLAYS(*labels, value=health.pcie_replays)
    if device is None:
        return
    for severity, errors in device.aer:
        yield AER_ERRORS(*labels, severity, value=errors)
    numa_node = "" if device.numa_node is None else str(device.numa_node)
    yield PCIE_INFO(*labels, device.bdf, device.slot_bdf or "", numa_node)


def _first(told: int | None, otherwise: int | None) -> int | None:
    return otherwise if told is None else told


def _lower(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else min(one, other)
