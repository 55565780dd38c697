"""The host at a glance, as the status page and `snapshot` show it: a function of the published samples and the time.

What is not told is None. Nothing here knows how it is shown.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gpuhost_exporter import network_findings
from gpuhost_exporter.advice import SeenXid, seen_xids
from gpuhost_exporter.collectors import (
    ALL,
    block,
    driver,
    gpu,
    gpu_health,
    machine,
    mig,
    nvlink,
    nvme,
    nvme_health,
    platform,
    raid,
    rdma,
    storage,
    targets,
    xid,
)
from gpuhost_exporter.collectors.per_gpu import NvmlCollector
from gpuhost_exporter.demand import Demand, demand
from gpuhost_exporter.exposition import BUILD, SIMULATED
from gpuhost_exporter.findings import Finding, find
from gpuhost_exporter.latest import Latest, Series
from gpuhost_exporter.runner import AGE, ERRORS, IN_FLIGHT, UP
from gpuhost_exporter.specs import Sample, Spec

if TYPE_CHECKING:
    from gpuhost_exporter.ledger.cost import Spent

Verdict = Literal["good", "unknown", "info", "warning", "critical"]
CollectorState = Literal["ok", "waiting", "not here", "denied", "failing"]

# Counters whose rates build() takes.
RATED: tuple[Spec, ...] = (
    block.READ_BYTES,
    block.WRITTEN_BYTES,
    rdma.BYTES,
    storage.SATURATED_SECONDS,
    storage.SATURATED_BYTES,
    storage.LIMITED,
    storage.LIMITING,
    *network_findings.RATED,
)

_GRAVE: tuple[Literal["critical", "warning"], ...] = ("critical", "warning")
_NOT_HERE = frozenset({"absent", "unsupported", "unavailable"})
# By gpuhost_nvml_state, what NVML's collectors are that read nothing and had no error; "failing" in any other state.
_UNREAD: dict[str, CollectorState] = {
    "ok": "waiting",
    "no_library": "not here",
    "no_driver": "not here",
    "no_gpus": "not here",
    "starting": "waiting",
    "released": "waiting",
}
_NVML_COLLECTORS = frozenset(kind.name for kind in ALL if issubclass(kind, NvmlCollector))


@dataclass(frozen=True, slots=True)
class GpuRow:
    """Ratios 0-1, bytes, bytes per second (both directions for NVLink), watts, celsius."""

    index: str
    uuid: str
    name: str
    state: str
    utilization: float | None
    tensor: float | None
    memory_bandwidth: float | None
    memory_bandwidth_target: float | None
    nvlink_usable: float | None
    nvlink_target: float | None
    links_active: float | None
    links_expected: float | None
    links: tuple[tuple[int, bool], ...]
    power: float | None
    power_limit: float | None
    temperature: float | None
    memory_temperature: float | None
    memory_used: float | None
    memory_total: float | None
    throttling: tuple[str, ...] | None
    xids: float | None  # critical ones and warnings, since the exporter started
    xid_severity: Literal["critical", "warning", ""]  # the gravest of late
    lost: tuple[str, float, float] | None  # to which account most in 24 hours, seconds, dollars; None without a ledger


@dataclass(frozen=True, slots=True)
class InstanceRow:
    """A MIG instance. Ratios 0-1, bytes."""

    gpu: str
    gpu_instance: str
    compute_instance: str
    uuid: str
    profile: str
    utilization: float | None
    sm_active: float | None
    tensor: float | None
    memory_bandwidth: float | None
    memory_used: float | None
    memory_total: float | None


@dataclass(frozen=True, slots=True)
class ArrayRow:
    device: str
    level: str
    up: bool
    members_active: float | None
    members_expected: float | None
    doing: str | None  # resync, check, ...; None when idle or not told
    progress: float | None
    read: float | None
    written: float | None
    read_target: float | None  # what counts as good under demand
    written_target: float | None
    size: float | None
    demand: Demand | None  # None while nobody asks it for more than it gives


@dataclass(frozen=True, slots=True)
class DriveRow:
    device: str
    model: str
    up: bool
    read: float | None
    written: float | None
    size: float | None
    temperature: float | None
    wear: float | None
    spare: float | None
    generation: float | None
    generation_max: float | None
    width: float | None
    width_max: float | None


@dataclass(frozen=True, slots=True)
class PortRow:
    device: str
    port: str
    interface: str
    link_layer: str
    up: bool
    rate: float | None
    received: float | None
    sent: float | None


@dataclass(frozen=True, slots=True)
class CollectorRow:
    name: str
    state: CollectorState
    age: float | None  # None while it has never read
    in_flight: float | None
    errors: tuple[tuple[str, float], ...]  # none where what it reads is not here


@dataclass(frozen=True, slots=True)
class Status:
    verdict: Verdict
    headline: str
    action: str  # what to do first, or nothing
    simulated: str  # HOST:SCENARIO, empty on a real host
    findings: tuple[Finding, ...]
    gpus: tuple[GpuRow, ...]
    instances: tuple[InstanceRow, ...]
    arrays: tuple[ArrayRow, ...]
    drives: tuple[DriveRow, ...]
    ports: tuple[PortRow, ...]
    collectors: tuple[CollectorRow, ...]
    machine: tuple[str, ...]  # make, processor, metal or virtual, kernel, driver, what of it is told
    version: str


def build(
    samples: Iterable[Sample],
    rates: Mapping[Series, float] | None = None,
    now: float | None = None,
    spent: Iterable[Spent] = (),
) -> Status:
    """`rates`: what the counters of RATED do a second, from Rates.look(); without them rates are not told.

    `spent`: each GPU's last 24 hours, where the ledger keeps them.
    `now`: the samples' time in seconds since the epoch, the present where it is not given.
    """
    now = time.time() if now is None else now
    latest = Latest(samples)
    moved = Latest(Sample(spec, labels, value) for (spec, labels), value in (rates or {}).items())
    findings = find(latest, moved, now)
    xids = tuple(seen_xids(latest, now))
    lost = {each.uuid: each.most for each in spent}
    gpus = tuple(sorted(_gpus(latest, xids, lost), key=lambda row: (not row.index.isdecimal(), row.index.zfill(4))))
    verdict, headline, action = _headline(findings, gpus, latest)
    return Status(
        verdict=verdict,
        headline=headline,
        action=action,
        simulated=next((labels[0] for labels, value in latest.rows(SIMULATED).items() if value), ""),
        findings=findings,
        gpus=gpus,
        instances=tuple(_instances(latest)),
        arrays=tuple(_arrays(latest, moved)),
        drives=tuple(_drives(latest, moved)),
        ports=tuple(_ports(latest, moved)),
        collectors=tuple(_collectors(latest)),
        machine=tuple(_machine(latest)),
        version=latest.facts(BUILD).get("version", ""),
    )


def _headline(findings: tuple[Finding, ...], gpus: tuple[GpuRow, ...], latest: Latest) -> tuple[Verdict, str, str]:
    first = findings[0] if findings else None
    if first and first.severity != "info":
        return first.severity, str(first), first.action
    if latest.state(driver.NVML_STATE) == "released" or (first and not gpus):
        return "info", str(first), first.action if first else ""
    if gpus and all(row.state == "ok" for row in gpus):
        return "good", f"All {len(gpus)} GPUs deliver" if len(gpus) > 1 else "The GPU delivers", ""
    return "unknown", "Nothing is known of the GPUs yet", ""


def _gpus(
    latest: Latest, xids: Sequence[SeenXid], lost: Mapping[str, tuple[str, float, float] | None]
) -> Iterator[GpuRow]:
    for labels in latest.rows(driver.GPU_UP):
        index, uuid = labels
        links = tuple(sorted((int(link), bool(up)) for link, up in latest.below(nvlink.UP, *labels)))
        seen = [seen for seen in xids if (seen.index, seen.uuid) == labels]
        reasons = dict(latest.below(gpu.THROTTLE_ACTIVE, *labels))
        yield GpuRow(
            index=index,
            uuid=uuid,
            name=latest.facts(driver.GPU_INFO, *labels).get("name", ""),
            state=latest.state(driver.GPU_STATE, *labels) or "unknown",
            utilization=latest.value(gpu.UTILIZATION, *labels),
            tensor=latest.value(gpu.TENSOR_ACTIVE, *labels),
            memory_bandwidth=latest.value(gpu.MEMORY_BANDWIDTH, *labels),
            memory_bandwidth_target=latest.value(targets.MEMORY_BANDWIDTH, *labels),
            nvlink_usable=latest.value(nvlink.USABLE, *labels),
            nvlink_target=latest.value(targets.NVLINK_BANDWIDTH, *labels),
            links_active=latest.value(nvlink.ACTIVE, *labels),
            links_expected=latest.value(nvlink.EXPECTED, *labels),
            links=links,
            power=latest.value(gpu.POWER, *labels),
            power_limit=latest.value(gpu_health.POWER_LIMIT, *labels),
            temperature=latest.value(gpu.TEMPERATURE, *labels, "core"),
            memory_temperature=latest.value(gpu.TEMPERATURE, *labels, "memory"),
            memory_used=latest.value(gpu.MEMORY_USED, *labels),
            memory_total=latest.value(gpu.MEMORY_TOTAL, *labels),
            throttling=tuple(reason for reason, on in reasons.items() if on) if reasons else None,
            xids=_xids(latest, labels, seen),
            xid_severity=next((word for word in _GRAVE if any(x.recent and x.severity == word for x in seen)), ""),
            lost=lost.get(uuid),
        )


def _xids(latest: Latest, labels: tuple[str, ...], xids: Sequence[SeenXid]) -> float | None:
    counted = _sum(count for severity, count in latest.below(xid.EVENTS, *labels) if severity in _GRAVE)
    # What was seen just now is not in the counters yet.
    seen = _sum(seen.count for seen in xids if seen.severity in _GRAVE)
    return counted if seen is None else max(counted or 0.0, seen)


def _instances(latest: Latest) -> Iterator[InstanceRow]:
    for *labels, uuid, profile in latest.rows(mig.MIG_INFO):
        index, _, gpu_instance, compute_instance = labels
        yield InstanceRow(
            gpu=index,
            gpu_instance=gpu_instance,
            compute_instance=compute_instance,
            uuid=uuid,
            profile=profile,
            utilization=latest.value(mig.UTILIZATION, *labels),
            sm_active=latest.value(mig.SM_ACTIVE, *labels),
            tensor=latest.value(mig.TENSOR_ACTIVE, *labels),
            memory_bandwidth=latest.value(mig.MEMORY_BANDWIDTH, *labels),
            memory_used=latest.value(mig.MEMORY_USED, *labels),
            memory_total=latest.value(mig.MEMORY_TOTAL, *labels),
        )


def _arrays(latest: Latest, moved: Latest) -> Iterator[ArrayRow]:
    for (device,), up in latest.rows(raid.UP).items():
        action = latest.state(raid.SYNC, device)
        yield ArrayRow(
            device=device,
            level=latest.facts(raid.INFO, device).get("level", ""),
            up=bool(up),
            members_active=latest.value(raid.MEMBERS, device, "active"),
            members_expected=latest.value(raid.EXPECTED, device),
            doing=None if action == "idle" else action,
            progress=latest.value(raid.PROGRESS, device),
            read=moved.value(block.READ_BYTES, device),
            written=moved.value(block.WRITTEN_BYTES, device),
            read_target=latest.value(storage.TARGET, device, "read", "good"),
            written_target=latest.value(storage.TARGET, device, "write", "good"),
            size=latest.value(block.SIZE, device),
            demand=demand(latest, moved, device),
        )


def _drives(latest: Latest, moved: Latest) -> Iterator[DriveRow]:
    for (device,), up in latest.rows(nvme.UP).items():
        namespaces = [namespace for namespace, _ in latest.below(nvme.NAMESPACE_INFO, device)]
        yield DriveRow(
            device=device,
            model=latest.facts(nvme.INFO, device).get("model", ""),
            up=bool(up),
            read=_sum(value for name in namespaces if (value := moved.value(block.READ_BYTES, name)) is not None),
            written=_sum(value for name in namespaces if (value := moved.value(block.WRITTEN_BYTES, name)) is not None),
            size=_sum(value for name in namespaces if (value := latest.value(block.SIZE, name)) is not None),
            temperature=max((value for _, value in latest.below(nvme.TEMPERATURE, device)), default=None),
            wear=latest.value(nvme_health.WEAR, device),
            spare=latest.value(nvme_health.SPARE, device),
            generation=latest.value(nvme.GENERATION, device),
            generation_max=latest.value(nvme.GENERATION_MAX, device),
            width=latest.value(nvme.WIDTH, device),
            width_max=latest.value(nvme.WIDTH_MAX, device),
        )


def _ports(latest: Latest, moved: Latest) -> Iterator[PortRow]:
    for labels, up in latest.rows(rdma.UP).items():
        facts = latest.facts(rdma.INFO, *labels)
        yield PortRow(
            device=labels[0],
            port=labels[1],
            interface=facts.get("interface", ""),
            link_layer=facts.get("link_layer", ""),
            up=bool(up),
            rate=latest.value(rdma.RATE, *labels),
            received=moved.value(rdma.BYTES, *labels, "rx"),
            sent=moved.value(rdma.BYTES, *labels, "tx"),
        )


def _collectors(latest: Latest) -> Iterator[CollectorRow]:
    unread = _UNREAD.get(latest.state(driver.NVML_STATE) or "starting", "failing")
    for (name,), up in latest.rows(UP).items():
        errors = tuple((kind, count) for kind, count in latest.below(ERRORS, name) if count)
        kinds = {kind for kind, _ in errors}
        state: CollectorState = "failing"
        if up:
            state = "ok"
        elif not kinds:
            state = unread if name in _NVML_COLLECTORS else "waiting"
        elif kinds <= _NOT_HERE:
            state = "not here"
        elif "denied" in kinds:
            state = "denied"
        told = () if state == "not here" else errors
        yield CollectorRow(name, state, latest.value(AGE, name), latest.value(IN_FLIGHT, name), told)


def _machine(latest: Latest) -> Iterator[str]:
    facts = latest.facts(machine.INFO)
    yield from filter(None, (f"{facts.get('vendor', '')} {facts.get('product', '')}".strip(), facts.get("processor")))
    for (hypervisor,), virtual in latest.rows(platform.VIRTUALIZED).items():
        yield f"virtual machine ({hypervisor})" if virtual else "bare metal"
    if facts.get("kernel"):
        yield f"Linux {facts['kernel']}"
    versions = latest.facts(driver.DRIVER_INFO)
    if versions.get("driver_version"):
        yield f"driver {versions['driver_version']}"


def _sum(values: Iterable[float]) -> float | None:
    """None for nothing at all, which is not 0."""
    told = tuple(values)
    return sum(told) if told else None
