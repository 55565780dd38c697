"""Who is connected, and who has to go when there is no room.

At the cap the connection that has waited longest without a complete request gives way, from the address that
holds most of them, so that one host's flood costs that host. A request that is being worked on is never ended;
an answer only when its client takes nothing of it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from gpuhost_exporter.web.connection import Connection, Limits

_GRACE_SECONDS = 0.02  # to say what one came for, or take what one gets, before another client pushes one out


@dataclass(frozen=True, slots=True)
class Counts:
    """Since the start, but for `open`, which is now."""

    open: int
    accepted: int
    evicted: int  # gave way to another client
    timed_out: int  # too slow in its handshake, request head or reading; not those that were idle
    requests: Mapping[int, int]  # by status code


@dataclass(frozen=True, slots=True)
class Newcomer:
    """Accepted, and silent so far: no thread, no TLS state."""

    sock: socket.socket
    remote: str
    since: float


Waiting = TypeVar("Waiting", Newcomer, Connection)


def first_to_go(waiting: Iterable[Waiting]) -> list[Waiting]:
    ordered = sorted(waiting, key=lambda one: one.since)
    by_address = Counter(one.remote for one in ordered)
    return sorted(ordered, key=lambda one: -by_address[one.remote])


class Crowd:
    """The connections that have a thread. `departures` is readable once one has left a full house."""

    def __init__(self, limits: Limits) -> None:
        self.departures = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._limits = limits
        self._answers = threading.Semaphore(limits.answers)
        self._lock = threading.Lock()
        self._connections: set[Connection] = set()
        self._accepted = self._evicted = self._timed_out = 0
        self._requests: Counter[int] = Counter()

    def counts(self, newcomers: int) -> Counts:
        with self._lock:
            return Counts(
                newcomers + len(self._connections),
                self._accepted,
                self._evicted,
                self._timed_out,
                dict(self._requests),
            )

    def note(self, *, accepted: int = 0, evicted: int = 0, timed_out: int = 0) -> None:
        with self._lock:
            self._accepted += accepted
            self._evicted += evicted
            self._timed_out += timed_out

    def note_request(self, status: int) -> None:
        with self._lock:
            self._requests[status] += 1

    def present(self) -> tuple[Connection, ...]:
        with self._lock:
            return tuple(self._connections)

    def has_room(self) -> bool:
        return len(self._connections) < self._limits.connections

    def enter(self, connection: Connection) -> None:
        with self._lock:
            self._connections.add(connection)

    def leave(self, connection: Connection) -> None:
        connection.close()
        with self._lock:
            if not self.has_room() and self.departures >= 0:
                os.eventfd_write(self.departures, 1)
            self._connections.discard(connection)

    def make_room(self, wanted: int) -> None:
        """Ask as many to leave as are wanted and not on their way out already; never more than half at once."""
        connections = self.present()
        wanted -= sum(connection.ended for connection in connections)
        waiting = [connection for connection in connections if connection.phase in ("head", "idle", "linger")]
        if waiting:
            for connection in first_to_go(waiting)[: min(wanted, len(waiting) // 2 + 1)]:
                self._evict(connection)
        elif wanted > 0:
            self._evict_stalled(connections)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """One of the few places in which an answer is made and sent: what is in memory at once is bounded."""
        while not self._answers.acquire(timeout=_GRACE_SECONDS):
            self._evict_stalled(self.present())
        try:
            yield
        finally:
            self._answers.release()

    def reap(self, now: float) -> None:
        """End those whose time is up."""
        for connection in self.present():
            if now >= connection.deadline:
                slow = connection.phase in ("head", "write")
                if connection.end() and slow:
                    self.note(timed_out=1)

    def disperse(self, seconds: float) -> None:
        """End all; answers under way get a little time."""
        until = time.monotonic() + seconds
        while (left := self.present()) and time.monotonic() < until:
            for connection in left:
                if connection.phase != "write":
                    connection.end()
            time.sleep(0.005)
        for connection in self.present():
            connection.end(even_answering=True)
        with self._lock:
            os.close(self.departures)
            self.departures = -1

    def _evict_stalled(self, connections: Iterable[Connection]) -> None:
        """One whose client takes nothing of its answer."""
        before = time.monotonic() - _GRACE_SECONDS
        stalled = [one for one in connections if one.phase == "write" and one.since < before and not one.ended]
        if stalled:
            self._evict(first_to_go(stalled)[0])

    def _evict(self, connection: Connection) -> None:
        if connection.since < time.monotonic() - _GRACE_SECONDS:
            self.note(evicted=connection.end())
