r"""NVIDIA's errors in the kernel log, XID of a GPU and SXid of an NVSwitch, and OOM kills.

Needs CAP_SYSLOG where kernel.dmesg_restrict is 1. /dev/kmsg hands out one record a read, from the start of the ring:

    4,1523,6781741548779,-;NVRM: Xid (PCI:0000:91:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen ...
     SUBSYSTEM=pci
     DEVICE=+pci:0000:91:00.0
    priority and facility, sequence, microseconds since boot, flags (newer kernels add more);text

A line feed inside the text is written \x0a. Following lines that begin with a space are properties, not text.
What the driver prints (kernel_rc.c and osinit.c of NVIDIA's open modules, and older ones):

    NVRM: GPU at PCI:0000:91:00: GPU-b6c3b2be-c55b-d076-fa0e-d464e4c7e08b
    NVRM: Xid (PCI:0000:01:00 GPU-I:05 GPU-CI:00): 94, pid=7194, name=python, Contained: CE User Channel ...
    NVRM: Xid (0000:03:00): 14, Channel 00000001
    NVRM: Xid (PCI:0018:01:00): 149, NETIR_LINK_EVT  Fatal   XC0 i0 Link 09 (0x025525c6 ...)
    NVRM: GPU 0000:91:00.0: GPU has fallen off the bus.
    NVRM: The NVIDIA GPU 0000:18:00.0\x0aNVRM: (PCI ID: ...) installed in this system has\x0aNVRM: fallen off ...
    nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 12028, Non-fatal, Link 32 egress non-posted PRIV error (First)
    nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 12028, Severity 0 Engine instance 32 Sub-engine instance 00

    oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),...,task_memcg=/kubepods/...,task=python,pid=7194,uid=0
    Memory cgroup out of memory: Killed process 7194 (python) total-vm:...

The last SXid is a detail of the event before it. A GPU that falls off while the driver starts has no Xid line.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from gpuhost_exporter.clock import Clock, SystemClock
from gpuhost_exporter.errors import Denied, Malformed, Transient
from gpuhost_exporter.sources.files import Root, optional_text, source_error
from gpuhost_exporter.sources.state import State

FALLEN_OFF = 79
STATE_NAME = "kernel_log"

_BLOCK = 65536
_TEXT = 200  # characters kept of what follows a code
_QUEUE = 4096
_KNOWN_GPUS = 256
# Nothing disciplines the clock that the kernel stamps records with: after weeks it is seconds off the wall clock.
_DRIFT = 5.0

_SLOT = r"(?:PCI:)?([0-9a-fA-F]{4,8}):([0-9a-fA-F]{2}):([0-9a-fA-F]{2})(?:\.[0-7])?"
_XID = re.compile(rf"NVRM: Xid \({_SLOT}[^)]*\): ([0-9]{{1,4}})(?![0-9])[,\s]*(.*)", re.DOTALL)
_SXID = re.compile(rf"nvidia-nvswitch[0-9]+: SXid \({_SLOT}\): ([0-9]{{1,6}}), (Fatal|Non-fatal)\b")
_FALLEN = re.compile(rf"NVRM: (?:The NVIDIA )?GPU (?:at )?{_SLOT}\b.*fallen off the bus", re.DOTALL)
_GPU_AT = re.compile(rf"NVRM: GPU at {_SLOT}: (GPU-[0-9a-f-]{{36}})")
# Before Linux 5.0 only the second line, without the group.
_KILL = re.compile(r"oom-kill:.*,task_memcg=([^,]*),.*,pid=([0-9]{1,10})(?:,|$)|(?:.* )?Killed process ([0-9]{1,10})\b")
_TOLD = (b"NVRM: ", b"SXid", b"oom-kill:", b"Killed process ")
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")

Cursor = tuple[str, int]  # boot id, sequence of the last event taken


@dataclass(frozen=True, slots=True)
class Record:
    sequence: int
    seconds: float  # since boot
    text: str


@dataclass(frozen=True, slots=True)
class LoggedXid:
    """`bdf` without the function digit; `uuid` where the log told it; `text` is what followed the code.

    `inferred`: a line that says the GPU fell off the bus, without an Xid; usually an Xid line stands beside it.
    """

    boot_id: str
    sequence: int
    wall: float
    bdf: str
    uuid: str | None
    code: int
    text: str
    inferred: bool


@dataclass(frozen=True, slots=True)
class LoggedSxid:
    boot_id: str
    sequence: int
    wall: float
    code: int
    fatal: bool


@dataclass(frozen=True, slots=True)
class LoggedKill:
    """A process killed for lack of memory; `group` is the control group that accounted its memory."""

    boot_id: str
    sequence: int
    wall: float
    pid: int
    group: str | None


Logged = LoggedXid | LoggedSxid | LoggedKill


def parse_record(line: str) -> Record:
    """One record without its properties. Raises Malformed."""
    prefix, separator, text = line.partition(";")
    numbers = prefix.split(",")[:3]
    if not separator or len(numbers) < 3 or not all(number.isascii() and number.isdigit() for number in numbers):
        raise Malformed(f"kmsg: expected priority,sequence,microseconds,flags;text, got {line[:60]!r}")
    if max(map(len, numbers)) > 20:
        raise Malformed(f"kmsg: numbers out of range in {line[:60]!r}")
    text = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)
    return Record(int(numbers[1]), int(numbers[2]) / 1e6, text.rstrip())


class Recogniser:
    """Finds NVIDIA's errors and OOM kills in records, and remembers which UUID the log named for which address."""

    def __init__(self, boot_id: str) -> None:
        self._boot_id = boot_id
        self._uuids: dict[str, str] = {}

    def event(self, record: Record, wall: float) -> Logged | None:
        text = record.text
        if found := _XID.match(text):
            return self._xid(record, wall, _bdf(found), int(found[4]), found[5][:_TEXT])
        if found := _SXID.match(text):
            return LoggedSxid(self._boot_id, record.sequence, wall, int(found[4]), found[5] == "Fatal")
        if found := _KILL.match(text):
            return LoggedKill(self._boot_id, record.sequence, wall, int(found[2] or found[3]), found[1])
        if found := _FALLEN.match(text):
            return self._xid(record, wall, _bdf(found), FALLEN_OFF, None)
        if (found := _GPU_AT.match(text)) and len(self._uuids) < _KNOWN_GPUS:
            self._uuids[_bdf(found)] = found[4]
        return None

    def _xid(self, record: Record, wall: float, bdf: str, code: int, text: str | None) -> LoggedXid:
        return LoggedXid(
            boot_id=self._boot_id,
            sequence=record.sequence,
            wall=wall,
            bdf=bdf,
            uuid=self._uuids.get(bdf),
            code=code,
            text=text or "",
            inferred=text is None,
        )


