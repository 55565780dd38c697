"""What the host tells without being asked to do anything: the collectors' samples, and their findings as verdicts.

A check's verdict is that of its findings (kinds.py): what is critical or drains fails it, a warning warns. The page,
the alerts, what schedulers are told and an acceptance therefore never differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from gpuhost_exporter import figures
from gpuhost_exporter.collectors import (
    driver,
    fabric,
    gpu,
    gpu_health,
    inventory,
    machine,
    nvlink,
    nvme,
    nvme_health,
    pcie,
    platform,
    raid,
    rdma,
    targets,
    xid,
)
from gpuhost_exporter.findings import Finding
from gpuhost_exporter.kinds import KINDS
from gpuhost_exporter.latest import Latest
from gpuhost_exporter.verify.result import Result, Verdict

_ANSWERS_SECONDS = 1.0  # a drive takes milliseconds; the daemon gives it longer before it calls it a finding
_THROTTLED_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Fact:
    """What is told of a device. `doubt` warns and `fault` fails where the daemon has no finding for it; `unjudged` says
    why nothing can be made of it.
    """

    device: str
    measured: str
    wanted: str = ""
    doubt: str = ""
    fault: str = ""
    unjudged: str = ""


def check(latest: Latest, moved: Latest, findings: Iterable[Finding]) -> Iterator[Result]:
    """Every check, in the order in which a report shows them. `moved`: the rates of gpu.THROTTLED while it was looked.
    `findings` are of single devices.
    """
    of_check: dict[str, list[Finding]] = {name: [] for name, _, _ in CHECKS}
    for finding in findings:
        of_check[KINDS[finding.kind].check].append(finding)
    for name, tell, missing in CHECKS:
        results = tuple(_judge(name, tuple(tell(latest, moved)), of_check[name]))
        yield from results or (Result(name, "", "skipped", why=missing),)


def _judge(name: str, facts: tuple[Fact, ...], findings: list[Finding]) -> Iterator[Result]:
    told = {fact.device: fact for fact in facts}
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        found.setdefault(_device(finding, told), []).append(finding)
    for device in found:
        told.setdefault(device, Fact(device, ""))
    for device, fact in told.items():
        said = found.get(device, [])
        verdict: Verdict = "pass"
        if fact.fault or any(finding.severity == "critical" or finding.drains for finding in said):
            verdict = "fail"
        elif fact.doubt or any(finding.severity == "warning" for finding in said):
            verdict = "warn"
        elif fact.unjudged:
            yield Result(name, device, "skipped", why=fact.unjudged)
            continue
        why = "; ".join(filter(None, (*(finding.message for finding in said), fact.doubt, fact.fault)))
        yield Result(name, device, verdict, fact.measured, fact.wanted, why)


def _device(finding: Finding, told: Iterable[str]) -> str:
    """As the check calls it: what is found of an adapter's wire names the adapter, not its port."""
    if finding.subject == "Driver":
        return ""
    return next((device for device in told if device.startswith(f"{finding.subject} port ")), finding.subject)


def _driver(latest: Latest) -> Iterator[Fact]:
    state = latest.state(driver.NVML_STATE)
    if state:
        version = latest.facts(driver.DRIVER_INFO).get("driver_version", "")
        yield Fact("", version or state.replace("_", " "))


def _gpus(latest: Latest) -> Iterator[Fact]:
    present, expected = latest.value(inventory.PRESENT, "gpus"), latest.value(inventory.GPUS_EXPECTED)
    if present is not None:
        few = expected is not None and present < expected and not _named_missing(latest, "gpus")
        yield Fact("", figures.count(present), figures.count(expected), fault="fewer than expected" if few else "")


def _named_missing(latest: Latest, kind: str) -> bool:
    """Whether findings name the ones that are gone; none does where a count was configured that never was reached."""
    return any(labels[0] == kind for labels in latest.rows(inventory.MISSING))


