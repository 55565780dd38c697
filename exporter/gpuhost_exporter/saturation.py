"""What an array delivers while it is asked for more than it gives. Pure: readings and their times come in.

A window between two readings counts as saturated when the member with the longest queue has four requests or more
under way, is busy all the time and is asked for large blocks, 128 KiB and more. Small random I/O and an idle array are
therefore never called slow. What held the window back:

    array      most members are saturated: all of it is as fast as it gets
    member     one is, and the others wait for it: their queues are less than half as long
    submitter  none is, though large writes wait in the page cache and tasks wait for them: the kernel writes back
               with one thread a device, which does not keep the members busy
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gpuhost_exporter.averages import median
from gpuhost_exporter.sources.block import SECTOR_BYTES, Field, Fields, growth, restarted

Limit = Literal["array", "member", "submitter"]
LIMITS: tuple[Limit, ...] = ("array", "member", "submitter")
DIRECTIONS = ("read", "write")

LARGE_BYTES = 0.9 * (128 << 10)  # blocks of 128 KiB with a stray small request between them
_QUEUE = 4.0
_BUSY = 0.95
_OUTLIER = 2.0  # times the others' queue
_WAITING = 0.2  # share of time that tasks waited for I/O
_SUBSTANTIAL = 100e6  # bytes a second: less is the writing of logs
_SHORTEST = 0.5  # seconds: jiffies make less than that noise
_COMPARED_SECONDS = 60.0
_COMPARED_REQUESTS = 60
_COUNTED = Field.WEIGHTED_MILLISECONDS + 1

# The counters of the devices that count for a member: itself, or its multipath devices.
Counting = Mapping[str, Fields]


@dataclass(frozen=True, slots=True)
class PageCache:
    """The host's. `throttled`: writers are being held back now. `moved_bytes`: all volumes' together.

    `stalled_seconds`: tasks waited for I/O, None where the kernel does not tell.
    """

    written_bytes: int
    moved_bytes: int
    throttled: bool
    stalled_seconds: float | None


@dataclass(frozen=True, slots=True)
class Reading:
    """`own` are the array's own counters, for levels whose members move more bytes than the array does."""

    at: float
    members: Mapping[str, Counting]
    own: Counting | None = None
    cache: PageCache | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """What a member did in a window. `busy` is a share of it, `queue` the mean number of requests under way."""

    queue: float
    busy: float
    requests: int
    seconds: float  # added up over requests
    read_bytes: int
    written_bytes: int

    @property
    def moved(self) -> int:
        return self.read_bytes + self.written_bytes

    def saturated(self, large: float) -> bool:
        return self.queue >= _QUEUE and self.busy >= _BUSY and self.moved >= large * self.requests > 0


@dataclass(slots=True)
class Totals:
    """Since the start. A window with reads and writes is divided between them by their bytes."""

    saturated_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(DIRECTIONS, 0.0))
    saturated_bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DIRECTIONS, 0))
    limited_seconds: dict[Limit, float] = field(default_factory=lambda: dict.fromkeys(LIMITS, 0.0))
    limiting_seconds: dict[str, float] = field(default_factory=dict)  # by member, those that did


