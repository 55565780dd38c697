"""What the collectors of NVML's subjects share: asking for one, and turning its fields and states into samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar, Protocol, TypeVar

from gpuhost_exporter.collector import Collector
from gpuhost_exporter.errors import Denied, Gone, Lost, NeedsReset, SourceError
from gpuhost_exporter.host import Host
from gpuhost_exporter.sources.nvml.readings import NAMELESS, Gpu
from gpuhost_exporter.specs import Sample, Spec, counter, gauge, info

_ERRORS = {error.kind: error for error in SourceError.__subclasses__()}


def gpu_gauge(name: str, text: str, *labels: str) -> Spec:
    return gauge(name, text, "gpu", "uuid", *labels)


def gpu_counter(name: str, text: str, *labels: str) -> Spec:
    return counter(name, text, "gpu", "uuid", *labels)


def gpu_info(name: str, text: str, *labels: str) -> Spec:
    return info(name, text, "gpu", "uuid", *labels)


def gpu_labels(gpu: Gpu) -> tuple[str, str]:
    return str(gpu.index), "" if gpu.uuid.startswith(NAMELESS) else gpu.uuid


class Reading(Protocol):
    @property
    def uuid(self) -> str: ...
    @property
    def at(self) -> float: ...


R = TypeVar("R", bound=Reading)

_AWAY = (Lost.kind, NeedsReset.kind, Gone.kind)


class NvmlCollector(Collector):
    """Asks for `subject`, and posts its readings on the board under that name."""

    subject: ClassVar[str]

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._failing: frozenset[tuple[str, str]] = frozenset()  # call and kind
        self._away: dict[str, str] = {}

    def ask(self) -> tuple[object, ...]:
        """The readings of every GPU that answers. Raises SourceError when the driver cannot be read."""
        batch = self.host.nvml.read(self.subject)
        self.post(self.subject, batch.readings)
        gpus = self.gpus()
        failing = set()
        away = {}
        for fault in batch.faults:
            gpu = gpus.get(fault.uuid)
            name = f"GPU {gpu.index} ({gpu.uuid})" if gpu else fault.uuid
            if fault.kind in _AWAY:
                # The driver's client logs it, once for all subjects.
                self.errors[fault.kind] += 1
                away[name] = fault.kind
                continue
            call = f"{name} {fault.call}"
            failing.add((call, fault.kind))
            if fault.kind == Denied.kind and (call, fault.kind) in self._failing:
                continue  # told at each poll, asked for now and then
            self.fault(call, _ERRORS.get(fault.kind, SourceError)(f"{fault.message} ({fault.code})"))
        for call in {call for call, _ in self._failing} - {call for call, _ in failing}:
            self.recovered(call)
        self._failing = frozenset(failing)
        self._away = away
        return batch.readings

    def remarks(self) -> tuple[str, ...]:
        return (*super().remarks(), *(f"{name}: {kind}" for name, kind in self._away.items()))

    def gpus(self) -> dict[str, Gpu]:
        return {gpu.uuid: gpu for gpu in self.host.nvml.gpus()}

    def of_gpus(self, readings: Iterable[object], kind: type[R]) -> Iterator[tuple[Gpu, R]]:
        """Each reading of this kind with the GPU that it is about."""
        gpus = self.gpus()
        for reading in readings:
            if isinstance(reading, kind) and reading.uuid in gpus:
                yield gpus[reading.uuid], reading


def told(fields: Iterable[tuple[Spec, str]], labels: tuple[str, ...], reading: object) -> Iterator[Sample]:
    """A sample for each of the reading's fields that is told; booleans as 0 and 1."""
    for spec, field in fields:
        value = getattr(reading, field)
        if value is not None:
            yield spec(*labels, value=value)


def one_of(spec: Spec, labels: tuple[str, ...], states: Iterable[str], current: str) -> Iterator[Sample]:
    """One sample a state, 1 for the current one. A state that the list lacks is shown too: new drivers have some."""
    for state in dict.fromkeys((*states, current)):
        yield spec(*labels, state, value=float(state == current))
