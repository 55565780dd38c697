"""The exporter's side of the NVML reader: asks it, and outlives it.

The library runs in a child process. A call that hangs gets the child killed and the GPU it hung on left out for a
while; a crash gets a new child; a driver that is absent, mismatched or released is a state, not an error. Only
read() ever waits, and no longer than its deadline; everything else answers from what is known.
"""

from __future__ import annotations

import logging
import select
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gpuhost_exporter.clock import Clock
from gpuhost_exporter.errors import Gone, Hung, SourceError, Transient, Unavailable
from gpuhost_exporter.sources.launcher import Launcher
from gpuhost_exporter.sources.nvml.book import Book, Pause
from gpuhost_exporter.sources.nvml.calls import DriverDown
from gpuhost_exporter.sources.nvml.marks import clear_mark, read_mark
from gpuhost_exporter.sources.nvml.readings import Batch, Driver, Gpu, Xid
from gpuhost_exporter.sources.pipe import Pipe, pair, recv_answer, send_request

log = logging.getLogger(__name__)

STATES = (
    "ok", "starting", "no_library", "no_driver", "mismatch", "no_gpus", "permission", "released",
    "hung", "stuck", "crashed", "error",
)  # fmt: skip
RESTART_REASONS = ("crashed", "hung", "mismatch", "recheck", "released")

_INIT_SECONDS = 60.0  # nvmlInit may have to wait for a driver that is loading
_RETRY_SECONDS = 10.0
_KILL_WAIT = 2.0
_GRACE = 30.0  # how long GPUs keep their states while a reader is replaced: the lifetime of a snapshot
_REPLACEABLE = ("ok", "hung", "crashed")


@dataclass(slots=True)
class _Reader:
    pid: int
    pipe: Pipe
    events: Pipe


