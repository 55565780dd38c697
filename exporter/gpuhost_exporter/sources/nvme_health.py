"""A drive's own health log (SMART), asked from its controller by an admin command.

    ioctl(open("/dev/nvme0"), NVME_IOCTL_ADMIN_CMD, Get Log Page 02h)      512 bytes, little endian
    $ nvme smart-log /dev/nvme0                                            the same page for people

The node must be readable and the process hold CAP_SYS_ADMIN: the group of the node alone gives EACCES.

No timeout is passed, so the kernel's own holds (nvme_core.admin_timeout, 60 s): when an admin command times out,
the kernel resets the controller under the job's I/O. A slow answer must never cost a drive that, so one that does
not answer is left waiting in a thread of its own.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from gpuhost_exporter.clock import Clock
from gpuhost_exporter.errors import Denied, Malformed, SourceError, Transient, Unavailable, Unsupported
from gpuhost_exporter.sources import nvme
from gpuhost_exporter.sources.files import Root, optional_text, source_error

NVME_IOCTL_ADMIN_CMD = 0xC0484E41
PAGE_BYTES = 512
COMMAND = struct.Struct("<BBHIIIQQIIIIIIIIII")  # struct nvme_admin_cmd, <linux/nvme_ioctl.h>
GET_LOG_PAGE = 0x02
HEALTH_LOG = 0x02
WARNINGS = (
    "spare_low",
    "temperature",
    "reliability_degraded",
    "read_only",
    "backup_failed",
    "persistent_memory_unreliable",
)

_EVERY_NAMESPACE = 0xFFFFFFFF
_STATUS = 0x7FF  # without the bits "more" and "do not retry"
_NOT_SUPPORTED = frozenset({0x001, 0x002, 0x109})  # invalid opcode, invalid field, invalid log page
_DATA_UNIT = 512_000
_PATIENCE = 0.25
_LIVE = "live"
_STARTING_SECONDS = 10.0
_NEVER = float("inf")

# Name and incarnation: who gets the name of a drive that was pulled is another.
_Drive = tuple[str, int]

# As fcntl.ioctl: descriptor, request, argument. What the simulated host answers in its place.
Ioctl = Callable[[int, int, bytearray], int]


@dataclass(frozen=True, slots=True)
class Health:
    """Counts are of the drive's life. Temperatures in celsius; `warnings` are those raised now.

    `wear_ratio` is the share of the rated endurance that is used up: it goes past 1, and 2.55 stands for any more.
    `warm_seconds` and `hot_seconds` were spent above the drive's warning and critical temperature, counted in minutes.
    The pairs are for light and heavy throttling by the drive itself.
    """

    warnings: tuple[str, ...]
    wear_ratio: float
    spare_ratio: float | None
    spare_threshold_ratio: float | None
    temperatures: tuple[nvme.Temperature, ...]
    read_bytes: int | None
    written_bytes: int | None
    power_cycles: int
    power_on_seconds: int
    unsafe_shutdowns: int
    media_errors: int
    warm_seconds: int
    hot_seconds: int
    throttlings: tuple[int, int]
    throttled_seconds: tuple[int, int]


def parse(page: bytes) -> Health:
    """Raises Malformed for what is no health log, Unsupported for the empty one of a drive that keeps none."""
    if len(page) != PAGE_BYTES:
        raise Malformed(f"health log: expected {PAGE_BYTES} bytes, got {len(page)}")
    if not any(page):
        raise Unsupported("health log: empty")
    if page.count(0xFF) == PAGE_BYTES:
        raise Malformed("health log: all ones, as from a device that is gone")
    flags, composite, spare, threshold, used = struct.unpack_from("<BHBBB", page)
    read, written = _counter(page, 32), _counter(page, 48)
    warm, hot, *sensors = struct.unpack_from("<II8H", page, 192)
    light, heavy, light_seconds, heavy_seconds = struct.unpack_from("<4I", page, 216)
    kelvins = (("composite", composite), *((str(place), kelvin) for place, kelvin in enumerate(sensors, 1)))
    return Health(
        warnings=tuple(name for bit, name in enumerate(WARNINGS) if flags >> bit & 1),
        wear_ratio=used / 100,
        spare_ratio=spare / 100 if spare <= 100 else None,
        spare_threshold_ratio=threshold / 100 if threshold <= 100 else None,
        temperatures=tuple(nvme.Temperature(name, round(kelvin - 273.15, 2)) for name, kelvin in kelvins if kelvin),
        # The specification has 0 stand for "not reported" here, and nowhere else.
        read_bytes=read * _DATA_UNIT or None,
        written_bytes=written * _DATA_UNIT or None,
        power_cycles=_counter(page, 112),
        power_on_seconds=_counter(page, 128) * 3600,
        unsafe_shutdowns=_counter(page, 144),
        media_errors=_counter(page, 160),
        warm_seconds=warm * 60,
        hot_seconds=hot * 60,
        throttlings=(light, heavy),
        throttled_seconds=(light_seconds, heavy_seconds),
    )


def _counter(page: bytes, offset: int) -> int:
    return int.from_bytes(page[offset : offset + 16], "little")


def read(root: Root, name: str, ioctl: Ioctl = fcntl.ioctl) -> Health:
    """Ask the controller. Blocks until it answers or the kernel gives it up. Raises SourceError."""
    state = _state(root, name)
    if state != _LIVE:
        raise Unavailable(f"{name}: the controller is {state}")
    path = f"{root.dev}/{name}"
    page = array("B", bytes(PAGE_BYTES))
    address, length = page.buffer_info()
    command = bytearray(
        COMMAND.pack(
            GET_LOG_PAGE, 0, 0, _EVERY_NAMESPACE, 0, 0, 0, address, 0, length,
            HEALTH_LOG | (length // 4 - 1) << 16, 0, 0, 0, 0, 0, 0, 0,
        )
    )  # fmt: skip
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError as error:
        raise Denied(f"{path}: {error.strerror}; grant read access to the device node") from error
    except OSError as error:
        raise source_error(path, error) from error
    try:
        status = ioctl(descriptor, NVME_IOCTL_ADMIN_CMD, command) & _STATUS
    except PermissionError as error:
        raise Denied(f"{path}: {error.strerror}; grant CAP_SYS_ADMIN") from error
    except OSError as error:
        if error.errno == errno.ENOTTY:
            raise Unsupported(f"{path}: takes no admin command") from error
        raise source_error(path, error) from error
    finally:
        os.close(descriptor)
    if status in _NOT_SUPPORTED:
        raise Unsupported(f"{path}: keeps no health log (NVMe status {status:#x})")
    if status:
        raise Transient(f"{path}: NVMe status {status:#x}")
    return parse(page.tobytes())


def _state(root: Root, name: str) -> str:
    """live also where the kernel does not tell."""
    return optional_text(f"{root.sys}/class/nvme/{name}/state") or _LIVE


@dataclass(frozen=True, slots=True)
class Report:
    """What came of asking a drive; `answer` and its time are None while it has not answered. Clock.now() seconds."""

    device: str
    asked_at: float
    answered_at: float | None = None
    answer: Health | SourceError | None = None


class DriveReader:
    """Asks the drives one after the other; runs in the process that holds CAP_SYS_ADMIN.

    A drive that keeps it waiting is left behind in its thread, is asked no second time before it has answered, and
    delays no other by more than a moment. One whose controller starts or resets is asked as soon as it is done.
    """

    def __init__(self, root: Root, interval: float, clock: Clock, ioctl: Ioctl = fcntl.ioctl) -> None:
        self._root = root
        self._interval = interval
        self._clock = clock
        self._ioctl = ioctl
        self._due: dict[_Drive, float] = {}
        self._down: set[_Drive] = set()
        self._waiting: dict[_Drive, _Question] = {}

    def look(self) -> tuple[Report, ...]:
        """Ask what is due, new drives at once. Answers since the last call, and all that are still waited for."""
        listed = [(name, nvme.incarnation(self._root, name)) for name in nvme.controllers(self._root)]
        self._due = {drive: self._due[drive] if drive in self._due else self._first(drive[0]) for drive in listed}
        self._down &= self._due.keys()
        for drive, due in self._due.items():
            if due == _NEVER or drive in self._waiting:
                continue
            name, now = drive[0], self._clock.now()
            live = _state(self._root, name) == _LIVE
            if now >= due or (live and drive in self._down):
                self._due[drive] = now + self._interval
                question = self._waiting[drive] = _Question(name, now)
                question.ask(partial(read, self._root, name, self._ioctl), self._clock)
            (self._down.discard if live else self._down.add)(drive)
        reports = {drive: question.report for drive, question in self._waiting.items()}
        for drive, report in reports.items():
            if report.answer is not None:
                del self._waiting[drive]
        return tuple(report for drive, report in reports.items() if drive in self._due)

    def _first(self, name: str) -> float:
        """When a drive that was not there before is asked at the latest; never where a network is between."""
        transport = optional_text(f"{self._root.sys}/class/nvme/{name}/transport")
        if transport not in (None, "pcie"):
            return _NEVER
        # It is announced before its controller is up.
        return self._clock.now() + (0.0 if _state(self._root, name) == _LIVE else _STARTING_SECONDS)


class _Question:
    def __init__(self, device: str, asked_at: float) -> None:
        self.report = Report(device, asked_at)

    def ask(self, answer: Callable[[], Health], clock: Clock) -> None:
        """Returns with the answer in `report`, or without one after a moment."""
        thread = threading.Thread(target=self._ask, args=(answer, clock), name=self.report.device, daemon=True)
        thread.start()
        thread.join(_PATIENCE)

    def _ask(self, answer: Callable[[], Health], clock: Clock) -> None:
        found: Health | SourceError
        try:
            found = answer()
        except SourceError as error:
            found = error
        self.report = Report(self.report.device, self.report.asked_at, clock.now(), found)


@dataclass(frozen=True, slots=True)
class Told:
    """The last that is known of a drive: its health and when, the last failure since, and since when it is silent."""

    health: Health | None = None
    read_at: float | None = None
    failure: SourceError | None = None
    answered_at: float | None = None
    asked_at: float | None = None


@dataclass(slots=True)
class DriveHealth:
    """The exporter's side: what the reader was told. Safe between threads."""

    _told: dict[str, Told] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _state: tuple[str, str] = ("starting", "not read yet")

    def put(self, reports: Iterable[Report]) -> None:
        with self._lock:
            self._state = ("ok", "")
            for report in reports:
                before = self._told.get(report.device, Told())
                self._told[report.device] = _after(before, report)

    def fail(self, kind: str, message: str) -> None:
        """The reader cannot read at all, or has ended, and with it what it waited for; `kind` is SourceError.kind."""
        with self._lock:
            self._state = (kind, message)
            self._told = {
                name: Told(told.health, told.read_at, told.failure, told.answered_at)
                for name, told in self._told.items()
            }

    def keep(self, devices: Iterable[str]) -> None:
        """Forget every other drive: who gets its name next is another."""
        with self._lock:
            present = frozenset(devices)
            self._told = {name: told for name, told in self._told.items() if name in present}

    def told(self, device: str) -> Told:
        with self._lock:
            return self._told.get(device, Told())

    def state(self) -> tuple[str, str]:
        """ok, starting, or the kind of error, and why in one line."""
        with self._lock:
            return self._state


def _after(before: Told, report: Report) -> Told:
    if report.answer is None:
        return Told(before.health, before.read_at, before.failure, before.answered_at, report.asked_at)
    if isinstance(report.answer, SourceError):
        return Told(before.health, before.read_at, report.answer, report.answered_at)
    return Told(report.answer, report.answered_at, None, report.answered_at)