def _bdf(found: re.Match[str]) -> str:
    """The matched PCI address without function digit, as sysfs writes it: four digits of domain, lower case."""
    domain, bus, device = found.group(1, 2, 3)
    return f"{int(domain, 16):04x}:{bus}:{device}".lower()


class KernelLogReader:
    """Reads the log from the start of the ring, then what is new; runs in the process that holds CAP_SYSLOG.

    `cursor`: the last event that was taken; those up to it, in the same boot, are not told again.
    """

    def __init__(self, root: Root, cursor: Cursor | None, clock: Clock | None = None) -> None:
        self._path = f"{root.dev}/kmsg"
        self._clock = clock or SystemClock()
        boot_id = optional_text(f"{root.proc}/sys/kernel/random/boot_id") or ""
        self._recogniser = Recogniser(boot_id)
        self._after = cursor[1] if cursor and cursor[0] == boot_id else -1
        self._descriptor: int | None = None
        self._rest = b""
        self._caught_up = False

    def read_new(self) -> tuple[Logged, ...]:
        """Events logged since the last call. Raises Denied, Absent or another SourceError."""
        if self._descriptor is None:
            self._descriptor = self._open()
        offset = self._clock.wall() - self._clock.now()
        found: list[Logged] = []
        while block := self._read(self._descriptor):
            *lines, self._rest = (self._rest + block).split(b"\n")
            if len(self._rest) > _BLOCK:
                self._rest = b""
            events = [self._event(line, offset) for line in lines]
            found.extend(event for event in events if event and event.sequence > self._after)
        self._caught_up = True
        return tuple(found)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor, self._rest, self._caught_up = None, b"", False

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except PermissionError as error:
            raise Denied(f"{self._path}: {error.strerror}; grant CAP_SYSLOG or set kernel.dmesg_restrict=0") from error
        except OSError as error:
            raise source_error(self._path, error) from error

    def _read(self, descriptor: int) -> bytes:
        """The next record, or a block of a simulated log; nothing when there is no more now."""
        while True:
            try:
                return os.read(descriptor, _BLOCK)
            except BlockingIOError:
                return b""
            except OSError as error:
                if error.errno != errno.EPIPE:
                    self.close()
                    raise Transient(f"{self._path}: {error.strerror}") from error
                # Records were overwritten before they were read; the next read goes on with the oldest left.

    def _event(self, line: bytes, offset: float) -> Logged | None:
        if line.startswith(b" ") or not any(part in line for part in _TOLD):
            return None
        try:
            record = parse_record(line.decode("utf-8", "replace"))
        except Malformed:
            return None
        now, wall = self._clock.now(), offset + record.seconds
        late = self._caught_up and abs(now - record.seconds) > _DRIFT
        return self._recogniser.event(record, offset + now if late else wall)


