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
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gpuhost_exporter.clock import Clock
from gpuhost_exporter.errors import Gone, Hung, SourceError, Transient, Unavailable
from gpuhost_exporter.sources.launcher import Launcher
from gpuhost_exporter.sources.nvml.calls import DriverDown
from gpuhost_exporter.sources.nvml.marks import clear_mark, read_mark
from gpuhost_exporter.sources.nvml.readings import Batch, Driver, Gpu, Inventory, Xid
from gpuhost_exporter.sources.pipe import Pipe, pair, recv_answer, send_request

log = logging.getLogger(__name__)

STATES = (
    "ok", "starting", "no_library", "no_driver", "mismatch", "no_gpus", "permission", "released",
    "hung", "stuck", "crashed", "error",
)  # fmt: skip
GPU_STATES = ("ok", "lost", "needs_reset", "hung", "missing", "unreadable", "unknown")
RESTART_REASONS = ("crashed", "hung", "mismatch", "recheck", "released")

_OPEN_TIMEOUT = 60.0  # without persistence mode a driver takes 1-3 s a GPU to come up
_KILL_WAIT = 2.0
_CRASH_MEMORY = 600.0  # a second crash on the same GPU within this time leaves it out
_FAULT_STATES = {"lost": "lost", "needs_reset": "needs_reset", "gone": "lost"}


@dataclass(slots=True)
class _Reader:
    pid: int
    pipe: Pipe
    events: Pipe