class Saturation:
    """One array, or one drive as an array of itself.

    `large`: bytes of a mean request from which a load counts as sequential. `longest`: a gap beyond it between two
    readings is booked to nothing.
    """

    def __init__(self, *, large: float = LARGE_BYTES, longest: float = 3.0) -> None:
        self.totals = Totals()
        self.ratios: dict[str, float] = {}  # each member's latency to its siblings', of the last minute with I/O
        self._large = large
        self._longest = longest
        self._last: Reading | None = None
        self._compared: dict[str, tuple[int, float]] = {}
        self._compared_seconds = 0.0

    def add(self, reading: Reading) -> None:
        last = self._last
        if last is not None and reading.at - last.at < _SHORTEST:
            return
        self._last = reading
        if last is None or reading.at - last.at > self._longest or last.members.keys() != reading.members.keys():
            return
        seconds = reading.at - last.at
        loads = {}
        for member, counting in reading.members.items():
            load = load_between(last.members[member], counting, seconds)
            if load is None:
                return
            loads[member] = load
        if loads:
            self._book(loads, last, reading, seconds)
            self._compare(loads, seconds)

    def _book(self, loads: Mapping[str, Load], last: Reading, reading: Reading, seconds: float) -> None:
        totals = self.totals
        limiting = judge(loads, self._large)
        if limiting is None:
            if self._submitted(loads, last, reading, seconds):
                totals.limited_seconds["submitter"] += seconds
            return
        delivered = _delivered(loads, last, reading, seconds)
        moved = sum(delivered)
        if not moved:
            return
        for direction, share in zip(DIRECTIONS, delivered, strict=True):
            totals.saturated_seconds[direction] += seconds * share / moved
            totals.saturated_bytes[direction] += share
        if limiting:
            totals.limited_seconds["member"] += seconds
            totals.limiting_seconds[limiting] = totals.limiting_seconds.get(limiting, 0.0) + seconds
        else:
            totals.limited_seconds["array"] += seconds

    def _submitted(self, loads: Mapping[str, Load], last: Reading, reading: Reading, seconds: float) -> bool:
        """Whether large writes trickle out of the page cache while tasks wait for them."""
        before, after = last.cache, reading.cache
        if before is None or after is None or max(load.queue for load in loads.values()) >= _QUEUE:
            return False
        written = sum(load.written_bytes for load in loads.values())
        moved = sum(load.moved for load in loads.values())
        requests = sum(load.requests for load in loads.values())
        cached = after.written_bytes - before.written_bytes
        # Who waits is not told: it is for this volume when most of what moves on the host are its large writes.
        most = max(moved, after.moved_bytes - before.moved_bytes)
        if moved < self._large * requests or 2 * written < most or 2 * cached < written:
            return False
        if written < _SUBSTANTIAL * seconds:
            return False
        if after.throttled and before.throttled:
            return True
        if before.stalled_seconds is None or after.stalled_seconds is None:
            return False
        return after.stalled_seconds - before.stalled_seconds >= _WAITING * seconds

    def _compare(self, loads: Mapping[str, Load], seconds: float) -> None:
        for member, load in loads.items():
            requests, taken = self._compared.get(member, (0, 0.0))
            self._compared[member] = requests + load.requests, taken + load.seconds
        self._compared_seconds += seconds
        if self._compared_seconds >= _COMPARED_SECONDS:
            self.ratios = latency_ratios({member: self._compared[member] for member in loads})
            self._compared, self._compared_seconds = {}, 0.0


def load_between(before: Counting, after: Counting, seconds: float) -> Load | None:
    """None when the counters started again, or others count now."""
    if before.keys() != after.keys():
        return None
    fields = [0] * _COUNTED
    for name, new in after.items():
        old = before[name]
        if restarted(old, new):
            return None
        for position, change in enumerate(growth(old[:_COUNTED], new[:_COUNTED])):
            fields[position] += change
    return Load(
        queue=fields[Field.WEIGHTED_MILLISECONDS] / 1000 / seconds,
        busy=fields[Field.BUSY_MILLISECONDS] / 1000 / seconds,
        requests=fields[Field.READS] + fields[Field.WRITES],
        seconds=(fields[Field.READ_MILLISECONDS] + fields[Field.WRITE_MILLISECONDS]) / 1000,
        read_bytes=fields[Field.READ_SECTORS] * SECTOR_BYTES,
        written_bytes=fields[Field.WRITTEN_SECTORS] * SECTOR_BYTES,
    )


def judge(loads: Mapping[str, Load], large: float) -> str | None:
    """None without demand, "" when it is the array that is saturated, else the one member that it waits for."""
    longest = max(loads, key=lambda member: loads[member].queue)
    if not loads[longest].saturated(large):
        return None
    saturated = sum(load.saturated(large) for load in loads.values())
    others = [load.queue for member, load in loads.items() if member != longest]
    if 2 * saturated > len(loads) or loads[longest].queue < _OUTLIER * median(others):
        return ""
    return longest


def latency_ratios(compared: Mapping[str, tuple[int, float]]) -> dict[str, float]:
    """Each member's seconds a request to the median of the others', where all had enough (requests, seconds)."""
    if len(compared) < 2 or any(requests < _COMPARED_REQUESTS for requests, _ in compared.values()):
        return {}
    latency = {member: taken / requests for member, (requests, taken) in compared.items()}
    ratios = {}
    for member, own in latency.items():
        usual = median(value for other, value in latency.items() if other != member)
        if usual > 0:
            ratios[member] = own / usual
    return ratios


def _delivered(loads: Mapping[str, Load], last: Reading, reading: Reading, seconds: float) -> tuple[int, int]:
    if reading.own is None and last.own is None:
        return (
            sum(load.read_bytes for load in loads.values()),
            sum(load.written_bytes for load in loads.values()),
        )
    own = load_between(last.own or {}, reading.own or {}, seconds)
    return (own.read_bytes, own.written_bytes) if own else (0, 0)
