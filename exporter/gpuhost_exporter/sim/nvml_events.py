"""Event sets of the simulated library."""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass, field
from typing import Any

import pynvml

from gpuhost_exporter.sim.nvml_library import Library, refusal

_SET_ADDRESS = 0x7F40_0000_0000
_LOOK_SECONDS = 0.5  # looking stands for a wait in the driver, which costs nothing
_WHOLE_GPU = 0xFFFFFFFF
_SUPPORTED = (
    pynvml.nvmlEventTypeSingleBitEccError
    | pynvml.nvmlEventTypeDoubleBitEccError
    | pynvml.nvmlEventTypePState
    | pynvml.nvmlEventTypeXidCriticalError
)


@dataclass(slots=True)
class _EventSet:
    seen: int  # events of the scenario that are past
    masks: dict[int, int] = field(default_factory=dict)  # GPU -> event types


class EventCalls(Library):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._event_sets: dict[int, _EventSet] = {}
        self._next_set = _SET_ADDRESS

    def nvmlDeviceGetSupportedEventTypes(self, handle: Any) -> int:
        self._ask(handle)
        return int(_SUPPORTED)

    def nvmlEventSetCreate(self) -> Any:
        self._initialised()
        self._next_set += 0x100
        self._event_sets[self._next_set] = _EventSet(len(self._timeline.events(self._elapsed())))
        return ctypes.cast(self._next_set, pynvml.c_nvmlEventSet_t)

    def nvmlDeviceRegisterEvents(self, handle: Any, eventTypes: int, eventSet: Any) -> None:
        state = self._ask(handle)
        if eventTypes & ~_SUPPORTED:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        self._event_set(eventSet).masks[state.gpu.index] = eventTypes

    def nvmlEventSetWait_v2(self, eventSet: Any, timeoutms: int) -> Any:
        """The next event of a registered GPU. Once one of them is lost, that error at once, each time."""
        known = self._event_set(eventSet)
        deadline = time.monotonic() + timeoutms / 1000
        while True:
            faults = self._timeline.faults(self._elapsed())
            if error := refusal(fault for fault in faults if fault.gpu in known.masks):
                raise pynvml.NVMLError(error)
            data = self._next_event(known)
            if data is not None:
                return data
            left = deadline - time.monotonic()
            if left <= 0:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)
            time.sleep(min(left, _LOOK_SECONDS))

    def nvmlEventSetWait(self, eventSet: Any, timeoutms: int) -> Any:
        return self.nvmlEventSetWait_v2(eventSet, timeoutms)

    def nvmlEventSetFree(self, eventSet: Any) -> None:
        self._event_set(eventSet)
        del self._event_sets[_address(eventSet)]

    def _next_event(self, known: _EventSet) -> Any:
        for event in self._timeline.events(self._elapsed())[known.seen :]:
            known.seen += 1
            fault = event.fault
            wanted = known.masks.get(fault.gpu, 0) & pynvml.nvmlEventTypeXidCriticalError
            if fault.kind == "xid" and fault.event and wanted:
                data = pynvml.c_nvmlEventData_t()
                data.device = self._handle(self._host.gpus[fault.gpu])
                data.eventType = pynvml.nvmlEventTypeXidCriticalError
                data.eventData = fault.code
                data.gpuInstanceId = data.computeInstanceId = _WHOLE_GPU
                return data
        return None

    def _event_set(self, eventSet: Any) -> _EventSet:
        self._initialised()
        known = self._event_sets.get(_address(eventSet))
        if known is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return known


def _address(eventSet: Any) -> int:
    return ctypes.cast(eventSet, ctypes.c_void_p).value or 0
