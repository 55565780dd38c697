"""What the NVML child tells: frozen readings in SI units; None means "not told". They cross the pipe pickled.

`at` is Clock.now() when the reading was taken; `since` opens the window of an average. `uuid` keys a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal, TypeVar

T = TypeVar("T")

# Why GPM is, or is not, the source of the profiling ratios.
GpmState = Literal["ok", "warming_up", "unsupported", "permission", "mig", "error"]


def _pickled_by_position(reading: type[T]) -> type[T]:
    """Pickle the fields in their order: what a frozen dataclass does by itself takes three times as long."""
    fields: Callable[[T], tuple[Any, ...]] = attrgetter(*reading.__match_args__)  # type: ignore[attr-defined]

    def reduce(self: T) -> tuple[type[T], tuple[Any, ...]]:
        return reading, fields(self)

    reading.__reduce__ = reduce  # type: ignore[assignment, method-assign]
    return reading


@dataclass(frozen=True, slots=True)
class Fault:
    """One GPU's call that failed. `kind` is SourceError.kind; `code` NVML's number."""

    uuid: str
    call: str
    kind: str
    code: int
    message: str


@dataclass(frozen=True, slots=True)
class Batch:
    """The answer to one subject's request: what could be read, and what could not."""

    at: float
    readings: tuple[object, ...]
    faults: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class Driver:
    driver_version: str
    nvml_version: str
    cuda_version: str | None


NAMELESS = "index:"  # with its index, the name of a GPU that never told its UUID


@dataclass(frozen=True, slots=True)
class Gpu:
    """Identity and what never changes while the handle lives. bdf is sysfs' form, 0000:18:00.0."""

    index: int
    uuid: str
    name: str
    bdf: str
    serial: str | None
    vbios: str | None
    architecture: str | None  # "hopper", "ampere", ...
    compute_capability: str | None  # "9.0"
    memory_bus_bits: int | None
    memory_clock_max_hertz: float | None
    sm_clock_max_hertz: float | None
    virtualization_mode: str | None  # "none", "passthrough", "vgpu", "host_vgpu", "host_vsga"
    link_count: int | None  # NVLink slots that the GPU reports, 0 without NVLink


@dataclass(frozen=True, slots=True)
class Inventory:
    """Every GPU that answers, and a fault for each index that does not (uuid is then "index:N")."""

    driver: Driver
    gpus: tuple[Gpu, ...]
    faults: tuple[Fault, ...] = ()


@_pickled_by_position
@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    memory_bytes: int | None


@_pickled_by_position
@dataclass(frozen=True, slots=True)
class Activity:
    """What moves every second. Ratios are 0-1 averages over [since, at]."""

    uuid: str
    since: float
    at: float
    gpm: GpmState
    # From GPM; None unless gpm == "ok".
    graphics_ratio: float | None
    sm_active_ratio: float | None
    sm_occupancy_ratio: float | None
    tensor_ratio: float | None
    fp64_ratio: float | None
    fp32_ratio: float | None
    fp16_ratio: float | None
    memory_bandwidth_ratio: float | None
    pcie_tx_bytes_per_second: float | None  # leaving the GPU
    pcie_rx_bytes_per_second: float | None
    # From NVML's own sampling, product-dependent period of 1/6 to 1 s.
    utilization_ratio: float | None
    memory_busy_ratio: float | None  # share of time that memory was read or written: not bandwidth
    memory_total_bytes: int | None
    memory_used_bytes: int | None  # without what the driver reserves
    memory_free_bytes: int | None
    memory_reserved_bytes: int | None
    sm_clock_hertz: float | None
    memory_clock_hertz: float | None
    power_watts: float | None
    energy_joules: float | None  # counter since driver load
    core_celsius: float | None
    memory_celsius: float | None
    margin_celsius: float | None  # left to the slowdown limit
    throttled_seconds: tuple[tuple[str, float], ...]  # counters by reason
    clock_event_reasons: int | None  # bit mask, as NVML numbers it
    nvlink_tx_bytes: int | None  # payload counters, all links
    nvlink_rx_bytes: int | None
    pcie_tx_bytes: int | None  # counters, may wrap
    pcie_rx_bytes: int | None
    processes: tuple[Process, ...] | None


