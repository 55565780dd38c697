"""Which GPUs there are, and what never changes while their handles live."""

from __future__ import annotations

from gpuhost_exporter.errors import Absent, Malformed
from gpuhost_exporter.sources.nvml import links, quantities
from gpuhost_exporter.sources.nvml.calls import Calls, Device
from gpuhost_exporter.sources.nvml.probe import Probe
from gpuhost_exporter.sources.nvml.readings import Driver, Gpu

_ARCHITECTURES = {
    2: "kepler",
    3: "maxwell",
    4: "pascal",
    5: "volta",
    6: "turing",
    7: "ampere",
    8: "ada",
    9: "hopper",
    10: "blackwell",
    13: "rubin",
}
_VIRTUALIZATION = {0: "none", 1: "passthrough", 2: "vgpu", 3: "host_vgpu", 4: "host_vsga"}
_CLOCK_SM = 1
_CLOCK_MEMORY = 2


def driver(calls: Calls) -> Driver:
    cuda = calls.call("", "nvmlSystemGetCudaDriverVersion")
    return Driver(
        driver_version=_printable(calls.call("", "nvmlSystemGetDriverVersion"), "driver version"),
        nvml_version=_printable(calls.call("", "nvmlSystemGetNVMLVersion"), "NVML version"),
        cuda_version=f"{cuda // 1000}.{cuda % 1000 // 10}" if isinstance(cuda, int) and cuda > 0 else None,
    )


def device(calls: Calls, index: int) -> Device:
    """The handle of the GPU at an index. NVML attaches the GPU here, and this is where a broken one fails."""
    place = f"index:{index}"
    handle = calls.call(place, "nvmlDeviceGetHandleByIndex", index)
    uuid = _printable(calls.call(place, "nvmlDeviceGetUUID", handle), "UUID")
    return Device(index, uuid, uuid, handle)


def gpu(probe: Probe) -> Gpu:
    device = probe.device
    bus_id = probe.written(probe.calls.ask(device, "nvmlDeviceGetPciInfo"), "busId", "nvmlDeviceGetPciInfo")
    bdf = links.sysfs_bdf(bus_id)
    if bdf is None:
        raise Malformed(f"nvmlDeviceGetPciInfo: expected 00000000:65:00.0, got {bus_id!r:.40}")
    name = probe.text("nvmlDeviceGetName")
    if name is None:
        raise Absent("nvmlDeviceGetName: a GPU without a name")
    device.bdf = bdf
    capability = probe.value("nvmlDeviceGetCudaComputeCapability")
    return Gpu(
        index=device.index,
        uuid=device.uuid,
        name=name,
        bdf=bdf,
        serial=probe.text("nvmlDeviceGetSerial"),
        vbios=probe.text("nvmlDeviceGetVbiosVersion"),
        architecture=_ARCHITECTURES.get(probe.architecture() or 0),
        compute_capability=None if capability is None else f"{capability[0]}.{capability[1]}",
        memory_bus_bits=probe.whole(quantities.BITS, "nvmlDeviceGetMemoryBusWidth"),
        memory_clock_max_hertz=probe.quantity(quantities.MEGAHERTZ, "nvmlDeviceGetMaxClockInfo", _CLOCK_MEMORY),
        sm_clock_max_hertz=probe.quantity(quantities.MEGAHERTZ, "nvmlDeviceGetMaxClockInfo", _CLOCK_SM),
        virtualization_mode=_virtualization(probe),
        link_count=links.count(probe),
    )


def _virtualization(probe: Probe) -> str | None:
    mode = probe.whole(quantities.ENUM, "nvmlDeviceGetVirtualizationMode")
    return None if mode is None else _VIRTUALIZATION.get(mode)


def _printable(raw: object, what: str) -> str:
    if isinstance(raw, str) and raw and raw.isprintable():
        return raw
    raise Malformed(f"{what}: expected printable text, got {raw!r:.40}")
