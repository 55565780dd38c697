"""What is wrong with the RDMA ports, with how the machine is set up for them, and with the way to the hosts that it
probes; from its published samples."""

from __future__ import annotations

from collections.abc import Iterator

from gpuhost_exporter import figures
from gpuhost_exporter.collectors import latency, platform, rdma, rdma_ethernet, targets
from gpuhost_exporter.latest import Latest
from gpuhost_exporter.sources.latency.results import TCP
from gpuhost_exporter.specs import Spec

# Kind, subject, message, action.
Said = tuple[str, str, str, str]

RATED: tuple[Spec, ...] = (rdma.CONGESTION, rdma_ethernet.PAUSE, rdma_ethernet.PHYSICAL_ERRORS)

_PAUSED_RATIO = 0.05
_STALLS = ("ack_timeout", "adaptive_retransmission_timeout")
_LOST_RATIO = 0.01
_DRIFTED = 2.0  # times as slow as this path usually is
_FULL_PACKETS = 4200.0  # 4096 bytes of RDMA and its headers


def find(latest: Latest, moved: Latest, *, each: bool = False) -> Iterator[Said]:
    """`moved`: what the counters of RATED do a second. What several ports share is said once, or of `each`."""
    same: dict[tuple[str, str, str, str], list[str]] = {}
    for kind, port, message, action in _ports(latest, moved):
        same.setdefault((kind, message, action, port if each else ""), []).append(port)
    for (kind, message, action, _), ports in same.items():
        # The line of one port names it whole; of many, the first and how many more.
        more = f" and {len(ports) - 1} more" if len(ports) > 1 else ""
        yield kind, f"{ports[0]}{more}", message, action
    yield from _peers(latest)
    yield from _platform(latest)


def _ports(latest: Latest, moved: Latest) -> Iterator[Said]:
    for (device, port), up in latest.rows(rdma.UP).items():
        name = f"{device} port {port}"
        if not up:
            waits = latest.value(rdma.PHYSICAL_UP, device, port)
            kind = "port_down" if _has_been_up(latest, device, port) else "port_unused"
            action = "Look at the cable, its transceivers and the switch's port." if kind == "port_down" else ""
            yield kind, name, "down, though its cable carries a link" if waits else "down", action
        stalls = sum(moved.value(rdma.CONGESTION, device, port, stall) or 0.0 for stall in _STALLS)
        if stalls:
            action = "Look at the switch ports on the way for loss, and whether PFC and ECN are on along all of it."
            yield "port_loses", name, "acknowledgements time out: the network loses packets", action
        mtu = latest.value(rdma.MTU, device, port)
        if up and mtu is not None and mtu < _FULL_PACKETS:
            yield "port_mtu", name, f"MTU {mtu:.0f}: RDMA packets are smaller than they could be", ""
        if up and latest.value(rdma.ROCE_V2, device, port) == 0:
            yield (
                "port_without_roce_v2",
                name,
                "no address of RoCE version 2",
                "Give its network interface an IP address.",
            )
    paused: dict[str, float] = {}
    for (device, _), share in moved.rows(rdma_ethernet.PAUSE).items():
        paused[device] = max(share, paused.get(device, 0.0))
    for device, share in paused.items():
        if share > _PAUSED_RATIO:
            message = f"the network makes it pause more than {figures.percent(_PAUSED_RATIO)} of the time"
            yield "port_paused", device, message, "Look for the slow receiver: its port sends the pauses."
    for (device, error), damaged in moved.rows(rdma_ethernet.PHYSICAL_ERRORS).items():
        if error == "crc" and damaged:
            yield "port_damages", device, "packets arrive damaged", "Exchange the cable or transceiver."


def _has_been_up(latest: Latest, *labels: str) -> bool:
    """By what it has counted since its driver was loaded. What was never cabled is no fault."""
    carried = any(latest.value(rdma.BYTES, *labels, direction) for direction in ("rx", "tx"))
    return carried or bool(latest.value(rdma.ERRORS, *labels, "link_downed"))


def _peers(latest: Latest) -> Iterator[Said]:
    target = latest.value(targets.COLLECTIVE_LATENCY)
    for (peer, transport), seconds in latest.rows(latency.MEDIAN).items():
        # The target is one of small messages over RDMA: tcp has none, only its own past.
        if transport != TCP and target is not None and seconds > target:
            took = figures.microseconds(seconds)
            message = f"small messages take {took}, the target is {figures.microseconds(target)}"
            yield (
                "latency_high",
                f"{peer} by {transport}",
                message,
                "Look at the ports' NUMA nodes, pauses and C-states.",
            )
    for (peer, transport), times in latest.rows(latency.DRIFT).items():
        if transport == TCP and times >= _DRIFTED:
            yield (
                "latency_drift",
                f"{peer} by {transport}",
                f"small messages take {times:.1f} times as long as usual",
                "",
            )
    for (peer, transport), share in latest.rows(latency.LOSS).items():
        if share == 1:
            message, action = "answers no probe", "Is it up, its port open, and its key the same?"
            yield "peer_silent", f"{peer} by {transport}", message, action
        elif share > _LOST_RATIO:
            message = f"{figures.percent(share)} of the probes get no answer"
            yield "peer_loses", f"{peer} by {transport}", message, "Look for discards on the way, and for load there."


def _platform(latest: Latest) -> Iterator[Said]:
    if latest.value(platform.FABRIC_MANAGER) == 0:
        yield (
            "fabric_manager_down",
            "Fabric manager",
            "not running",
            "systemctl start nvidia-fabricmanager; its log says why not.",
        )
    if latest.value(platform.FABRIC_MANAGER_MATCHES) == 0:
        yield (
            "fabric_manager_version",
            "Fabric manager",
            "of another version than the driver",
            "Install the driver's version.",
        )
    paths = latest.rows(platform.GPUDIRECT)
    if paths and not any(paths.values()):
        message = "RDMA adapters cannot reach GPU memory: all traffic is copied through the host's"
        yield "gpudirect_off", "GPUDirect", message, "modprobe nvidia-peermem"
    if any(virtual for virtual in latest.rows(platform.VIRTUALIZED).values()):
        return
    if latest.value(platform.IOMMU, "translated"):
        yield (
            "iommu_translates",
            "IOMMU",
            "translates the GPUs' traffic",
            "Boot with iommu=pt where nothing needs it.",
        )
    if latest.value(platform.SWITCH_PORTS, "enabled"):
        yield "acs_enabled", "ACS", "sends traffic between GPUs through the CPU", "Switch it off in the firmware."
