"""One reading of one device: what it tells, what it does not (None), and what went wrong on the way."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from ctypes import byref
from typing import Any

from gpuhost_exporter.errors import Absent, Denied, Gone, Lost, Malformed, NeedsReset, SourceError, Unsupported
from gpuhost_exporter.sources.nvml.calls import Calls, Device, code_of
from gpuhost_exporter.sources.nvml.quantities import ENUM, SWITCH, Quantity
from gpuhost_exporter.sources.nvml.readings import Fault

_BLACKWELL = 10

LOST = (Lost, NeedsReset, Gone)


def fault_of(uuid: str, call: str, error: SourceError) -> Fault:
    return Fault(uuid, call, error.kind, code_of(error), str(error))


class Probe:
    """Asks one device. A failing call costs its own value, except that a lost GPU raises one of LOST."""

    def __init__(self, calls: Calls, device: Device) -> None:
        self.calls = calls
        self.device = device
        self._faults: dict[tuple[str, str, int], Fault] = {}

    @property
    def faults(self) -> tuple[Fault, ...]:
        return tuple(self._faults.values())

    def on(self, device: Device) -> Probe:
        """The same reading, going on with another handle of the same GPU."""
        other = Probe(self.calls, device)
        other._faults = self._faults
        return other

    def value(self, name: str, *numbers: int) -> Any:
        """What the getter returns, None where this device does not tell."""
        try:
            return self.calls.ask(self.device, name, *numbers)
        except SourceError as error:
            self.failed(name, error)
        return None

    def first(self, names: Iterable[str], *numbers: int) -> Any:
        """What the first of these getters returns that the driver has."""
        for name in names:
            told = self.value(name, *numbers)
            if told is not None or not self.refused(name, numbers):
                return told
        return None

    def quantity(self, quantity: Quantity, name: str, *numbers: int) -> float | None:
        return self.checked(quantity, self.value(name, *numbers), name)

    def whole(self, quantity: Quantity, name: str, *numbers: int) -> int | None:
        return self.counted(quantity, self.value(name, *numbers), name)

    def switch(self, name: str) -> bool | None:
        return self.flag(self.value(name), name)

    def flag(self, raw: object, name: str) -> bool | None:
        state = self.counted(SWITCH, raw, name)
        return None if state is None else state == 1

    def modes(self, name: str) -> tuple[bool | None, bool | None]:
        """A mode as it is now, and as it will be after the next reset."""
        told = self.value(name)
        return (None, None) if told is None else (self.flag(told[0], name), self.flag(told[1], name))

    def checked(self, quantity: Quantity, raw: object, name: str) -> float | None:
        """The raw number in SI units; None, with a fault, where it is garbage."""
        if raw is None:
            return None
        try:
            return quantity.of(raw)
        except Malformed as error:
            self.failed(name, Malformed(f"{name}: {error}"))
            return None

    def counted(self, quantity: Quantity, raw: object, name: str) -> int | None:
        if raw is None:
            return None
        try:
            return quantity.whole(raw)
        except Malformed as error:
            self.failed(name, Malformed(f"{name}: {error}"))
            return None

    def text(self, name: str) -> str | None:
        """A short printable string."""
        raw = self.value(name)
        if raw is None:
            return None
        if isinstance(raw, str) and raw.strip() and raw.isprintable():
            return raw.strip()
        self.failed(name, Malformed(f"{name}: expected printable text, got {raw!r:.40}"))
        return None

    def written(self, block: Any, part: str, name: str) -> str | None:
        """Text in a structure, None where it is not told. The binding decodes it only here, when it is looked at."""
        try:
            raw = getattr(block, part, None)
        except ValueError as error:
            self.failed(name, Malformed(f"{name}: {part}: {error}"))
            return None
        return raw if isinstance(raw, str) else None

    def filled(self, name: str, structures: Iterable[str]) -> Any:
        """The first of these structures, newest first, that binding and driver both know, filled by the call."""
        for structure in structures:
            make = getattr(self.calls.nv, structure, None)
            if make is None:
                continue
            block = make()
            try:
                # Without byref the binding passes the structure by value and the answer is lost.
                self.calls.hand(self.device, name, structure, byref(block))
            except Unsupported:
                continue
            except SourceError as error:
                self.failed(name, error)
                return None
            return block
        return None

    def architecture(self) -> int | None:
        """NVML's number: 7 Ampere, 8 Ada, 9 Hopper, 10 Blackwell."""
        if self.device.architecture is None:
            self.device.architecture = self.whole(ENUM, "nvmlDeviceGetArchitecture")
        return self.device.architecture

    def blackwell(self) -> bool:
        """Blackwell or newer: NVLink 5, which counts by other means."""
        return (self.architecture() or 0) >= _BLACKWELL

    def refusal(self, name: str, about: Hashable) -> SourceError | None:
        return self.calls.refusal(self.device, name, about)

    def refused(self, name: str, about: Hashable) -> bool:
        return self.refusal(name, about) is not None

    def failed(self, name: str, error: SourceError) -> None:
        """Note a failure, unless it is only that the device does not have it. Raises what costs the whole GPU."""
        if isinstance(error, LOST):
            raise error
        if isinstance(error, (Unsupported, Absent)):
            return
        self._note(fault_of(self.device.uuid, name, error))

    def denied(self) -> tuple[Fault, ...]:
        """What is missing for want of a privilege: as long as values read now are used, it is."""
        return tuple(fault for fault in self.faults if fault.kind == Denied.kind)

    def still(self, faults: Iterable[Fault]) -> None:
        """Note again what was found when a value was read that is now used once more."""
        for fault in faults:
            self._note(fault)

    def _note(self, fault: Fault) -> None:
        self._faults.setdefault((fault.call, fault.kind, fault.code), fault)