_Tell = Callable[[Latest, Latest], Iterator[Fact]]


def _of_host(tell: Callable[[Latest], Iterator[Fact]]) -> _Tell:
    return lambda latest, _moved: tell(latest)


def _per_gpu(tell: Callable[[Latest, str, str], Fact | None]) -> _Tell:
    def facts(latest: Latest, _moved: Latest) -> Iterator[Fact]:
        for index, uuid in latest.rows(driver.GPU_UP):
            fact = tell(latest, index, uuid)
            if fact:
                yield fact

    return facts


def _xids(latest: Latest, index: str, uuid: str) -> Fact | None:
    """By when they were last seen: counters stand at 0 for a while, so that Prometheus sees them rise. None seen says
    nothing where only the driver tells: it tells what comes from now on.
    """
    seen = [code for code, _ in latest.below(xid.LAST, index, uuid)]
    if not seen and not latest.value(xid.KERNEL_LOG_UP):
        return Fact(f"GPU {index}", "", unjudged="the kernel log, which holds those of before, cannot be read")
    told = any(labels[:2] == (index, uuid) for labels in latest.rows(xid.EVENTS))
    return Fact(f"GPU {index}", f"XID {', '.join(seen)}" if seen else "none", "none") if told else None


def _memory(latest: Latest, index: str, uuid: str) -> Fact | None:
    ecc = latest.value(gpu_health.ECC_ENABLED, index, uuid)
    failed, pending = (latest.value(spec, index, uuid) for spec in (gpu_health.REMAP_FAILED, gpu_health.REMAP_PENDING))
    if ecc is None and failed is None:
        return None
    remap = "" if failed is None else ", remap " + ("failed" if failed else "pending" if pending else "good")
    told = "not told" if ecc is None else "on" if ecc else "off"
    return Fact(f"GPU {index}", f"ECC {told}{remap}", "on, good")


def _nvlink(latest: Latest, index: str, uuid: str) -> Fact | None:
    usable, full = latest.value(nvlink.USABLE, index, uuid), latest.value(targets.NVLINK_BANDWIDTH, index, uuid)
    if usable is None or (full is None and not usable):
        return None
    fault = "" if usable else "no NVLink is usable: collectives go over PCIe"
    return Fact(f"GPU {index}", figures.rate(usable), figures.rate(full), fault=fault)


def _fabric(latest: Latest, index: str, uuid: str) -> Fact | None:
    state = latest.state(fabric.STATE, index, uuid)
    return Fact(f"GPU {index}", state.replace("_", " "), "completed") if state else None


def _pcie(latest: Latest, index: str, uuid: str) -> Fact | None:
    width, most = latest.value(pcie.WIDTH, index, uuid), latest.value(pcie.WIDTH_MAX, index, uuid, "device")
    link, device = (latest.value(pcie.GENERATION_MAX, index, uuid, part) for part in ("link", "device"))
    if width is None and link is None:
        return None
    lanes = latest.value(pcie.WIDTH_MAX, index, uuid, "link")
    slow = f"the slot takes generation {link:.0f} only" if link and device and link < device else ""
    narrow = f"the slot has {lanes:.0f} lanes only" if lanes and most and lanes < most else ""
    doubt = "; ".join(filter(None, (slow, narrow)))
    wanted = f"{figures.count(device)} x{figures.count(most)}"
    return Fact(f"GPU {index}", f"{figures.count(link)} x{figures.count(width)}", wanted, doubt)


def _power(latest: Latest, index: str, uuid: str) -> Fact | None:
    limit = latest.value(gpu_health.POWER_LIMIT, index, uuid)
    default = latest.value(gpu_health.POWER_LIMIT_DEFAULT, index, uuid)
    return None if limit is None else Fact(f"GPU {index}", figures.watts(limit), figures.watts(default))


