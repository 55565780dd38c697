"""What the exporter knows of its GPUs while readers come and go: identity, state, and which to leave alone.

Plain bookkeeping: the time is given, nothing waits. A GPU is named by its uuid, or "index:N" while it never told one.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpuhost_exporter.sources.nvml.readings import Batch, Gpu, Inventory

GPU_STATES = ("ok", "lost", "needs_reset", "hung", "missing", "unreadable", "unknown")

_FAULT_STATES = {"lost": "lost", "needs_reset": "needs_reset", "gone": "lost", "hung": "hung"}
_CRASH_MEMORY = 600.0  # a second crash on the same GPU within this time leaves it out
LONGEST_PAUSE = 600.0


@dataclass(frozen=True, slots=True)
class Pause:
    """Until when something is left alone, and for how long it was: each failure doubles it."""

    until: float
    seconds: float

    @classmethod
    def first(cls, now: float, seconds: float) -> Pause:
        return cls(now + seconds, seconds)

    def again(self, now: float, longest: float = LONGEST_PAUSE) -> Pause:
        seconds = min(self.seconds * 2, longest)
        return Pause(now + seconds, seconds)


@dataclass(frozen=True, slots=True)
class _Quarantine:
    pause: Pause
    subject: str  # that hung; only its answer proves the GPU well again


class Book:
    def __init__(self, first_pause: float) -> None:
        self._first_pause = first_pause
        self._known: dict[str, Gpu] = {}
        self._states: dict[str, str] = {}
        self._unopened: dict[int, str] = {}
        self._quarantine: dict[str, _Quarantine] = {}
        self._crashes: dict[str, float] = {}
        self._recheck: Pause | None = None
        self._forgotten: set[str] = set()  # by request, as soon as a reader answers
        self._arrived: set[str] = set()  # PCI addresses that came to the bus, and that no reader has told of yet

    def gpus(self) -> tuple[Gpu, ...]:
        return tuple(sorted(self._known.values(), key=lambda gpu: (gpu.index, gpu.uuid)))

    def states(self) -> dict[str, str]:
        return dict(self._states)

    def unopened(self) -> dict[int, str]:
        return dict(self._unopened)

    def name(self, device: str) -> str:
        gpu = self._known.get(device)
        return f"GPU {gpu.index} ({device})" if gpu else device or "no GPU"

    def left_out(self, now: float) -> list[str]:
        return sorted(name for name, entry in self._quarantine.items() if now < entry.pause.until)

    def forget(self, uuid: str) -> None:
        """Know nothing more of a GPU that is missing; one that is there in any state stays."""
        if self._states.get(uuid) == "missing":
            self._forgotten.add(uuid)

    def opened(self, inventory: Inventory, now: float) -> None:
        """A new reader told what is there."""
        self._known |= {gpu.uuid: gpu for gpu in inventory.gpus}
        self._arrived -= {gpu.bdf for gpu in inventory.gpus}
        here = {gpu.uuid for gpu in inventory.gpus}
        broken = {
            int(fault.uuid.removeprefix("index:")): _FAULT_STATES.get(fault.kind, "unreadable")
            for fault in inventory.faults
            if fault.uuid.startswith("index:")
        }
        out = self.left_out(now)
        broken |= {int(name.removeprefix("index:")): "hung" for name in out if name.startswith("index:")}
        for uuid, gpu in self._known.items():
            if uuid in here:
                self._states[uuid] = "ok"
            elif uuid in out:
                self._states[uuid] = "hung"
                broken.pop(gpu.index, None)
            else:
                self._states[uuid] = broken.pop(gpu.index, "missing")
        taken = {gpu.index for gpu in inventory.gpus}
        self._unopened = {index: state for index, state in broken.items() if index not in taken}
        self._drop_forgotten()
        self._judge_recheck(now)

    def learn(self, subject: str, batch: Batch, skipped: frozenset[str], now: float) -> None:
        """A subject's answer: who answered, who is lost, who was left out."""
        broken = {fault.uuid: fault for fault in batch.faults if fault.kind in _FAULT_STATES}
        answered = {uuid for reading in batch.readings if (uuid := getattr(reading, "uuid", None))}
        for uuid in self._states:
            if uuid in skipped:
                self._states[uuid] = "hung"
            elif uuid in broken:
                self._states[uuid] = _FAULT_STATES[broken[uuid].kind]
            elif uuid in answered:
                self._states[uuid] = "ok"
                entry = self._quarantine.get(uuid)
                if entry and entry.subject == subject:
                    del self._quarantine[uuid]
        self._drop_forgotten()
        self._judge_recheck(now)

    def hung(self, device: str, subject: str, now: float) -> None:
        """Leave a GPU out for a while, each time longer."""
        if not device:
            return
        before = self._quarantine.get(device)
        pause = before.pause.again(now) if before else Pause.first(now, self._first_pause)
        self._quarantine[device] = _Quarantine(pause, subject)
        if device in self._states:
            self._states[device] = "hung"

    def crashed(self, device: str, subject: str, now: float) -> bool:
        """Note a crash; whether it was not the first on this GPU, which is then left out."""
        repeated = now - self._crashes.get(device, -_CRASH_MEMORY) < _CRASH_MEMORY
        self._crashes[device] = now
        if repeated:
            self.hung(device, subject, now)
        return repeated

    def recheck_due(self, now: float) -> bool:
        """Whether it is time that a new reader looks for the GPUs that are away; the next time is later."""
        if self._recheck is None or now < self._recheck.until:
            return False
        self._recheck = self._recheck.again(now)
        if self._recheck.seconds >= LONGEST_PAUSE:
            self._arrived.clear()  # the driver does not want it, whatever it is
        return True

    def recheck_now(self, arrived: str) -> None:
        """Look now for what is away, and for a GPU at this PCI address unless it is known."""
        if arrived and arrived not in {gpu.bdf for gpu in self._known.values()}:
            self._arrived.add(arrived)
        if self._recheck or self._arrived:
            self._recheck = Pause(0.0, self._first_pause)

    def _drop_forgotten(self) -> None:
        while self._forgotten:
            uuid = self._forgotten.pop()
            if self._states.get(uuid) == "missing":  # and has not come back meanwhile
                self._states = {name: state for name, state in self._states.items() if name != uuid}
                self._known = {name: gpu for name, gpu in self._known.items() if name != uuid}
                self._quarantine.pop(uuid, None)

    def _judge_recheck(self, now: float) -> None:
        """A GPU that is away, or new, comes only to a process that opens the library anew."""
        states = [state for uuid, state in self._states.items() if uuid not in self._quarantine]
        if not self._unopened and not self._arrived and all(state == "ok" for state in states):
            self._recheck = None
        elif self._recheck is None:
            self._recheck = Pause.first(now, self._first_pause)
