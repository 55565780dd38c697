"""Processes, as the exporter itself sees them: their owners, and what the privileged reader found out.

    stat /proc/4711 -> Uid: 1000      which any user may ask for
A process that may not be traced (setuid programs) shows root here.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gpuhost_exporter.clock import Clock
from gpuhost_exporter.sources.evidence import Evidence
from gpuhost_exporter.sources.files import Root

_KEPT = 16  # windows that nobody has taken
_SLOW_SECONDS = 3.0
GRANT = "CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"


def owners(root: Root, pids: Iterable[int]) -> frozenset[int]:
    """The distinct user ids behind these process ids. One that has ended, or that hidepid or another PID
    namespace hides, is left out."""
    found = set()
    for pid in pids:
        try:
            found.add(os.stat(f"{root.proc}/{pid}").st_uid)
        except OSError:
            continue
    return frozenset(found)


class Processes:
    """The exporter's side of the job `processes`. Safe between threads; no call waits for the reader.

    Each second: follow() with the holders that NVML just named, then take() what has been answered since. An answer
    comes some milliseconds after the question, and with it the window since the one before.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._ask: Callable[[dict[str, Any]], bool] | None = None
        self._asked_at: float | None = None
        self._windows: deque[Evidence] = deque(maxlen=_KEPT)
        self._last: Evidence | None = None
        self._state = "starting"
        self._message = "not read yet"

    def connect(self, ask: Callable[[dict[str, Any]], bool]) -> None:
        """How to reach the reader: a function that hands over a request, False when there is no reader."""
        self._ask = ask

    def follow(self, holding: Mapping[str, Iterable[int]]) -> None:
        """Have the processes looked at now. `holding`: process ids by GPU UUID, GPUs without any included."""
        with self._lock:
            if self._asked_at is not None or self._ask is None:
                return
            self._asked_at = self._clock.now()
        if not self._ask({"holding": {uuid: list(pids) for uuid, pids in holding.items()}}):
            with self._lock:
                self._asked_at = None

    def take(self) -> tuple[Evidence, ...]:
        """The windows that have come since the last call, oldest first."""
        with self._lock:
            taken = tuple(self._windows)
            self._windows.clear()
            return taken

    def last(self) -> Evidence | None:
        """The newest window, taken or not; it may be old."""
        return self._last

    def put(self, answer: Evidence) -> None:
        """What the reader found."""
        with self._lock:
            self._asked_at = None
            self._state, self._message = "ok", ""
            self._last = answer
            self._windows.append(answer)

    def fail(self, kind: str, message: str) -> None:
        """The reader could not look, or is not there; `kind` is SourceError.kind."""
        with self._lock:
            self._asked_at = None
            self._state, self._message = kind, message

    def state(self) -> tuple[str, str]:
        """ok, starting, hung, denied, or the kind of error, and why in one line, empty when ok.

        denied: it reads what anybody may; other users' I/O and environment it may not.
        """
        with self._lock:
            waited = 0.0 if self._asked_at is None else self._clock.now() - self._asked_at
            if waited > _SLOW_SECONDS:
                return "hung", f"the privileged reader has been looking at processes for {waited:.0f} s"
            if self._state == "ok" and self._last is not None and self._last.denied:
                refused = sum(process.denied for process in self._last.processes)
                return "denied", f"I/O of {refused} GPU processes may not be read; grant {GRANT}"
            return self._state, self._message
