"""What the latency probes tell the exporter, and the shelf on which its thread leaves it for the collector."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field

TCP, RDMA, MPI = "tcp", "rdma", "mpi"
SKIPPED = ("peer_busy", "busy_here", "peer_refused", "no_answer", "failed")
REJECTED = ("malformed", "unknown_key", "forged", "replayed", "rate")
_KEPT = 1000


@dataclass(frozen=True, slots=True)
class Round:
    """A round of messages with one peer: seconds of each round trip, and how many of those sent got no answer in
    time. Of the messages sent, the first few only warm up and have no time here.
    """

    peer: str
    transport: str
    seconds: tuple[float, ...]
    sent: int
    lost: int
    at: float  # seconds since the epoch, of its end


@dataclass(frozen=True, slots=True)
class Skipped:
    """A round that did not take place: the reason, one of SKIPPED, and where there is more to say, that."""

    peer: str
    transport: str
    reason: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Rejections:
    """Datagrams from a peer's address that were not taken for its own, for one of the reasons REJECTED."""

    peer: str
    reason: str
    count: int


Result = Round | Skipped | Rejections


@dataclass(slots=True)
class Results:
    """Safe between threads."""

    _taken: deque[Result] = field(default_factory=lambda: deque(maxlen=_KEPT))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _state: tuple[str, str] = ("starting", "only the running exporter (serve) makes rounds, within 5 s of its start")

    def put(self, result: Result) -> None:
        with self._lock:
            self._taken.append(result)

    def take(self) -> tuple[Result, ...]:
        """What has come since the last time."""
        with self._lock:
            taken = tuple(self._taken)
            self._taken.clear()
            return taken

    def tell(self, kind: str, message: str = "") -> None:
        """ok, starting, or the kind of a SourceError with its text."""
        with self._lock:
            self._state = kind, message

    def state(self) -> tuple[str, str]:
        with self._lock:
            return self._state