def _clocks(latest: Latest, index: str, uuid: str) -> Fact | None:
    locked, most = latest.value(gpu_health.CLOCKS_LOCKED, index, uuid), latest.value(gpu.SM_CLOCK_MAX, index, uuid)
    if locked is None:
        return None
    return Fact(f"GPU {index}", "locked" if locked else "free", f"up to {most / 1e6:.0f} MHz" if most else "free")


def _throttling(latest: Latest, moved: Latest) -> Iterator[Fact]:
    """By what the driver counts too: a GPU that is slowed down now and then need not be so at this moment."""
    for labels in latest.rows(driver.GPU_UP):
        reasons = dict(latest.below(gpu.THROTTLE_ACTIVE, *labels))
        share = max(
            (moved.value(gpu.THROTTLED, *labels, reason) or 0.0 for reason in (*reasons, "thermal")), default=0.0
        )
        doubt = "" if any(reasons.values()) or share < _THROTTLED_SHARE else f"{figures.percent(share)} of the time"
        if reasons:
            yield Fact(f"GPU {labels[0]}", "yes" if any(reasons.values()) or doubt else "no", "no", doubt)


def _modes(latest: Latest, index: str, uuid: str) -> Fact | None:
    partitioned = latest.value(gpu_health.MIG_ENABLED, index, uuid)
    persistence = latest.value(gpu_health.PERSISTENCE, index, uuid)
    told = {"MIG": partitioned, "persistence": persistence}
    said = ", ".join(f"{name} {'on' if value else 'off'}" for name, value in told.items() if value is not None)
    return Fact(f"GPU {index}", said) if said else None


def _drives(latest: Latest) -> Iterator[Fact]:
    for (device,) in latest.rows(nvme.UP):
        link = (
            f"{figures.count(latest.value(nvme.GENERATION, device))} x{figures.count(latest.value(nvme.WIDTH, device))}"
        )
        best = (
            f"{figures.count(latest.value(nvme.GENERATION_MAX, device))} "
            f"x{figures.count(latest.value(nvme.WIDTH_MAX, device))}"
        )
        wear = latest.value(nvme_health.WEAR, device)
        told = f"PCIe {link}" + ("" if wear is None else f", worn {figures.percent(wear)}")
        waited = latest.value(nvme_health.IN_FLIGHT, device) or 0.0
        doubt = f"no answer for {figures.seconds(waited)}" if waited > _ANSWERS_SECONDS else ""
        yield Fact(device, told, f"PCIe {best}", doubt)


def _arrays(latest: Latest) -> Iterator[Fact]:
    for (device,) in latest.rows(raid.UP):
        active, expected = latest.value(raid.MEMBERS, device, "active"), latest.value(raid.EXPECTED, device)
        yield Fact(device, f"{figures.count(active)} members", f"{figures.count(expected)}")


def _ports(latest: Latest) -> Iterator[Fact]:
    wanted = latest.value(targets.ROCE_PORT)
    for labels, up in latest.rows(rdma.UP).items():
        rate = latest.value(rdma.RATE, *labels)
        doubt = "" if up else "nothing goes over it"
        if up and rate and wanted and rate < wanted:
            doubt = "slower than the target"
        measured = figures.bits(rate) if up else "down"
        yield Fact(f"{labels[0]} port {labels[1]}", measured, figures.bits(wanted), doubt)


def _missing(latest: Latest) -> Iterator[Fact]:
    for kind in ("drives", "arrays", "ports"):
        present, expected = (latest.value(spec, kind) for spec in (inventory.PRESENT, inventory.EXPECTED))
        if present is None:
            continue
        few = expected is not None and present < expected and not _named_missing(latest, kind)
        said = "fewer than expected" if few else ""
        fault, doubt = (said, "") if kind == "ports" else ("", said)  # as their findings
        yield Fact(kind, figures.count(present), figures.count(expected), doubt, fault)


