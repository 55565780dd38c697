"""The instances that a GPU is cut into (MIG): memory, and activity by GPU instance.

Handles are taken anew at each reading: they go stale when instances are made or destroyed.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpuhost_exporter.clock import Clock
from gpuhost_exporter.errors import Absent, SourceError
from gpuhost_exporter.sources.nvml import quantities
from gpuhost_exporter.sources.nvml.activity import memory_of
from gpuhost_exporter.sources.nvml.calls import Calls, Device
from gpuhost_exporter.sources.nvml.gpm import Comparison, Measured, Pair
from gpuhost_exporter.sources.nvml.probe import Probe
from gpuhost_exporter.sources.nvml.readings import MigInstance

_HANDLE = "nvmlDeviceGetMigDeviceHandleByIndex"
_MOST_INSTANCES = 64

Slot = tuple[str, int, tuple[str, ...]]  # GPU, number of the GPU instance, UUIDs of the devices in it


class MigReader:
    def __init__(self, calls: Calls, clock: Clock) -> None:
        self._calls = calls
        self._clock = clock
        self._compare = Comparison(calls.nv)
        self._pairs: dict[Slot, Pair] = {}

    def read(self, probe: Probe) -> Iterator[MigInstance]:
        enabled = probe.modes("nvmlDeviceGetMigMode")[0]
        instances = list(_instances(probe)) if enabled else []
        by_number: dict[int, list[str]] = {}
        for device, number in instances:
            by_number.setdefault(number, []).append(device.key)
        # An instance made anew under an old number has other UUIDs, hence a pair of its own.
        slots = {number: (probe.device.uuid, number, tuple(sorted(keys))) for number, keys in by_number.items()}
        self._free_others(probe.device.uuid, set(slots.values()))
        measured = {number: self._measure(probe, slot) for number, slot in slots.items()}
        for device, number in instances:
            yield self._instance(probe.on(device), number, measured[number])

    def close(self) -> None:
        for slot, pair in self._pairs.items():
            pair.free(self._calls, slot[0])
        self._pairs.clear()

    def _free_others(self, uuid: str, kept: set[Slot]) -> None:
        for slot in [slot for slot in self._pairs if slot[0] == uuid and slot not in kept]:
            self._pairs.pop(slot).free(self._calls, uuid)

    def _measure(self, probe: Probe, slot: Slot) -> Measured:
        device, number = probe.device, slot[1]
        pair = self._pairs.setdefault(slot, Pair())
        return pair.measure(
            probe,
            self._compare,
            self._clock.now(),
            lambda sample: probe.calls.hand(device, "nvmlGpmMigSampleGet", f"instance {number}", number, sample),
        )

    def _instance(self, probe: Probe, number: int, measured: Measured) -> MigInstance:
        memory = memory_of(probe)
        name = probe.text("nvmlDeviceGetName") or ""
        return MigInstance(
            uuid=probe.device.uuid,
            at=self._clock.now(),
            instance_uuid=probe.device.key,
            gpu_instance=number,
            compute_instance=probe.device.index,
            profile=name.partition(" MIG ")[2] or None,
            memory_total_bytes=memory.total,
            memory_used_bytes=memory.used,
            graphics_ratio=measured.values.get("graphics"),
            sm_active_ratio=measured.values.get("sm_active"),
            tensor_ratio=measured.values.get("tensor"),
            memory_bandwidth_ratio=measured.values.get("memory_bandwidth"),
        )


def _instances(probe: Probe) -> Iterator[tuple[Device, int]]:
    """Each MIG device (its index is the compute instance) and the number of its GPU instance."""
    parent = probe.device
    slots = probe.whole(quantities.COUNT, "nvmlDeviceGetMaxMigDeviceCount") or 0
    for index in range(min(slots, _MOST_INSTANCES)):
        try:
            handle = probe.calls.call(parent.uuid, _HANDLE, parent.handle, index)
            uuid = probe.calls.call(parent.uuid, "nvmlDeviceGetUUID", handle)
            number = probe.calls.call(parent.uuid, "nvmlDeviceGetGpuInstanceId", handle)
            compute = probe.calls.call(parent.uuid, "nvmlDeviceGetComputeInstanceId", handle)
            yield Device(quantities.ENUM.whole(compute), parent.uuid, uuid, handle), quantities.ENUM.whole(number)
        except Absent:
            continue  # a gap in the numbering
        except SourceError as error:
            probe.failed(_HANDLE, error)
