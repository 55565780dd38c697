"""XID and SXid events: from NVML and from the kernel log, each counted once.

Neither tells all. NVML leaves out some of the gravest (79, 119, 120) and what happened before the exporter started;
the kernel log may be closed to the exporter. What both tell is one event: same GPU, same code, within 10 s. NVML's
copy waits 2 s for the kernel's, which says more.

An event moves a series only once the series has stood at 0 for AT_ZERO. What was logged before the exporter started,
and counted by none before it, waits likewise. The time of an event is told at once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from gpuhost_exporter.collector import AT_ZERO, Collector
from gpuhost_exporter.collectors import inventory
from gpuhost_exporter.errors import Absent, Denied, SourceError, Unavailable
from gpuhost_exporter.host import Host
from gpuhost_exporter.sources.kmsg import Cursor, LoggedSxid, LoggedXid
from gpuhost_exporter.sources.nvml.readings import Gpu, Xid
from gpuhost_exporter.specs import Sample, counter, gauge, info
from gpuhost_exporter.xids import SEVERITIES, Catalogue

EVENTS = counter(
    "gpuhost_xid_events_total",
    "XID errors of the GPU by severity: critical (reset, reboot or replace), warning, info and application (a fault "
    "of the program more often than of the hardware). Good is no increase of critical. A GPU that is not known "
    'counts under gpu="unknown".',
    "gpu",
    "uuid",
    "severity",
)
ERRORS = counter(
    "gpuhost_xid_errors_total",
    "XID errors of the GPU by code. The gravest codes are there from the start, others once one was seen; "
    "gpuhost_xid_info says what they mean. Good is no increase.",
    "gpu",
    "uuid",
    "xid",
)
LAST = gauge(
    "gpuhost_xid_last_timestamp_seconds",
    "When the GPU last had this XID error, in seconds since the epoch.",
    "gpu",
    "uuid",
    "xid",
)
INFO = info(
    "gpuhost_xid_info",
    "What an XID error means, how grave it is as a rule, and what NVIDIA says to do at once (empty where it does not "
    "say), for the codes that have series.",
    "xid",
    "meaning",
    "severity",
    "action",
)
SXID_ERRORS = counter(
    "gpuhost_sxid_errors_total",
    "Errors of the host's NVSwitches from the kernel log, by code and by whether the driver calls them fatal. Good is "
    "no increase of fatal ones.",
    "sxid",
    "fatal",
)
KERNEL_LOG_UP = gauge(
    "gpuhost_kernel_log_up",
    "Whether the kernel log can be read: 1 is good. At 0 only NVML tells XID errors, which leaves out GPUs that fell "
    "off the bus, and nobody tells SXid errors.",
)

NVML_WAITS = 2.0
SAME = 10.0
_REMEMBERED = 512  # GPUs and codes to compare a copy with
_STORM = 8192  # events of one GPU and code that wait for their copies
_GPUS = 64
_SERIES = 512
UNKNOWN = "unknown"
OTHER = "other"

Key = TypeVar("Key")


class RisingCounters(Generic[Key]):
    """Counters that are seen at 0 before they rise."""

    def __init__(self) -> None:
        self._values: dict[Key, int] = {}
        self._rises_from: dict[Key, float] = {}
        self._waiting: list[tuple[float, Key]] = []

    def __contains__(self, key: Key) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    def exist(self, key: Key, now: float) -> None:
        if key not in self._values:
            self._values[key] = 0
            self._rises_from[key] = now + AT_ZERO

    def add(self, key: Key, now: float) -> float:
        """Count one; returns when it shows."""
        self.exist(key, now)
        due = max(now, self._rises_from[key])
        self._waiting.append((due, key))
        return due

    def rising(self) -> bool:
        """Whether something is counted that does not show yet."""
        return bool(self._waiting)

    def values(self, now: float) -> dict[Key, int]:
        for due, key in self._waiting:
            if due <= now:
                self._values[key] += 1
        self._waiting = [(due, key) for due, key in self._waiting if due > now]
        return self._values


@dataclass(slots=True)
class _Told:
    """Of one GPU and code: when the last event was, and the times of those that only one teller told so far."""

    last: float
    alone: dict[str, deque[float]]


class Copies:
    """Tells an event from the copy of one that was already told."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, int], _Told] = {}

    def is_new(self, gpu: str, code: int, wall: float, teller: str, *, inferred: bool = False) -> bool:
        """One teller that repeats itself tells two events, unless it was `inferred` from a line without a code."""
        told = self._told.pop((gpu, code), None) or _Told(-math.inf, {})
        self._told[gpu, code] = told  # now the youngest
        if len(self._told) > _REMEMBERED:
            del self._told[next(iter(self._told))]
        if inferred and abs(told.last - wall) <= SAME:
            return False
        for other, walls in told.alone.items():
            while walls and walls[0] < wall - SAME:
                walls.popleft()
            if other != teller and walls and walls[0] <= wall + SAME:
                walls.popleft()
                return False
        told.alone.setdefault(teller, deque(maxlen=_STORM)).append(wall)
        told.last = max(told.last, wall)
        return True