def _numa(latest: Latest) -> Iterator[Fact]:
    nodes = {f"GPU {labels[0]}": labels[-1] for labels in latest.rows(pcie.PCIE_INFO) if labels[-1]}
    near = {labels[-1] for labels in latest.rows(rdma.INFO) if labels[-1]}
    for device, node in nodes.items():
        doubt = "no RDMA port on its node" if near and node not in near else ""
        yield Fact(device, f"node {node}", "a port's node" if near else "", doubt)


def _platform(latest: Latest) -> Iterator[Fact]:
    """What is asked of the IOMMU and of ACS is asked of metal: a virtual machine needs both."""
    for (hypervisor,), virtual in latest.rows(platform.VIRTUALIZED).items():
        named = "" if hypervisor in ("none", "unknown") else f" ({hypervisor})"
        speaks = [f"{source} ({said})" for (source, said), for_it in latest.rows(platform.EVIDENCE).items() if for_it]
        doubt = f"a virtual machine by {', '.join(speaks)}" if virtual else ""
        yield Fact("", f"{'virtual machine' if virtual else 'bare metal'}{named}", "bare metal", doubt)
        mode = latest.state(platform.IOMMU)
        if mode:
            yield Fact("IOMMU", mode, "" if virtual else "off, passthrough")
        ports = {state: count for (state,), count in latest.rows(platform.SWITCH_PORTS).items()}
        if ports:
            told = [f"{count:.0f} {state}" for state, count in ports.items() if count]
            yield Fact("ACS", ", ".join(told), "" if virtual else "none enabled")


def _versions(latest: Latest) -> Iterator[Fact]:
    told = latest.facts(driver.DRIVER_INFO)
    kernel = latest.facts(machine.INFO).get("kernel")
    if kernel:
        yield Fact("kernel", kernel)
    if told.get("cuda_version"):
        yield Fact("CUDA", told["cuda_version"])
    place = driver.GPU_INFO.labels.index("vbios")
    vbios = {labels[place] for labels in latest.rows(driver.GPU_INFO) if labels[place]}
    if vbios:
        doubt = "GPUs differ" if len(vbios) > 1 else ""
        yield Fact("VBIOS", ", ".join(sorted(vbios)), "one for all", doubt)


def _exporter(latest: Latest) -> Iterator[Fact]:
    up = latest.value(xid.KERNEL_LOG_UP)
    if up is not None:
        yield Fact("Kernel log", "read" if up else "not read", "read")


_NO_GPU = "no GPU tells it"
# Name, what tells it, and why there may be nothing to tell.
CHECKS: tuple[tuple[str, _Tell, str], ...] = (
    ("driver", _of_host(_driver), "the driver was not asked"),
    ("GPUs", _of_host(_gpus), "the GPUs cannot be counted"),
    ("inventory", _of_host(_missing), "no drive, array or port can be listed"),
    ("XIDs", _per_gpu(_xids), _NO_GPU),
    ("GPU memory", _per_gpu(_memory), _NO_GPU),
    ("NVLink", _per_gpu(_nvlink), "no GPU has NVLinks"),
    ("NVLink fabric", _per_gpu(_fabric), "no GPU is on an NVLink fabric"),
    ("PCIe", _per_gpu(_pcie), _NO_GPU),
    ("power limit", _per_gpu(_power), _NO_GPU),
    ("clocks", _per_gpu(_clocks), "told by GPUs that are locked, or at their highest"),
    ("throttling", _throttling, _NO_GPU),
    ("modes", _per_gpu(_modes), _NO_GPU),
    ("drives", _of_host(_drives), "no NVMe drive"),
    ("arrays", _of_host(_arrays), "no array"),
    ("RDMA ports", _of_host(_ports), "no RDMA port"),
    ("NUMA", _of_host(_numa), "the host does not tell its GPUs' nodes"),
    ("platform", _of_host(_platform), "nothing tells whether it is a virtual machine"),
    ("versions", _of_host(_versions), "the host does not tell"),
    ("exporter", _of_host(_exporter), "nothing to say"),
)
