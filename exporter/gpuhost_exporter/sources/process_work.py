"""What one process did between two looks: its own work, not what it inherited; and what it seems to be for.

When a process is waited for, the kernel adds its counters to its parent's. That shows in the parent's count of its
children's page faults, so it is known when to take them off again; a parent that ignores SIGCHLD gets neither.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from gpuhost_exporter.sources.evidence import Role
from gpuhost_exporter.sources.procfs import TICKS_PER_SECOND, Io, Mount, Stat

ROLE_SECONDS = 15.0  # what was done so long ago counts a third
ROLE_BYTES = 16 << 20
ROLE_CPU_SECONDS = 1.0
_LAST_CHANCE = 3  # looks after which nobody has waited for a process that ended


class Work(NamedTuple):
    """None: not told, because it was not known before or may not be read.

    `made`: bytes that it wrote and did not read meanwhile. A copy makes nothing, even where that shows a look later
    and takes back what was told.
    """

    cpu_seconds: float | None
    blocked_seconds: float | None
    io: Io | None
    made: int | None = None


@dataclass(slots=True)
class Ended:
    """What a process left: counters that its parent has from now on, once it has waited for it."""

    faults: int
    io: Io
    dumping: bool  # and wrote more to its core file than was seen
    looks: int = 0


@dataclass(slots=True)
class Process:
    pid: int
    holder: int
    new_since: float  # if it started later, all that it ever did is new
    start: int = -1  # ticks since boot, -1 until it is read
    searched: float = float("-inf")
    threads_searched: float = float("-inf")
    left_out: bool = False  # it led to more processes than are followed
    threads: list[int] = field(default_factory=list)
    blocked: list[int] = field(default_factory=list)  # threads in D at the last look
    turn: int = 0
    denied: bool = False
    mount: Mount | None = None
    mount_at: float = float("-inf")
    _stat: Stat | None = None
    _io: Io | None = None
    _ended: list[Ended] = field(default_factory=list)
    _spare_faults: int = 0
    _owed: Io = field(default_factory=Io)
    _read_ahead: int = 0
    _written_ahead: int = 0
    _made: int = 0  # since it began to write
    _read: float = 0.0
    _written: float = 0.0
    _cpu: float = 0.0

    @property
    def parent(self) -> int | None:
        return self._stat.ppid if self._stat else None

    def advance(self, stat: Stat, io: Io | None) -> Work:
        """Take the counters of now; what came since those before."""
        before, io_before = self._stat, self._io
        if before is None and stat.start >= int(self.new_since * TICKS_PER_SECOND):
            before, io_before = stat._replace(ticks=0, blocked_ticks=0, reaped_faults=0), Io()
        self._stat, self._io = stat, io
        if before is None:
            return Work(None, None, None)
        inherited, dumped = self._inherited(stat.reaped_faults - before.reaped_faults)
        own = self._own(io, io_before, inherited) if io is not None and io_before is not None else None
        if own is not None and (stat.dumping or dumped):
            own = own._replace(written_chars=0, write_bytes=0)  # a core file is no work
        return Work(
            (stat.ticks - before.ticks) / TICKS_PER_SECOND,
            (stat.blocked_ticks - before.blocked_ticks) / TICKS_PER_SECOND,
            own,
            None if own is None else self._new(own),
        )

    def bequeath(self, parent: Process) -> None:
        """It has ended: its counters become the parent's as soon as that waits for it."""
        parent._ended += self._ended
        if self._stat is not None and self._io is not None:
            parent._ended.append(Ended(self._stat.faults, self._io, self._stat.dumping))

    def role(self, work: Work, seconds: float) -> tuple[Role, str]:
        """What it seems to be for, and by which evidence."""
        fading = math.exp(-seconds / ROLE_SECONDS)
        self._read *= fading
        self._written *= fading
        self._cpu = self._cpu * fading + (work.cpu_seconds or 0.0)
        if work.io is not None:
            self._read += max(work.io.read_chars, work.io.read_bytes)
            self._written += max(work.io.written_chars, work.io.write_bytes)
        if self.pid == self.holder:
            return "holder", "nvml"
        if self._written >= ROLE_BYTES and self._written >= 2 * self._read:
            return "writer", f"wrote {self._written / 1e6:.0f} MB"
        if self._read >= ROLE_BYTES:
            return "loader", f"read {self._read / 1e6:.0f} MB"
        if self._cpu >= ROLE_CPU_SECONDS:
            return "loader", f"cpu {self._cpu:.1f} s"
        return "other", ""

    def _inherited(self, faults: int) -> tuple[Io, bool]:
        """Counters of children waited for since the last look, which its own now contain; whether one left a core.

        `faults`: by how much its count of their page faults has grown. Some may have been counted a look before.
        """
        budget = faults + self._spare_faults
        total, waiting, dumped = Io(), [], False
        for ended in self._ended:
            ended.looks += 1
            if ended.faults <= budget:
                budget -= ended.faults
                total = Io(*map(sum, zip(total, ended.io, strict=True)))
                dumped |= ended.dumping
            elif ended.looks < _LAST_CHANCE:
                waiting.append(ended)
        self._ended, self._spare_faults = waiting, min(budget, faults)
        return total, dumped

    def _own(self, io: Io, before: Io, inherited: Io) -> Io:
        """The growth that is its own. What was taken off too early is owed to the next look."""
        grown = [
            now - then - less - owed for now, then, less, owed in zip(io, before, inherited, self._owed, strict=True)
        ]
        self._owed = Io(*(max(0, -value) for value in grown))
        own = Io(*(max(0, value) for value in grown))
        # A call counts when it returns, its pages as they go: one of seconds must not count in both.
        read, self._read_ahead = _not_yet_told(own.read_chars, own.read_bytes, self._read_ahead)
        written, self._written_ahead = _not_yet_told(own.written_chars, own.write_bytes, self._written_ahead)
        return own._replace(read_chars=read, written_chars=written)

    def _new(self, own: Io) -> int:
        wrote = max(own.written_chars, own.write_bytes)
        before, self._made = (
            self._made,
            max(0, self._made + wrote - max(own.read_chars, own.read_bytes)) if wrote else 0,
        )
        return self._made - before if wrote else 0


def _not_yet_told(chars: int, pages: int, ahead: int) -> tuple[int, int]:
    """Of what system calls told, what pages had not told in the looks before; and by how much pages are ahead now."""
    if chars > pages:
        late = min(ahead, chars - pages)
        return chars - late, ahead - late
    return chars, ahead + pages - chars if pages else 0
