"""Published samples, looked up by Spec; and rates between two looks at the counters."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping

from gpuhost_exporter.specs import Sample, Spec

Series = tuple[Spec, tuple[str, ...]]


_READINGS = 4  # of a page that refreshes every 5 s: a mean over 15 s, longer where the collector reads less often


class Latest:
    """The samples of one moment."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._families: dict[Spec, dict[tuple[str, ...], float]] = {}
        for spec, labels, value in samples:
            self._families.setdefault(spec, {})[labels] = value

    def rows(self, spec: Spec) -> Mapping[tuple[str, ...], float]:
        """Values by labels, in the order in which they came; empty where nothing is told."""
        return self._families.get(spec, {})

    def value(self, spec: Spec, *labels: str) -> float | None:
        return self.rows(spec).get(labels)

    def below(self, spec: Spec, *labels: str) -> Iterator[tuple[str, float]]:
        """The last label and the value of the series whose labels begin with these."""
        for found, value in self.rows(spec).items():
            if found[:-1] == labels:
                yield found[-1], value

    def state(self, spec: Spec, *labels: str) -> str | None:
        """The last label of the one series among these that is 1."""
        return next((label for label, value in self.below(spec, *labels) if value == 1), None)

    def facts(self, spec: Spec, *labels: str) -> Mapping[str, str]:
        """The labels of an info series by name, empty where there is none."""
        for found in self.rows(spec):
            if found[: len(labels)] == labels:
                return dict(zip(spec.labels, found, strict=True))
        return {}


class Rates:
    """Keeps the last readings of some counters, so that a page can show what they do a second."""

    def __init__(self, specs: Iterable[Spec], window: float = 60.0) -> None:
        self._specs = frozenset(specs)
        self._window = window
        self._lock = threading.Lock()
        self._readings: dict[Series, deque[tuple[float, float]]] = {}

    def look(self, snapshots: Iterable[tuple[float, Iterable[Sample]]]) -> Mapping[Series, float]:
        """Increase a second between the oldest reading within the window and the newest, once there are two.

        Each snapshot comes with the time it was read at: reading the same one twice tells nothing. A counter that
        has gone back started anew.
        """
        with self._lock:
            known, self._readings = self._readings, {}
            for at, samples in snapshots:
                for spec, labels, value in samples:
                    if spec in self._specs:
                        readings = self._readings[spec, labels] = known.get((spec, labels), deque(maxlen=_READINGS))
                        self._add(readings, at, value)
            return {
                series: (readings[-1][1] - readings[0][1]) / (readings[-1][0] - readings[0][0])
                for series, readings in self._readings.items()
                if len(readings) > 1
            }

    def _add(self, readings: deque[tuple[float, float]], at: float, value: float) -> None:
        if readings and value < readings[-1][1]:
            readings.clear()
        if not readings or at > readings[-1][0]:
            readings.append((at, value))
        while len(readings) > 1 and at - readings[0][0] > self._window:
            readings.popleft()
