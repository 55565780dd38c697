"""The NVSwitch fabric: whether each GPU is registered in it, its health, and which pairs reach each other.

nvmlDeviceGetGpuFabricInfoV(handle, byref(info)); info.state -> 3     registration completed
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpuhost_exporter.clock import Clock
from gpuhost_exporter.errors import SourceError
from gpuhost_exporter.sources.nvml import quantities
from gpuhost_exporter.sources.nvml.calls import Calls, Device
from gpuhost_exporter.sources.nvml.probe import LOST, Probe
from gpuhost_exporter.sources.nvml.readings import Fabric, Peer

PEERS_SECONDS = 25.0  # every other reading at 15 s, whose ticks are not exact

_STATES = ("not_supported", "not_started", "in_progress", "completed")
_COMPLETED = 3
_SUMMARIES = {1: "healthy", 2: "unhealthy", 3: "limited"}

# Two bits each: 0 not supported, 1 true, 2 false. True is the bad state for the first four, the good one after.
_FINDINGS = (
    (0, "degraded_bandwidth", 1),
    (2, "route_recovery", 1),
    (4, "route_unhealthy", 1),
    (6, "access_timeout_recovery", 1),
    (12, "no_partition_assigned", 2),
    (14, "fabric_manager_disconnected", 2),
)
_CONFIGURATION_SHIFT = 8
_CONFIGURATIONS = {
    2: "incorrect_system_guid",
    3: "incorrect_chassis_serial",
    4: "no_partition",
    5: "insufficient_nvlinks",
    6: "incompatible_gpu_firmware",
    7: "invalid_location",
    8: "invalid_gpu_state",
}

_READ, _WRITE, _NVLINK = 0, 1, 2
_PEER_STATUS = (
    "ok",
    "chipset_not_supported",
    "gpu_not_supported",
    "topology_not_supported",
    "disabled",
    "not_supported",
    "unknown",
)


def findings(mask: int) -> Iterator[tuple[str, bool]]:
    """The health mask as finding and whether it is present; what the GPU does not judge is left out."""
    for shift, word, present in _FINDINGS:
        state = mask >> shift & 0x3
        if state in (1, 2):
            yield word, state == present
    configuration = mask >> _CONFIGURATION_SHIFT & 0xF
    if configuration:
        yield "incorrect_configuration", configuration != 1
    if configuration in _CONFIGURATIONS:
        yield _CONFIGURATIONS[configuration], True


class FabricReader:
    def __init__(self, calls: Calls, clock: Clock) -> None:
        self._calls = calls
        self._clock = clock
        self._fabrics: dict[str, tuple[object, ...]] = {}
        self._peers: tuple[Peer, ...] = ()
        self._peers_at = float("-inf")
        self._seen: object = None

    def read(self, probe: Probe) -> Iterator[Fabric]:
        names = ("c_nvmlGpuFabricInfo_v3_t", "c_nvmlGpuFabricInfo_v2_t")
        info = probe.filled("nvmlDeviceGetGpuFabricInfoV", names)
        if info is not None:
            fabric = _fabric(probe, info, self._clock.now())
            self._fabrics[probe.device.uuid] = (fabric.state, fabric.status_code, fabric.health, fabric.summary)
            yield fabric

    def peers(self, devices: Sequence[Device], links: Mapping[str, tuple[int, ...]]) -> tuple[Peer, ...]:
        """Every ordered pair of these GPUs. The number of calls grows with the square of the GPUs, so the answers
        are told again, with their own time, for some seconds: until then, or until GPUs, links or fabric change."""
        now = self._clock.now()
        uuids = tuple(device.uuid for device in devices)
        seen = (uuids, dict(links), {uuid: self._fabrics.get(uuid) for uuid in uuids})
        if seen != self._seen or now - self._peers_at >= PEERS_SECONDS:
            self._seen, self._peers_at = seen, now
            pairs = ((one, other) for one in devices for other in devices if one is not other)
            self._peers = tuple(peer for one, other in pairs if (peer := self._peer(one, other, now)))
        return self._peers

    def _peer(self, one: Device, other: Device, now: float) -> Peer | None:
        try:
            nvlink, read, write = (self._status(one, other, index) for index in (_NVLINK, _READ, _WRITE))
        except LOST:
            return None  # which of the two it was shows when each is read by itself
        return Peer(one.uuid, other.uuid, now, nvlink, read, write)

    def _status(self, one: Device, other: Device, index: int) -> str | None:
        name = "nvmlDeviceGetP2PStatus"
        try:
            status = self._calls.hand(one, name, f"{other.uuid} {index}", other.handle, index)
            return _PEER_STATUS[quantities.ENUM.whole(status)]
        except LOST:
            raise
        except (SourceError, IndexError):
            return None


def _fabric(probe: Probe, info: Any, now: float) -> Fabric:
    name = "nvmlDeviceGetGpuFabricInfoV"
    # The library writes one byte; the binding's structure is wider here.
    state = info.state & 0xFF
    completed = state == _COMPLETED
    cluster = bytes(info.clusterUuid)
    words = cluster.hex()
    return Fabric(
        uuid=probe.device.uuid,
        at=now,
        state=_STATES[state] if state < len(_STATES) else None,
        status_code=probe.counted(quantities.ENUM, info.status, name) if completed else None,
        health=tuple(findings(info.healthMask)),
        summary=_SUMMARIES.get(getattr(info, "healthSummary", 0)),
        clique=str(info.cliqueId) if completed else None,
        cluster_uuid="-".join((words[:8], words[8:12], words[12:16], words[16:20], words[20:]))
        if any(cluster)
        else None,
    )