class KernelLog:
    """The exporter's side: what the reader found and whether it can read. Safe between threads.

    `resumes`: go on after what was ever counted, and keep how far that is. Else all that the log holds is told, and
    whoever counts is not disturbed.
    """

    def __init__(self, *, resumes: bool = True) -> None:
        self._resumes = resumes
        self._lock = threading.Lock()
        self._events: deque[LoggedXid | LoggedSxid] = deque(maxlen=_QUEUE)
        self._kills: deque[LoggedKill] = deque(maxlen=_QUEUE)
        self._cursor: Cursor | None = None
        self._state = "starting"
        self._message = "not read yet"

    def cursor(self, state: State) -> Cursor | None:
        """Where a reader that is started now goes on: after what was put, else after what was ever counted."""
        with self._lock:
            cursor = self._cursor
        return cursor or (_saved_cursor(state.load(STATE_NAME)) if self._resumes else None)

    def save(self, state: State, cursor: Cursor) -> None:
        """Everything up to this event is counted: the next start goes on after it."""
        if self._resumes:
            state.replace(STATE_NAME, {"boot_id": cursor[0], "sequence": cursor[1]})

    def put(self, events: tuple[Logged, ...]) -> None:
        """What the reader found; an empty answer says that it can read."""
        with self._lock:
            self._state, self._message = "ok", ""
            for event in events:
                boot_id, last = self._cursor or ("", -1)
                if event.boot_id != boot_id or event.sequence > last:
                    if isinstance(event, LoggedKill):
                        self._kills.append(event)
                    else:
                        self._events.append(event)
                    self._cursor = (event.boot_id, event.sequence)

    def fail(self, kind: str, message: str) -> None:
        """The reader cannot read, or is not there; `kind` is SourceError.kind."""
        with self._lock:
            self._state, self._message = kind, message

    def take(self) -> tuple[LoggedXid | LoggedSxid, ...]:
        """XIDs and SXids since the last call, oldest first."""
        with self._lock:
            taken = tuple(self._events)
            self._events.clear()
            return taken

    def take_kills(self) -> tuple[LoggedKill, ...]:
        """Processes killed for lack of memory since the last call, oldest first."""
        with self._lock:
            taken = tuple(self._kills)
            self._kills.clear()
            return taken

    def state(self) -> tuple[str, str]:
        """ok, starting, or the kind of error (denied, absent, ...), and why in one line, empty when ok."""
        with self._lock:
            return self._state, self._message


def _saved_cursor(data: Mapping[str, object]) -> Cursor | None:
    boot_id, sequence = data.get("boot_id"), data.get("sequence")
    return (boot_id, sequence) if isinstance(boot_id, str) and isinstance(sequence, int) else None