class XidCollector(Collector):
    name = "xid"
    help = "XID errors of GPUs and SXid errors of NVSwitches"
    source = "NVML events; /dev/kmsg"
    privilege = "CAP_SYSLOG, where kernel.dmesg_restrict is 1"
    interval = 1.0
    specs = (EVENTS, ERRORS, LAST, INFO, SXID_ERRORS, KERNEL_LOG_UP)

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._catalogue = Catalogue.load()
        self._copies = Copies()
        self._events: RisingCounters[tuple[str, str]] = RisingCounters()  # by uuid, severity
        self._errors: RisingCounters[tuple[str, str]] = RisingCounters()  # by uuid, code
        self._sxids: RisingCounters[tuple[str, str]] = RisingCounters()  # by code, fatal
        self._last: dict[tuple[str, str], float] = {}
        self._newest: dict[str, tuple[str, float]] = {}  # of a GPU: code and time
        self._gpus: tuple[Gpu, ...] = ()
        self._told: tuple[Sample, ...] = ()  # hundreds of samples that change when a GPU fails
        self._indices: dict[str, str] = {}
        self._by_slot: dict[str, str] = {}
        self._nvml: list[tuple[float, Xid]] = []
        self._unsaved: deque[tuple[float, Cursor]] = deque()
        self._log_state = ("starting", "")

    def poll(self, now: float) -> Iterator[Sample]:
        log_state, message = self.host.kernel_log.state()
        self._tell_state(log_state, message)
        gpus = self.host.nvml.gpus()
        if gpus != self._gpus:
            self._gpus, self._told = gpus, ()
            self._know(gpus, now)
        # Whose address is whose is not known before the driver has answered once.
        if gpus or self.host.nvml.state() != "starting":
            for event in self.host.kernel_log.take():
                due = self._count_logged(event, now)
                self._unsaved.append((due, (event.boot_id, event.sequence)))
        self._nvml += [(now, event) for event in self.host.nvml.take_events()]
        ready = [event for arrived, event in self._nvml if now - arrived >= NVML_WAITS or log_state != "ok"]
        self._nvml = self._nvml[len(ready) :]
        for xid in ready:
            self._count_nvml(xid, now)
        if not self._told or any(each.rising() for each in (self._events, self._errors, self._sxids)):
            self._told = tuple(self._samples(now))
        self.post("xids", dict(self._newest))
        yield from self._told
        if log_state != "starting":
            yield KERNEL_LOG_UP(value=float(log_state == "ok"))
        self._save(now)

    def _samples(self, now: float) -> Iterator[Sample]:
        for (uuid, severity), count in self._events.values(now).items():
            yield EVENTS(self._indices[uuid], uuid, severity, value=count)
        codes: dict[str, None] = {}
        for (uuid, code), count in self._errors.values(now).items():
            codes[code] = None
            yield ERRORS(self._indices[uuid], uuid, code, value=count)
        for (uuid, code), wall in self._last.items():
            yield LAST(self._indices[uuid], uuid, code, value=wall)
        for (sxid, fatal), count in self._sxids.values(now).items():
            yield SXID_ERRORS(sxid, fatal, value=count)
        for code in codes:
            entry = self._catalogue.entries.get(int(code)) if code != OTHER else None
            if entry:
                yield INFO(code, entry.meaning, entry.severity, entry.action)

    def _know(self, gpus: tuple[Gpu, ...], now: float) -> None:
        self._by_slot = {gpu.bdf.rpartition(".")[0]: gpu.uuid for gpu in gpus}
        for gpu in gpus:
            self._indices[gpu.uuid] = str(gpu.index)
            self._exist(gpu.uuid, now)
            for code in self._catalogue.watched:
                self._errors.exist((gpu.uuid, str(code)), now)

    def _exist(self, uuid: str, now: float) -> None:
        for severity in SEVERITIES:
            self._events.exist((uuid, severity), now)

    def _count_logged(self, event: LoggedXid | LoggedSxid, now: float) -> float:
        """Returns when the event is to be seen in the counters."""
        if isinstance(event, LoggedSxid):
            key = (str(event.code), str(event.fatal).lower())
            if key not in self._sxids and len(self._sxids) >= _SERIES:
                key = (OTHER, key[1])
            return self._sxids.add(key, now)
        uuid = self._uuid(event.uuid, event.bdf)
        if not self._copies.is_new(uuid, event.code, event.wall, "kernel_log", inferred=event.inferred):
            return now
        return self._count(uuid, event.code, event.wall, event.text, now)

    def _count_nvml(self, event: Xid, now: float) -> None:
        uuid = self._uuid(event.uuid, event.bdf)
        if self._copies.is_new(uuid, event.code, event.wall, "nvml"):
            self._count(uuid, event.code, event.wall, "", now)

    def _count(self, uuid: str, code: int, wall: float, text: str, now: float) -> float:
        error = (uuid, str(code))
        if error not in self._errors and len(self._errors) >= _SERIES:
            error = (uuid, OTHER)
        self._exist(uuid, now)
        self._last[error] = max(wall, self._last.get(error, wall))
        if wall >= self._newest.get(uuid, ("", wall))[1]:
            self._newest[uuid] = (error[1], wall)
        severity = self._catalogue.severity(code, text)
        return max(self._errors.add(error, now), self._events.add((uuid, severity), now))

    def _uuid(self, uuid: str | None, bdf: str | None) -> str:
        """Whose event it is: as told, by its address now or when it was learned, else the address itself."""
        index = UNKNOWN
        if uuid is None and bdf is not None:
            uuid = self._by_slot.get(bdf)
        if uuid not in self._indices:
            known = inventory.learned(self.host.state.load(inventory.STATE_NAME), "gpus").devices
            for name, device in known.items():
                if name == uuid or (uuid is None and str(device.get("bdf")).rpartition(".")[0] == bdf):
                    uuid, index = name, str(device.get("index", UNKNOWN))
        if uuid is None:
            uuid = f"pci-{bdf}" if bdf else UNKNOWN
        if uuid not in self._indices and len(self._indices) >= _GPUS:
            uuid, index = UNKNOWN, UNKNOWN
        self._indices.setdefault(uuid, index)
        return uuid

    def _save(self, now: float) -> None:
        """Move the cursor past what shows in the counters: a crash before that counts it again, not never."""
        cursor = None
        while self._unsaved and self._unsaved[0][0] <= now:
            cursor = self._unsaved.popleft()[1]
        if cursor:
            self.host.kernel_log.save(self.host.state, cursor)

    def _tell_state(self, state: str, message: str) -> None:
        if state == "ok":
            self.recovered("kernel log")
        elif state != "starting" and self._log_state != (state, message):
            kinds: dict[str, type[SourceError]] = {kind.kind: kind for kind in (Absent, Denied)}
            self.fault("kernel log", kinds.get(state, Unavailable)(message))
        self._log_state = (state, message)
