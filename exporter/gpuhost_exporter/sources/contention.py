"""What keeps a job from running. No privilege needed.

    /proc/stat                      cpu  8812 0 1102 ... : user nice system idle iowait irq softirq steal ..., in ticks
    /proc/vmstat                    oom_kill 3                                                 (Linux 4.13)
    /proc/thread-self/schedstat     73438 503396 2 : ns on a CPU, ns waited for one, times it got one
    /proc/4711/cgroup               0::/kubepods.slice/...      or, version 1, 9:memory:/slurm/uid_1001/job_90017

A thread that waits for Python's interpreter lock sleeps and does not count as waiting for a CPU.
"""

from __future__ import annotations

import os
import re
import threading
from typing import NamedTuple

from gpuhost_exporter.errors import Malformed, Unsupported
from gpuhost_exporter.sources.files import Root, optional_text, read_text

EVERY_SECONDS = 0.2
_KEPT = 6000
_CPU = re.compile(r"^cpu +([0-9 ]+)$", re.MULTILINE)
_STEAL = 7
_OOM_KILL = re.compile(r"^oom_kill ([0-9]{1,20})$", re.MULTILINE)
_SCHEDSTAT = re.compile(r"([0-9]{1,20}) ([0-9]{1,20}) ([0-9]{1,20})")
_MEMORY_GROUP = re.compile(r"^(?:0:|[0-9]+:(?:[a-z_]+,)*memory(?:,[a-z_]+)*):(/.*)$", re.MULTILINE)


class Wait(NamedTuple):
    """`times` that a thread was due, it waited `seconds` each for its CPU, on average."""

    seconds: float
    times: int


class Schedule(NamedTuple):
    """Of a thread since it started."""

    waited_nanoseconds: int
    times: int


def steal_seconds(root: Root) -> float | None:
    """CPU seconds since boot, all CPUs together; None where the kernel does not count them."""
    ticks = parse_steal(read_text(f"{root.proc}/stat"))
    return None if ticks is None else ticks / os.sysconf("SC_CLK_TCK")


def oom_kills(root: Root) -> int | None:
    """Processes killed for lack of memory since boot; None where the kernel does not count them."""
    match = _OOM_KILL.search(read_text(f"{root.proc}/vmstat"))
    return int(match[1]) if match else None


def memory_group(root: Root, pid: int) -> str | None:
    """The control group that accounts a process' memory; None when it has ended or is in none of its own."""
    return parse_memory_group(optional_text(f"{root.proc}/{pid}/cgroup") or "")


def parse_steal(text: str) -> int | None:
    """Ticks stolen, of /proc/stat."""
    match = _CPU.search(text)
    if match is None:
        raise Malformed(f"/proc/stat: expected a line 'cpu NUMBERS', got {text[:40]!r}")
    fields = match[1].split()
    return int(fields[_STEAL][:20]) if len(fields) > _STEAL else None


def parse_memory_group(text: str) -> str | None:
    """Of /proc/PID/cgroup: version 1's hierarchy for memory where there is one, else version 2's. None for the
    root, and for a path outside of this process' namespace.
    """
    found = {match[0].partition(":")[0]: match[1] for match in _MEMORY_GROUP.finditer(text)}
    path = next((path for number, path in found.items() if number != "0"), found.get("0", "/"))
    return None if path == "/" or path.startswith("/..") else path


def parse_schedstat(text: str) -> Schedule:
    match = _SCHEDSTAT.fullmatch(text)
    if match is None:
        raise Malformed(f"schedstat: expected three numbers, got {text[:40]!r}")
    return Schedule(int(match[2]), int(match[3]))


class WaitProbe:
    """Looks at the thread that calls it, which should sleep in between."""

    def __init__(self, root: Root) -> None:
        self._path = f"{root.proc}/thread-self/schedstat"
        self._before: Schedule | None = None

    def look(self) -> Wait | None:
        """Since the last look; None when nothing was due. Raises SourceError."""
        now = parse_schedstat(read_text(self._path))
        before, self._before = self._before, now
        if now == (0, 0):
            raise Unsupported(f"{self._path}: this kernel does not count")
        if before is None or now.times <= before.times or now.waited_nanoseconds < before.waited_nanoseconds:
            return None
        times = now.times - before.times
        return Wait((now.waited_nanoseconds - before.waited_nanoseconds) / 1e9 / times, times)


class Waits:
    """The exporter's side: what the probe measured. Safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waits: list[Wait] = []
        self._state = ("starting", "not measured yet")

    def put(self, waits: tuple[Wait, ...]) -> None:
        with self._lock:
            self._state = ("ok", "")
            self._waits = (self._waits + list(waits))[-_KEPT:]

    def fail(self, kind: str, message: str) -> None:
        """The probe cannot measure, or is not there; `kind` is SourceError.kind."""
        with self._lock:
            self._state = (kind, message)

    def take(self) -> tuple[Wait, ...]:
        """Those since the last call."""
        with self._lock:
            taken, self._waits = tuple(self._waits), []
            return taken

    def state(self) -> tuple[str, str]:
        """ok, starting, or the kind of error, and why in one line."""
        with self._lock:
            return self._state
