"""XID events as the library delivers them, waited for in a thread of its own.

    nvmlEventSetWait_v2(set, 1000) -> .eventType 8, .eventData 79     NVMLError 10 (timeout) when nothing happened

Best effort: NVML does not deliver every XID (62, 79, 119, 120), and none from before the registration.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from ctypes import ArgumentError, c_void_p, cast
from typing import Any

from gpuhost_exporter.clock import Clock
from gpuhost_exporter.errors import Malformed, SourceError, Transient
from gpuhost_exporter.sources.nvml.calls import Calls, Device, DriverDown, code_of
from gpuhost_exporter.sources.nvml.quantities import XID as XID_NUMBER
from gpuhost_exporter.sources.nvml.readings import Xid

_XID = 0x8
_TIMEOUT = 10
_MOST_AT_ONCE = 64
_LONGEST_PAUSE = 60.0


class Events:
    """One event set over all GPUs. Only wait() is called by the other thread."""

    def __init__(self, calls: Calls, clock: Clock) -> None:
        self._calls = calls
        self._clock = clock
        self._in_use = threading.Lock()
        self._closing = threading.Event()
        self._set: Any = None
        self._asked_for: frozenset[str] = frozenset()
        self._registered: dict[object, Device] = {}
        self._pause = 0.0
        self._not_before = float("-inf")

    def wait(self, devices: Sequence[Device], seconds: float) -> tuple[Xid, ...]:
        """The XIDs of these GPUs within so many seconds; none is the normal answer, failures included."""
        early = self._not_before - self._clock.now()
        if early > 0:
            self._closing.wait(min(early, seconds))
            return ()
        with self._in_use:
            if self._closing.is_set():
                return ()
            found: list[Xid] = []
            try:
                self._register(devices)
                if self._registered:
                    self._collect(found, seconds)
                    return tuple(found)
            except (SourceError, DriverDown):
                # A lost GPU makes every wait return at once. Registering anew leaves it out.
                self._free()
                self._pause = min(max(1.0, 2 * self._pause), _LONGEST_PAUSE)
                self._not_before = self._clock.now() + self._pause
                return tuple(found)
        self._closing.wait(seconds)
        return ()

    def close(self) -> None:
        """Free the set once nobody waits on it."""
        self._closing.set()
        with self._in_use:
            self._free()

    def _register(self, devices: Sequence[Device]) -> None:
        uuids = frozenset(device.uuid for device in devices)
        if self._set is not None and uuids == self._asked_for:
            return
        self._free()
        self._set = self._calls.call("", "nvmlEventSetCreate")
        self._asked_for = uuids
        for device in devices:
            try:
                # One unsupported bit in the mask and nothing would be registered.
                if self._calls.ask(device, "nvmlDeviceGetSupportedEventTypes") & _XID:
                    self._calls.hand(device, "nvmlDeviceRegisterEvents", "xid", _XID, self._set)
                    self._registered[_address(device.handle)] = device
            except SourceError:
                continue  # the kernel log tells the same and more

    def _collect(self, found: list[Xid], seconds: float) -> None:
        milliseconds = int(seconds * 1000)
        while len(found) < _MOST_AT_ONCE:
            try:
                event = self._calls.call("", "nvmlEventSetWait_v2", self._set, milliseconds)
            except Transient as error:
                if code_of(error) != _TIMEOUT:
                    raise
                break
            milliseconds = 0
            xid = self._xid(event)
            if xid:
                found.append(xid)
        self._pause = 0.0

    def _xid(self, event: Any) -> Xid | None:
        try:
            code = XID_NUMBER.whole(event.eventData)
        except Malformed:
            return None
        if not event.eventType & _XID:
            return None
        device = self._registered.get(_address(event.device))
        uuid, bdf = (device.uuid, device.bdf.rpartition(".")[0] or None) if device else (None, None)
        return Xid(uuid, bdf, code, self._clock.wall(), "nvml")

    def _free(self) -> None:
        used, self._set = self._set, None
        self._registered.clear()
        if used is not None:
            try:
                self._calls.call("", "nvmlEventSetFree", used)
            except (SourceError, DriverDown):
                return


def _address(handle: Any) -> object:
    """What two equal handles share: ctypes pointers to one device are not equal themselves."""
    try:
        return cast(handle, c_void_p).value
    except ArgumentError:
        return handle
