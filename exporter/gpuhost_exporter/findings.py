"""What is wrong with the host, from its published samples: what, how grave, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gpuhost_exporter import advice, figures, gpu_findings, network_findings
from gpuhost_exporter.collectors import (
    driver,
    inventory,
    nvme,
    nvme_health,
    raid,
    storage,
    xid,
)
from gpuhost_exporter.demand import demand
from gpuhost_exporter.gpu_findings import GpuFinding
from gpuhost_exporter.kinds import KINDS, SEVERITIES, Severity
from gpuhost_exporter.latest import Latest
from gpuhost_exporter.runner import ERRORS, IN_FLIGHT, UP

_HANGS_SECONDS = 10.0
_HOT_DRIVE_CELSIUS = 70.0
_NOT_HERE = frozenset({"absent", "unsupported", "unavailable"})

_NVSWITCH = "Drain the host and reboot it: GPUs and NVSwitches need a reset together. The kernel log names the link."

_DRIVER: dict[str, tuple[str, str]] = {
    "no_library": ("NVIDIA's library is not installed", "Install the driver."),
    "no_gpus": ("the driver sees no GPU", "Look for the GPUs with lspci, then power-cycle the host."),
    "no_driver": ("the driver is not loaded", "Load it: modprobe nvidia; dmesg says why it fails."),
    "mismatch": ("library and loaded driver differ in version", "Reload the driver or reboot."),
    "permission": ("the device files cannot be opened", "gpuhost-exporter doctor says what to grant."),
    "released": ("NVML is released by request", "gpuhost-exporter resume takes it up again at once."),
    "hung": ("a call into the driver does not return", "Drain the host; if it stays so, reboot."),
    "stuck": ("a reader hangs in the driver and cannot be killed", "Drain the host and reboot it."),
    "crashed": ("NVIDIA's library crashed its reader", "It is started again; if this repeats, reboot."),
    "error": ("the driver cannot be read", "The exporter's log says more."),
}
_WITHOUT_GPUS: dict[str, tuple[str, str]] = {
    "no_library": ("no driver", "Install NVIDIA's driver and load it: modprobe nvidia."),
    "no_driver": ("the driver is not loaded", "Load it: modprobe nvidia; dmesg says why it fails."),
    "no_gpus": ("the driver takes none", "dmesg says why; then power-cycle the host."),
}


@dataclass(frozen=True, slots=True)
class Finding:
    kind: str  # of KINDS
    subject: str  # "GPU 3", "GPUs 0-7", "md0"; "" for the host
    message: str
    action: str  # "" where nothing is to be done

    @property
    def severity(self) -> Severity:
        return KINDS[self.kind].severity

    @property
    def drains(self) -> bool:
        return KINDS[self.kind].drains

    def __str__(self) -> str:
        return f"{self.subject}: {self.message}" if self.subject else self.message


def find(latest: Latest, moved: Latest, now: float) -> tuple[Finding, ...]:
    """Gravest first. What several GPUs share is said once. `moved` holds the rates of counters, `now` is the time in
    seconds since the epoch.
    """
    network = network_findings.find(latest, moved)
    findings = [*_driver(latest), *_merged(gpu_findings.find(latest, now)), *_others(latest, moved, network)]
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def find_each(latest: Latest, moved: Latest, now: float) -> tuple[Finding, ...]:
    """As find(), with what several GPUs or ports share said of each: "GPU 3"."""
    network = network_findings.find(latest, moved, each=True)
    gpus = (Finding(said.kind, f"GPU {said.gpu}", said.message, said.action) for said in gpu_findings.find(latest, now))
    return (*_driver(latest), *gpus, *_others(latest, moved, network))


def ranges(numbers: Iterable[str]) -> str:
    """0-3, 5."""
    parts: list[list[int]] = []
    for number in sorted(int(text) for text in numbers if text.isdecimal()):
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)


def _merged(findings: Iterable[GpuFinding]) -> Iterator[Finding]:
    same: dict[tuple[str, str, str], list[str]] = {}
    for finding in findings:
        same.setdefault((finding.kind, finding.message, finding.action), []).append(finding.gpu)
    for (kind, message, action), gpus in same.items():
        yield Finding(kind, f"GPU{'s' if len(gpus) > 1 else ''} {ranges(gpus) or gpus[0]}", message, action)


def _others(latest: Latest, moved: Latest, network: Iterable[network_findings.Said]) -> Iterator[Finding]:
    for found in (_host(latest), _storage(latest), _demand(latest, moved), _itself(latest)):
        yield from found
    for said in network:
        yield Finding(*said)


def _driver(latest: Latest) -> Iterator[Finding]:
    state = latest.state(driver.NVML_STATE)
    expected, on_bus = latest.value(inventory.GPUS_EXPECTED), latest.value(driver.GPUS_ON_BUS)
    listed = len(latest.rows(driver.GPU_UP))
    if state in _DRIVER:
        yield _without_gpus(state, on_bus, expected) or Finding(state, "Driver", *_DRIVER[state])
    if state == "ok" and on_bus is not None and listed < on_bus:
        message = f"takes {listed} of the {on_bus:.0f} NVIDIA GPUs on the PCI bus"
        yield Finding(
            "gpus_left_out", "Driver", message, "dmesg says why it leaves the others. In a container: grant it all."
        )
    in_flight = latest.value(driver.IN_FLIGHT)
    if state == "ok" and in_flight is not None and in_flight > _HANGS_SECONDS:
        message = f"no answer since {figures.seconds(in_flight)}"
        yield Finding("driver_slow", "Driver", message, "If it stays so, drain the host.")
    if latest.value(driver.READER_STUCK) and state != "stuck":
        yield Finding("stuck", "Driver", *_DRIVER["stuck"])


def _without_gpus(state: str, on_bus: float | None, expected: float | None) -> Finding | None:
    """What the PCI bus says of a driver that tells no GPU; None where it cannot say more than the driver."""
    if state not in _WITHOUT_GPUS:
        return None
    if on_bus:
        without, action = _WITHOUT_GPUS[state]
        return Finding("gpus_undriven", "", f"{_number(on_bus, 'NVIDIA GPU')} on the PCI bus and {without}", action)
    if not expected and (on_bus == 0 or state != "no_driver"):
        return Finding("no_gpu_expected", "", "No GPU is expected on this host", "")
    if on_bus == 0:
        return Finding("gpus_gone", "", f"No NVIDIA GPU on the PCI bus, {expected:.0f} expected", advice.POWER_CYCLE)
    return None


def _number(count: float, thing: str) -> str:
    return f"{count:.0f} {thing}" + ("" if count == 1 else "s")


def _host(latest: Latest) -> Iterator[Finding]:
    for code, count in advice.seen_sxids(latest):
        message = f"{_number(count, 'fatal SXid error')} {code} since the exporter started"
        yield Finding("sxid_fatal", "NVSwitch", message, _NVSWITCH)
    for kind, device in latest.rows(inventory.MISSING):
        if kind in ("drives", "arrays", "ports"):
            forget = f"If it is gone for good: gpuhost-exporter forget {device}."
            found = "port_missing" if kind == "ports" else "device_missing"
            yield Finding(found, device, "missing: it was here before", forget)


def _storage(latest: Latest) -> Iterator[Finding]:
    for (device,), up in latest.rows(raid.UP).items():
        expected = latest.value(raid.EXPECTED, device)
        active = latest.value(raid.MEMBERS, device, "active")
        members = f"{figures.count(active)} of {figures.count(expected)} members active"
        if not up:
            yield Finding("array_down", device, f"the array does not serve its data: {members}", "Replace the drive.")
        elif active is not None and expected is not None and active < expected:
            yield Finding("array_degraded", device, f"runs without redundancy: {members}", "Replace the drive.")
        action = latest.state(raid.SYNC, device)
        if action not in (None, "idle", "frozen"):
            progress = figures.percent(latest.value(raid.PROGRESS, device))
            yield Finding("array_sync", device, f"{action} under way, {progress} done", "")
    for (device,), up in latest.rows(nvme.UP).items():
        if not up:
            yield Finding("drive_down", device, "the controller takes no I/O", "Have the drive exchanged.")
        width, most = latest.value(nvme.WIDTH, device), latest.value(nvme.WIDTH_MAX, device)
        generation, best = latest.value(nvme.GENERATION, device), latest.value(nvme.GENERATION_MAX, device)
        if (width and most and width < most) or (generation and best and generation < best):
            link = f"PCIe {figures.count(generation)} x{figures.count(width)}"
            full = f"PCIe {figures.count(best)} x{figures.count(most)}"
            yield Finding("drive_link", device, f"slow link: {link} instead of {full}", "Have the drive reseated.")
        lanes = latest.value(nvme.DRIVE_WIDTH_MAX, device)
        if lanes and most and most < lanes:
            message = f"in a slot of {figures.count(most)} PCIe lanes, and could use {figures.count(lanes)}"
            yield Finding("drive_slot", device, message, "Move the drive to another slot.")
        for kind, message, action in _drive_health(latest, device):
            yield Finding(kind, device, message, action)
        hottest = max((value for _, value in latest.below(nvme.TEMPERATURE, device)), default=0.0)
        if hottest >= _HOT_DRIVE_CELSIUS:
            yield Finding("drive_hot", device, f"hot: {figures.celsius(hottest)}", "Look at the cooling.")


def _demand(latest: Latest, moved: Latest) -> Iterator[Finding]:
    for device in dict.fromkeys(device for device, _ in latest.rows(storage.LIMITED)):
        found = demand(latest, moved, device)
        if found is None:
            continue
        if found.by == "submitter":
            message = "tasks wait for buffered writes, though the drives could take more"
            yield Finding("submitter_slow", device, message, "Write checkpoints with direct I/O.")
            continue
        does = "reads" if found.direction == "read" else "writes"
        rate = f"{does} {figures.of(figures.rate(found.delivered), figures.rate(found.good))}"
        if found.member:
            action = f"Look at {found.member}'s health, temperature and PCIe link; if these are good, exchange it."
            yield Finding("member_slow", device, f"waits for {found.member}: {rate}", action)
        elif found.slow():
            action = "Look for a rebuild, hot drives and slow PCIe links; then measure it with fio."
            yield Finding("array_slow", device, f"too slow: {rate} though asked for more", action)


_WARNED: dict[str, tuple[str, str]] = {
    "spare_low": ("drive_warns", "the drive runs out of spare blocks"),
    "temperature": ("drive_warns", "the drive is too hot or too cold, by its own measure"),
    "reliability_degraded": ("drive_unreliable", "the drive calls itself unreliable"),
    "read_only": ("drive_read_only", "the drive takes no more writes"),
    "backup_failed": ("drive_backup", "the drive may lose writes when power fails"),
    "persistent_memory_unreliable": ("drive_backup", "the drive's persistent memory is unreliable"),
}


def _drive_health(latest: Latest, device: str) -> Iterator[tuple[str, str, str]]:
    for warning, raised in latest.below(nvme_health.WARNING, device):
        if raised:
            action = "Look at the cooling." if warning == "temperature" else "Have the drive exchanged."
            kind, message = _WARNED[warning]
            yield kind, message, action
    wear = latest.value(nvme_health.WEAR, device)
    if wear is not None and wear >= 1:
        yield "drive_worn", f"worn: {figures.percent(wear)} of its rated endurance used", "Plan to exchange the drive."
    errors = latest.value(nvme_health.MEDIA_ERRORS, device)
    if errors:
        yield "media_errors", f"{errors:.0f} media errors in its life", "If they grow: have the drive exchanged."
    waited = latest.value(nvme_health.IN_FLIGHT, device) or 0.0
    if waited > _HANGS_SECONDS:
        message = f"the controller has not answered for {figures.seconds(waited)}"
        yield "drive_silent", message, "If it stays so, have the drive exchanged."


def _itself(latest: Latest) -> Iterator[Finding]:
    driver_reads = latest.state(driver.NVML_STATE) == "ok"
    for (name,), up in latest.rows(UP).items():
        in_flight = latest.value(IN_FLIGHT, name) or 0.0
        kinds = {kind for kind, count in latest.below(ERRORS, name) if count}
        if in_flight > _HANGS_SECONDS:
            message = f"has waited {figures.seconds(in_flight)} for the hardware"
            yield Finding("collector_hung", f"Collector {name}", message, "")
        elif "denied" in kinds and not up:
            yield Finding(
                "collector_denied",
                f"Collector {name}",
                "has no permission",
                "gpuhost-exporter doctor says what to grant.",
            )
        elif not up and kinds - _NOT_HERE and (driver_reads or "internal" in kinds):
            yield Finding(
                "collector_failing", f"Collector {name}", "fails", "gpuhost-exporter doctor and the log say why."
            )
    if latest.value(xid.KERNEL_LOG_UP) == 0:
        message = "cannot be read: errors of GPUs that fell off the bus stay unseen"
        yield Finding("kernel_log_unread", "Kernel log", message, "gpuhost-exporter doctor says what to grant.")
    if latest.value(inventory.STATE_WRITABLE) == 0:
        yield Finding(
            "state_unwritable", "State directory", "cannot be written", "Look at --storage.path and its disk."
        )
