"""What a collector is: a subject, its interval and specs, and poll(now), which folds readings into samples.

A collector does no input of its own, never sleeps, spawns or times itself; sources read, the runner schedules.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar

from gpuhost_exporter.errors import SourceError, Unsupported
from gpuhost_exporter.host import Host
from gpuhost_exporter.specs import Sample, Spec

log = logging.getLogger(__name__)

# A counter that begins at 1 has an increase of 0: one that begins late stands at 0 for so many seconds before it rises.
# That is scraped also by who scrapes once a minute.
AT_ZERO = 75.0


def lifetime(interval: float) -> float:
    """Seconds after which what was read at this interval is withdrawn."""
    return max(3 * interval, 30.0)


class Collector:
    """One subject.

    `source` and `privilege` are for people (README, doctor): what it reads, and the capability or setting that
    it needs beyond an ordinary user ("" for none). `subsystems`: those of udev whose events make it poll at once.
    `switch`: what switches it on where it is off by default, when that is more than its flag.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    source: ClassVar[str]
    privilege: ClassVar[str] = ""
    interval: ClassVar[float]
    on_by_default: ClassVar[bool] = True
    specs: ClassVar[tuple[Spec, ...]]
    subsystems: ClassVar[frozenset[str]] = frozenset()
    switch: ClassVar[str] = ""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.errors: Counter[str] = Counter()
        self._faults: dict[str, str] = {}

    def poll(self, now: float) -> Iterable[Sample]:
        """Read, fold, yield. Raises SourceError when the subject as a whole cannot be read."""
        raise NotImplementedError

    def remarks(self) -> tuple[str, ...]:
        """What is missing or failing within the subject, a line each, for doctor and the status page."""
        return tuple(f"{device}: {kind}" for device, kind in sorted(dict(self._faults).items()))

    def post(self, subject: str, reading: object) -> None:
        """Put a reading on the board, to last as long as a snapshot of this collector does."""
        self.host.board.post(subject, reading, self.host.clock.now() + lifetime(self.seconds_between_polls()))

    def seconds_between_polls(self) -> float:
        """The configured interval, else the collector's own."""
        chosen = self.host.settings.collectors.get(self.name)
        return (chosen.interval if chosen else None) or self.interval

    @contextmanager
    def guard(self, device: str) -> Iterator[None]:
        """Keep one device's failure from its siblings: what it yielded before failing stays."""
        try:
            yield
        except SourceError as error:
            self.fault(device, error)
        else:
            self.recovered(device)

    def fault(self, device: str, error: SourceError) -> None:
        """Count a device's failure and log it once per change. What a device does not have is no failure."""
        if isinstance(error, Unsupported):
            return
        self.errors[error.kind] += 1
        if self._faults.get(device) != error.kind:
            self._faults[device] = error.kind
            log.warning("%s: %s: %s (%s)", self.name, device, error, error.kind)

    def recovered(self, device: str) -> None:
        if self._faults.pop(device, None):
            log.info("%s: %s: reads again", self.name, device)
