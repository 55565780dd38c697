"""What is wrong with single GPUs, from the published samples."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from gpuhost_exporter import advice, figures
from gpuhost_exporter.collectors import driver, fabric, gpu, gpu_health, mig, nvlink, pcie, targets
from gpuhost_exporter.latest import Latest

_BUSY_RATIO = 0.5
_HARDWARE = frozenset({"hw_thermal", "hw_power_brake"})

_FABRIC = "Look at the fabric manager: systemctl status nvidia-fabricmanager, and at SXid lines in the kernel log."
_GPU: dict[str, str] = {
    "lost": "lost: it fell off the bus",
    "needs_reset": "needs a reset",
    "hung": "a call to it does not return",
    "missing": "missing: it was here and is not listed any more",
    "unreadable": "cannot be read",
}


@dataclass(frozen=True, slots=True)
class GpuFinding:
    gpu: str
    kind: str
    message: str
    action: str


def find(latest: Latest, now: float) -> Iterator[GpuFinding]:
    xids = tuple(advice.seen_xids(latest, now))
    for index, uuid in latest.rows(driver.GPU_UP):
        state = latest.state(driver.GPU_STATE, index, uuid) or ""
        asked = advice.for_gpu(latest, index, uuid, xids)
        if state in _GPU:
            message = _GPU[state]
            if state == "needs_reset" and asked == advice.POWER_CYCLE:
                message = f"{message} that may not reach it: it fell off the bus"
            yield GpuFinding(index, f"gpu_{state}", message, asked or "gpuhost-exporter doctor and the log say why.")
        recovery = latest.state(gpu_health.RECOVERY_ACTION, index, uuid)
        if recovery not in (None, "none"):
            message = f"the driver asks for a recovery: {recovery.replace('_', ' ')}"
            yield GpuFinding(index, "recovery_action", message, asked)
        for kind, message, action in (
            *_memory(latest, index, uuid),
            *_links(latest, index, uuid),
            *_speed(latest, index, uuid),
            *_modes(latest, index, uuid),
        ):
            yield GpuFinding(index, kind, message, action)
    for seen in xids:
        if seen.severity in ("critical", "warning"):
            at = time.strftime("%d %b %H:%M:%S UTC", time.gmtime(seen.last))
            often = "once," if seen.count == 1 else f"{seen.count:.0f} times since the exporter started, last"
            message = f"XID {seen.code}, {seen.meaning or 'not in the catalogue'}: {often} {at}"
            if seen.recent:
                action = advice.for_gpu(latest, seen.index, seen.uuid, xids) or seen.action
                yield GpuFinding(seen.index, f"xid_{seen.severity}", message, action)
            else:
                yield GpuFinding(seen.index, "xid_past", message, "")


_Said = Iterator[tuple[str, str, str]]  # kind, message, action


def _memory(latest: Latest, *labels: str) -> _Said:
    if latest.value(gpu_health.REMAP_FAILED, *labels):
        yield "remap_failed", "a broken memory row could not be replaced", advice.EXCHANGE
    if latest.value(gpu_health.SRAM_THRESHOLD, *labels):
        yield "sram_threshold", "too many uncorrected SRAM errors", advice.EXCHANGE
    if latest.value(gpu_health.REMAP_BANKS, *labels, "none"):
        yield "remap_banks", "memory banks without a spare row left", "Plan to have the GPU exchanged."
    if latest.value(gpu_health.REMAP_PENDING, *labels):
        yield (
            "remap_pending",
            "a memory row waits to be replaced",
            f"Reset when convenient: nvidia-smi -r -i {labels[0]}.",
        )
    errors = latest.value(gpu_health.ECC_ERRORS, *labels, "uncorrected")
    if errors:
        yield "ecc_errors", f"{errors:.0f} uncorrected memory errors since the driver was loaded", "Watch it; test it."
    if latest.value(gpu_health.ECC_ENABLED, *labels) == 0:
        yield "ecc_off", "ECC is off: memory errors stay unseen", f"nvidia-smi -e 1 -i {labels[0]}, then reset."


def _links(latest: Latest, *labels: str) -> _Said:
    active, expected = (latest.value(spec, *labels) for spec in (nvlink.ACTIVE, nvlink.EXPECTED))
    state = latest.state(fabric.STATE, *labels)
    status = latest.value(fabric.STATUS, *labels)
    peers = latest.value(nvlink.FALLBACK_PEERS, *labels)
    if active is not None and expected and active < expected:
        capacity, full = (
            figures.rate(latest.value(spec, *labels)) for spec in (nvlink.CAPACITY, targets.NVLINK_BANDWIDTH)
        )
        message = f"{active:.0f} of {expected:.0f} NVLinks active, {figures.of(capacity, full)}"
        yield "nvlink_down", message, advice.LINK
    if state in ("not_started", "in_progress") or status:
        reason = f"ended with NVML error {status:.0f}" if status else state.replace("_", " ") if state else ""
        yield "fabric_unregistered", f"no NVLink: registration with the fabric {reason}", _FABRIC
    elif peers:
        slower = latest.value(nvlink.SLOWDOWN, *labels)
        by = f", {slower:.0f} times slower" if slower else ""
        yield "pcie_fallback", f"reaches {peers:.0f} other GPUs over PCIe only{by}", _FABRIC
    found = [finding for finding, value in latest.below(fabric.FINDING, *labels) if value]
    summary = latest.state(fabric.HEALTH, *labels)
    if found or summary in ("unhealthy", "limited"):
        said = ", ".join(name.replace("_", " ") for name in found) or str(summary)
        yield (
            f"fabric_{'unhealthy' if summary == 'unhealthy' else 'limited'}",
            f"the NVLink fabric reports: {said}",
            _FABRIC,
        )


def _speed(latest: Latest, *labels: str) -> _Said:
    reasons = [reason for reason, value in latest.below(gpu.THROTTLE_ACTIVE, *labels) if value]
    if reasons:
        kind = "hardware_slows" if _HARDWARE.intersection(reasons) else "throttled"
        cause = "power supply" if reasons == ["hw_power_brake"] else "cooling"
        yield kind, f"slowed down now: {', '.join(reasons)}", f"Look at the {cause}."
    if latest.value(gpu_health.POWER_LIMIT_LOWERED, *labels):
        limit, default = (
            figures.watts(latest.value(spec, *labels))
            for spec in (gpu_health.POWER_LIMIT, gpu_health.POWER_LIMIT_DEFAULT)
        )
        action = f"If nobody wants that: nvidia-smi -i {labels[0]} -pl {default.removesuffix(' W')}."
        yield "power_limit", f"power limit lowered, {figures.of(limit, default)}", action
    if latest.value(gpu_health.CLOCKS_LOCKED, *labels):
        yield "clocks_locked", "clocks are locked", f"If nobody wants that: nvidia-smi -i {labels[0]} -rgc."
    width, most = latest.value(pcie.WIDTH, *labels), latest.value(pcie.WIDTH_MAX, *labels, "link")
    if width and most and width < most:
        yield (
            "pcie_width",
            f"PCIe runs with {width:.0f} of {most:.0f} lanes",
            "Have the board reseated or the slot tested.",
        )
    generation, best = latest.value(pcie.GENERATION, *labels), latest.value(pcie.GENERATION_MAX, *labels, "link")
    busy = (latest.value(gpu.UTILIZATION, *labels) or 0.0) > _BUSY_RATIO  # links rest in a lower generation when idle
    if busy and generation and best and generation < best:
        yield (
            "pcie_generation",
            f"PCIe runs as generation {generation:.0f} of {best:.0f} under load",
            "Have the slot tested.",
        )


def _modes(latest: Latest, *labels: str) -> _Said:
    if latest.value(gpu_health.PERSISTENCE, *labels) == 0:
        yield "persistence_off", "persistence mode is off", "systemctl enable --now nvidia-persistenced"
    if latest.value(gpu_health.MIG_ENABLED, *labels):
        instances = sum(found[:2] == labels for found in latest.rows(mig.MIG_INFO))
        siblings = tuple(latest.rows(gpu_health.MIG_ENABLED).values())
        if sum(map(bool, siblings)) < len(siblings) / 2:
            action = f"If nobody wants that: nvidia-smi -i {labels[0]} -mig 0, then reset."
            yield "mig_alone", f"partitioned (MIG) though most others are not, {instances} instances", action
        else:
            yield "mig", f"partitioned (MIG), {instances} instances", ""
    if latest.value(targets.PRODUCT_KNOWN, *labels) == 0:
        yield (
            "product_unknown",
            "product unknown: nothing to measure it against",
            "Set its targets in the configuration file.",
        )
    users = latest.value(gpu.USERS, *labels)
    if users and users > 1:
        yield "several_users", f"processes of {users:.0f} users", ""