@dataclass(frozen=True, slots=True)
class _Pause:
    """Until when something is left alone, and for how long it was: each failure doubles it."""

    until: float
    seconds: float

    def again(self, now: float, longest: float) -> _Pause:
        seconds = min(self.seconds * 2, longest)
        return _Pause(now + seconds, seconds)


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
        self._longest_pause = 600.0
        self._lock = threading.Lock()  # one request at a time: the driver serialises calls anyway
        self._reader: _Reader | None = None
        self._state = "starting"
        self._message = ""
        self._told = ""  # the state that the log was told last
        self._retry: _Pause | None = None
        self._quarantine: dict[str, _Pause] = {}
        self._recheck: _Pause | None = None
        self._crashed: dict[str, float] = {}
        self._known: dict[str, Gpu] = {}
        self._gpu_states: dict[str, str] = {}
        self._unopened: dict[int, str] = {}
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
        return tuple(sorted(self._known.values(), key=lambda gpu: (gpu.index, gpu.uuid)))

    def gpu_states(self) -> dict[str, str]:
        """uuid -> one of GPU_STATES. While the driver cannot be read every GPU is unknown, not lost."""
        readable = self._state == "ok"
        states = {}
        for uuid in self._known:
            state = self._gpu_states.get(uuid, "missing")
            states[uuid] = state if readable or state == "hung" else "unknown"
        return states

    def unopened(self) -> dict[int, str]:
        """Index -> one of GPU_STATES for GPUs that could not be opened and were never known by UUID."""
        return dict(self._unopened) if self._state == "ok" else {}

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

    # Asking.

    def read(self, subject: str) -> Batch:
        """One subject of every GPU. Raises Unavailable (with the state's reason), Hung or Transient."""
        with self._lock:
            reader = self._ready()
            now = self._clock.now()
            skip = sorted(name for name, pause in self._quarantine.items() if now < pause.until)
            self._in_flight = now
            try:
                send_request(reader.pipe, {"subject": subject, "skip": skip})
                answer = recv_answer(reader.pipe, self._timeout)
            except Hung:
                raise self._hung() from None
            except Gone:
                raise self._ended() from None
            finally:
                self._in_flight = None
            if isinstance(answer, DriverDown):
                raise self._down(answer)
            return self._learn(answer, frozenset(skip))

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
            if self._reader:
                self._stop("released")
            self._set("released", f"released for {seconds:.0f} s by request")

    def resume(self) -> None:
        self._released_until = None
        self._retry = None

    def recheck(self) -> None:
        """Look for the driver and lost GPUs now: hardware came or went."""
        self._retry = None
        self._recheck = None if self._recheck is None else _Pause(0.0, self._first_pause)

    def close(self) -> None:
        reader = self._reader
        if reader:
            self._launcher.kill(reader.pid)

    # The reader's life. All below runs under the lock.

    def _ready(self) -> _Reader:
        now = self._clock.now()
        if self._released_until is not None:
            if now < self._released_until:
                raise Unavailable(self._message)
            self.resume()
        if self._stuck is not None:
            if self._launcher.exit_status(self._stuck) is None:
                raise Hung(self._message)
            self._stuck = None
        if self._reader and self._recheck and now >= self._recheck.until:
            self._recheck = self._recheck.again(now, self._longest_pause)
            self._stop("recheck")
        if self._reader is None:
            if self._retry and now < self._retry.until:
                raise Unavailable(self._message)
            self._start(now)
        if self._reader is None:
            raise Unavailable(self._message)
        return self._reader

    def _start(self, now: float) -> None:
        if self._state not in ("hung", "crashed"):
            self._set("starting", "the NVML reader is starting")
        clear_mark(self._launcher.marks)
        ours, theirs = pair()
        our_events, their_events = pair()
        skip = sorted(name for name, pause in self._quarantine.items() if now < pause.until)
        pid = self._launcher.spawn("nvml", {**self._arguments, "skip": skip}, [theirs, their_events])
        self._reader = _Reader(pid, Pipe(ours), Pipe(our_events))
        self._in_flight = now
        try:
            answer = recv_answer(self._reader.pipe, _OPEN_TIMEOUT)
        except Hung:
            raise self._hung() from None
        except Gone:
            raise self._ended() from None
        finally:
            self._in_flight = None
        if isinstance(answer, DriverDown):
            raise self._down(answer)
        self._opened(answer)

    def _opened(self, inventory: Inventory) -> None:
        self._driver = inventory.driver
        self._known |= {gpu.uuid: gpu for gpu in inventory.gpus}
        here = {gpu.uuid for gpu in inventory.gpus}
        broken = {
            int(fault.uuid.removeprefix("index:")): _FAULT_STATES.get(fault.kind, "unreadable")
            for fault in inventory.faults
            if fault.uuid.startswith("index:")
        }
        for uuid, gpu in self._known.items():
            if uuid in here:
                self._gpu_states[uuid] = "ok"
            elif uuid in self._quarantine:
                self._gpu_states[uuid] = "hung"
            else:
                self._gpu_states[uuid] = broken.pop(gpu.index, "missing")
        self._unopened = broken
        if not self._known and not inventory.faults:
            self._stop(None)
            self._wait(self._first_pause)
            self._set("no_gpus", "the driver is loaded and finds no GPU")
            return
        self._retry = None
        self._set("ok", "")
        self._judge_recheck()
        self.on_open()

    def _learn(self, batch: Batch, skipped: frozenset[str]) -> Batch:
        broken = {fault.uuid: fault for fault in batch.faults if fault.kind in _FAULT_STATES}
        answered = {uuid for reading in batch.readings if (uuid := getattr(reading, "uuid", None))}
        for uuid, state in list(self._gpu_states.items()):
            if uuid in skipped:
                self._gpu_states[uuid] = "hung"
            elif uuid in broken:
                self._gpu_states[uuid] = _FAULT_STATES[broken[uuid].kind]
            elif uuid in answered and state != "ok":
                self._gpu_states[uuid] = "ok"
                self._quarantine.pop(uuid, None)
        self._judge_recheck()
        return batch

    def _judge_recheck(self) -> None:
        """A lost GPU comes back only to a process that opens it anew."""
        states = (*self._gpu_states.values(), *self._unopened.values())
        away = any(state in ("lost", "missing", "needs_reset", "unreadable") for state in states)
        if not away:
            self._recheck = None
        elif self._recheck is None:
            self._recheck = _Pause(self._clock.now() + self._first_pause, self._first_pause)

    def _hung(self) -> SourceError:
        device, function = read_mark(self._launcher.marks)
        self._stop("hung", kill=True)
        where = f"{function} on {self._name(device)}" if function else "the library"
        self._leave_out(device)
        if self._stuck is not None:
            self._set("stuck", f"{where} hangs and the kernel cannot end the reader: not starting another")
        else:
            self._set("hung", f"{where} did not return within its deadline; reader killed")
        return Hung(self._message)

    def _ended(self) -> SourceError:
        """The reader closed its pipe: crashed, or killed by somebody."""
        reader = self._reader
        device, function = read_mark(self._launcher.marks)
        status = self._launcher.exit_status(reader.pid, _KILL_WAIT) if reader else None
        if self._released_until is not None:
            self._stop("released")
            return Unavailable("released by request")
        now = self._clock.now()
        repeated = now - self._crashed.get(device, -_CRASH_MEMORY) < _CRASH_MEMORY
        self._crashed[device] = now
        self._stop("crashed")
        how = signal.Signals(-status).name if status is not None and status < 0 else f"exit code {status}"
        where = f" in {function} on {self._name(device)}" if function else ""
        if repeated:
            self._leave_out(device)
            self._wait(1.0 if device else 10.0)
        self._set("crashed", f"the NVML reader ended with {how}{where}")
        return Transient(self._message)

    def _down(self, down: DriverDown) -> SourceError:
        before = self._state
        self._stop("mismatch" if down.state == "mismatch" and before == "ok" else None)
        self._wait(min(self._first_pause, 10.0) if before in ("ok", "starting") else self._first_pause)
        self._set(down.state, str(down))
        return Unavailable(self._message)

    def _stop(self, reason: str | None, *, kill: bool = False) -> None:
        reader, self._reader = self._reader, None
        if reader is None:
            return
        if reason:
            self._restarts[reason] += 1
        reader.pipe.close()
        reader.events.close()
        self._launcher.kill(reader.pid)
        if self._launcher.exit_status(reader.pid, _KILL_WAIT) is None and kill:
            self._stuck = reader.pid

    def _leave_out(self, device: str) -> None:
        if device:
            now = self._clock.now()
            before = self._quarantine.get(device)
            self._quarantine[device] = (
                before.again(now, self._longest_pause) if before else _Pause(now + self._first_pause, self._first_pause)
            )
            if device in self._gpu_states:
                self._gpu_states[device] = "hung"

    def _wait(self, seconds: float) -> None:
        self._retry = _Pause(self._clock.now() + seconds, seconds)

    def _set(self, state: str, message: str) -> None:
        self._state, self._message = state, message
        if state not in ("starting", self._told):
            self._told = state
            (log.info if state in ("ok", "released") else log.warning)("NVML: %s%s", state, message and f": {message}")

    def _name(self, device: str) -> str:
        gpu = self._known.get(device)
        return f"GPU {gpu.index} ({device})" if gpu else device or "no GPU"