@_pickled_by_position
@dataclass(frozen=True, slots=True)
class Health:
    """What changes rarely."""

    uuid: str
    at: float
    ecc_enabled: bool | None
    ecc_pending: bool | None
    ecc_errors: tuple[tuple[str, str, int], ...]  # (corrected|uncorrected, volatile|aggregate, count)
    sram_threshold_exceeded: bool | None
    remapped_rows: tuple[tuple[str, int], ...]  # corrected|uncorrected, count
    remap_pending: bool | None
    remap_failed: bool | None
    remap_banks: tuple[tuple[str, int], ...]  # availability max|high|partial|low|none, banks
    recovery_action: str | None  # none, gpu_reset, node_reboot, drain_p2p, drain_and_reset, ...
    persistence: bool | None
    mig_enabled: bool | None
    mig_pending: bool | None
    power_limit_watts: float | None  # enforced now
    power_limit_default_watts: float | None
    power_limit_max_watts: float | None
    sm_clock_limit_hertz: float | None  # what clocks are held to now, where NVML tells
    clocks_locked: bool | None
    pcie_generation: int | None
    pcie_width: int | None
    pcie_generation_max: int | None  # device and slot together
    pcie_generation_device_max: int | None
    pcie_width_max: int | None
    pcie_replays: int | None
    # As NVML sampled them last, over 1/6 to 1 s.
    encoder_ratio: float | None
    decoder_ratio: float | None


@_pickled_by_position
@dataclass(frozen=True, slots=True)
class Link:
    """One NVLink. Byte counters are payload, per direction as the GPU sees it."""

    index: int
    active: bool | None  # None: its state could not be read
    version: str | None  # "4.0"
    rate_bytes_per_second: float | None  # one direction, as signalled (26.562e9 on Hopper)
    remote: str | None  # "gpu", "switch", "cpu"
    remote_bdf: str | None
    tx_bytes: int | None
    rx_bytes: int | None
    errors: tuple[tuple[str, int], ...]  # replay|recovery|crc|ecc; only what this architecture really counts


@_pickled_by_position
@dataclass(frozen=True, slots=True)
class Links:
    """All of a GPU's links; none of one that says that it has no NVLink."""

    uuid: str
    at: float
    links: tuple[Link, ...]


@_pickled_by_position
@dataclass(frozen=True, slots=True)
class Fabric:
    """NVSwitch fabric registration. state: not_supported, not_started, in_progress, completed."""

    uuid: str
    at: float
    state: str | None
    status_code: int | None  # NVML return code, told only when completed; 0 is success
    health: tuple[tuple[str, bool], ...]  # finding -> present; groups that are not supported are left out
    summary: str | None  # healthy, unhealthy, limited
    clique: str | None
    cluster_uuid: str | None


@_pickled_by_position
@dataclass(frozen=True, slots=True)
class Peer:
    """What NVML says of the path from one GPU to another. Status words: ok, disabled, not_supported, ..."""

    uuid: str
    peer_uuid: str
    at: float
    nvlink: str | None
    read: str | None
    write: str | None


@dataclass(frozen=True, slots=True)
class MigInstance:
    uuid: str  # the parent GPU's
    at: float
    instance_uuid: str
    gpu_instance: int
    compute_instance: int
    profile: str | None  # "1g.10gb"
    memory_total_bytes: int | None
    memory_used_bytes: int | None
    graphics_ratio: float | None
    sm_active_ratio: float | None
    tensor_ratio: float | None
    memory_bandwidth_ratio: float | None


@dataclass(frozen=True, slots=True)
class Xid:
    """One XID event. `wall` seconds since the epoch; source "nvml" or "kernel_log"; bdf without function digit."""

    uuid: str | None
    bdf: str | None
    code: int
    wall: float
    source: str