class NvmlClient:
    """`timeout`: seconds that one subject may take. `pause`: first pause after a failure; doubles up to 10 minutes."""

    def __init__(
        self,
        launcher: Launcher,
        clock: Clock,
        arguments: Mapping[str, Any],
        *,
        timeout: float = 10.0,
        pause: float = 60.0,
    ) -> None:
        self._launcher = launcher
        self._clock = clock
        self._arguments = dict(arguments)
        self._timeout = timeout
        self._first_pause = pause
        self._lock = threading.Lock()  # one request at a time: the driver serialises calls anyway
        self._reader: _Reader | None = None
        self._state = "starting"
        self._message = "the NVML reader is starting"
        self._told = "starting"  # the state that the log was told last
        self._gpus_told: dict[str, str] = {}
        self._retry: Pause | None = None
        self._book = Book(pause)
        self._answered_at: float | None = None
        self._driver: Driver | None = None
        self.on_open: Callable[[], None] = lambda: None  # called when a reader has opened the driver
        self._restarts: Counter[str] = Counter()
        self._stuck: int | None = None
        self._in_flight: float | None = None
        self._released_until: float | None = None

    # What is known, without waiting.

    def state(self) -> str:
        return self._state

    def message(self) -> str:
        """Why the state is not ok, in one line; empty when it is."""
        return self._message

    def driver(self) -> Driver | None:
        return self._driver

    def gpus(self) -> tuple[Gpu, ...]:
        """Every GPU seen since the start, lost ones with their last identity, by index."""
        return self._book.gpus()

    def gpu_states(self) -> dict[str, str]:
        """uuid -> one of GPU_STATES. While the driver cannot be read every GPU is unknown, not lost."""
        states = self._book.states()
        return states if self._evidence() else dict.fromkeys(states, "unknown")

    def unopened(self) -> dict[int, str]:
        """Index -> one of GPU_STATES for GPUs that could not be opened and were never known by UUID."""
        return self._book.unopened() if self._evidence() else {}

    def restarts(self) -> dict[str, int]:
        return {reason: self._restarts[reason] for reason in RESTART_REASONS}

    def stuck(self) -> int:
        """Readers that were killed and have not ended: the kernel cannot interrupt them."""
        return int(self._stuck is not None)

    def in_flight_seconds(self, now: float) -> float:
        started = self._in_flight
        return 0.0 if started is None else max(0.0, now - started)

    def pids(self) -> tuple[int, ...]:
        reader = self._reader
        return (reader.pid,) if reader else ()

    def _evidence(self) -> bool:
        """Whether what is known of the GPUs is fresh, or its reader is just being replaced."""
        at = self._answered_at
        return self._state in _REPLACEABLE and at is not None and self._clock.now() - at <= _GRACE

    # Asking.

    def read(self, subject: str) -> Batch:
        """One subject of every GPU. Raises Unavailable (with the state's reason), Hung or Transient."""
        with self._lock:
            reader = self._ready()
            now = self._clock.now()
            skip = self._book.left_out(now)
            self._in_flight = now
            try:
                send_request(reader.pipe, {"subject": subject, "skip": skip})
                answer = recv_answer(reader.pipe, self._timeout)
            except Hung:
                raise self._hung(subject) from None
            except Gone:
                raise self._ended(subject) from None
            finally:
                self._in_flight = None
            if isinstance(answer, DriverDown):
                raise self._down(answer)
            self._answered_at = self._clock.now()
            self._book.learn(subject, answer, frozenset(skip), self._answered_at)
            self._tell_changes()
            batch: Batch = answer
            return batch

    def take_events(self) -> tuple[Xid, ...]:
        """XID events that NVML delivered since the last call."""
        reader = self._reader
        found: list[Xid] = []
        try:
            while reader and select.select([reader.events], [], [], 0)[0]:
                found.extend(recv_answer(reader.events, 1.0))
        except (SourceError, OSError, ValueError):
            pass  # the reader is ending: read() sees that and says so
        return tuple(found)

    def release(self, seconds: float) -> None:
        """Close the library and every handle until resume() or for this long, so that the driver can be unloaded."""
        self._released_until = self._clock.now() + seconds
        reader = self._reader
        if reader:
            # Not under the lock: a hung call must not delay the release.
            self._launcher.kill(reader.pid)
        with self._lock:
            self._stop("released")
            self._set("released", f"released for {seconds:.0f} s by request")

    def released_until(self) -> float | None:
        """When, in seconds of the clock, a release ends by itself; None where none is under way."""
        return self._released_until if self._state == "released" else None

    def resume(self) -> None:
        self._released_until = None
        self._retry = None

    def recheck(self, arrived: str = "") -> None:
        """Look for the driver and lost GPUs now: hardware came or went. `arrived`: the PCI address of a GPU that came,
        which the library tells only to a process that opens it anew."""
        self._retry = None
        self._book.recheck_now(arrived)

    def forget(self, uuid: str) -> None:
        """Tell nothing more of a GPU that is missing, from the next answer on. Returns at once."""
        self._book.forget(uuid)

    # The reader's life. All below runs under the lock.

    def _ready(self) -> _Reader:
        now = self._clock.now()
        if self._released_until is not None:
            if now < self._released_until:
                raise Unavailable(self._message)
            self.resume()
        if self._reader and self._book.recheck_due(now):
            self._stop("recheck")
        if self._stuck is not None:
            if self._launcher.exit_status(self._stuck) is None:
                self._set("stuck", f"the kernel cannot end NVML reader {self._stuck}: not starting another")
                raise Hung(self._message)
            self._stuck = None
        if self._reader is None:
            if self._retry and now < self._retry.until:
                raise Unavailable(self._message)
            self._start(now)
        if self._reader is None:
            raise Unavailable(self._message)
        return self._reader

    def _start(self, now: float) -> None:
        clear_mark(self._launcher.marks)
        ours, theirs = pair()
        our_events, their_events = pair()
        pipe, events = Pipe(ours), Pipe(our_events)
        try:
            arguments = {**self._arguments, "skip": self._book.left_out(now)}
            pid = self._launcher.spawn("nvml", arguments, [theirs, their_events])
        except Unavailable:
            pipe.close()
            events.close()
            raise
        self._reader = _Reader(pid, pipe, events)
        self._in_flight = now
        try:
            answer = self._await_open(pipe)
        except Hung:
            raise self._hung("open") from None
        except Gone:
            raise self._ended("open") from None
        finally:
            self._in_flight = None
        if isinstance(answer, DriverDown):
            raise self._down(answer)
        self._driver = answer.driver
        self._answered_at = self._clock.now()
        self._book.opened(answer, self._answered_at)
        self._tell_changes()
        if not answer.gpus and not answer.faults and not self._book.left_out(now):
            self._stop(None)
            self._wait()
            self._set("no_gpus", "the driver is loaded and finds no GPU")
            return
        self._retry = None
        self._set("ok", "")
        self.on_open()

    def _await_open(self, pipe: Pipe) -> Any:
        """The inventory. Each GPU may take as long as a subject, so that one which hangs does not cost a minute."""
        mark, since = ("", ""), time.monotonic()
        while True:
            try:
                return recv_answer(pipe, min(1.0, self._timeout))
            except Hung:
                now = time.monotonic()
                latest = read_mark(self._launcher.marks)
                if latest != mark:
                    mark, since = latest, now
                elif now - since > (self._timeout if mark[0] else _INIT_SECONDS):
                    raise

    def _hung(self, subject: str) -> SourceError:
        device, function = read_mark(self._launcher.marks)
        self._stop("hung")
        self._book.hung(device, subject, self._clock.now())
        where = f"{function} on {self._book.name(device)}" if function else "the library"
        if self._stuck is not None:
            self._set("stuck", f"{where} hangs and the kernel cannot end the reader: not starting another")
        else:
            self._set("hung", f"{where} did not return within its deadline; reader killed")
        return Hung(self._message)

    def _ended(self, subject: str) -> SourceError:
        """The reader closed its pipe: crashed, or killed by somebody."""
        reader = self._reader
        device, function = read_mark(self._launcher.marks)
        status = self._launcher.exit_status(reader.pid, _KILL_WAIT) if reader else None
        if self._released_until is not None:
            self._stop("released")
            return Unavailable("released by request")
        self._stop("crashed")
        how = signal.Signals(-status).name if status is not None and status < 0 else f"exit code {status}"
        where = f" in {function} on {self._book.name(device)}" if function else ""
        if self._book.crashed(device, subject, self._clock.now()):
            self._wait(1.0 if device else _RETRY_SECONDS)
        self._set("crashed", f"the NVML reader ended with {how}{where}")
        return Transient(self._message)

    def _down(self, down: DriverDown) -> SourceError:
        self._stop("mismatch" if down.state == "mismatch" and self._state == "ok" else None)
        self._wait()
        self._set(down.state, str(down))
        return Unavailable(self._message)

    def _stop(self, reason: str | None) -> None:
        reader, self._reader = self._reader, None
        if reader is None:
            return
        if reason:
            self._restarts[reason] += 1
        reader.pipe.close()
        reader.events.close()
        self._launcher.kill(reader.pid)
        if self._launcher.exit_status(reader.pid, _KILL_WAIT) is None:
            self._stuck = reader.pid

    def _wait(self, seconds: float | None = None) -> None:
        """Leave the driver alone for a while, each time in a row longer."""
        now = self._clock.now()
        if seconds is not None:
            self._retry = Pause.first(now, seconds)
        elif self._retry:
            self._retry = self._retry.again(now, self._first_pause)
        else:
            self._retry = Pause.first(now, min(_RETRY_SECONDS, self._first_pause))

    def _tell_changes(self) -> None:
        """Log each GPU's state once a change, here and not in every subject that misses the GPU."""
        now = {self._book.name(uuid): state for uuid, state in self._book.states().items()}
        now |= {f"GPU {index}": state for index, state in self._book.unopened().items()}
        for name, state in now.items():
            if self._gpus_told.get(name, "ok") != state:
                (log.info if state == "ok" else log.warning)("%s: %s", name, state)
        self._gpus_told = now

    def _set(self, state: str, message: str) -> None:
        self._state, self._message = state, message
        if state != self._told:
            self._told = state
            (log.info if state in ("ok", "released") else log.warning)("NVML: %s%s", state, message and f": {message}")
