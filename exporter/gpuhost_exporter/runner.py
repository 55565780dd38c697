"""All scheduling: one daemon thread a collector, ticks by the wall clock, in-flight age, staleness, self-metrics.

A collector ticks at the same time on every host. A few tick together, while the processor is awake and its caches hold
the interpreter, and then the next few: a scrape that falls on all of them at once would wait for all.

A poll that does not return is waited for by nobody: its snapshot expires, its in-flight age grows, no second
thread is started for it.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

from gpuhost_exporter.clock import Clock
from gpuhost_exporter.collector import Collector, lifetime
from gpuhost_exporter.errors import Hung, SourceError, Transient
from gpuhost_exporter.specs import Sample, counter, gauge

log = logging.getLogger(__name__)

_TOGETHER = 8
_APART_SECONDS = 0.1

UP = gauge(
    "gpuhost_collector_up",
    "Whether the collector's last poll succeeded and is still fresh. 1 is good.",
    "collector",
)
AGE = gauge(
    "gpuhost_collector_age_seconds",
    "Seconds since the collector last read its subject, absent while it never has. The exporter reads in the"
    " background, so a scrape is this old.",
    "collector",
)
IN_FLIGHT = gauge(
    "gpuhost_collector_in_flight_seconds",
    "Seconds that the poll in progress has taken so far, 0 when none is. It grows while hardware does not answer.",
    "collector",
)
DURATION = gauge("gpuhost_collector_duration_seconds", "Seconds that the last finished poll took.", "collector")
POLLS = counter("gpuhost_collector_polls_total", "Polls finished, successful or not.", "collector")
MISSED = counter(
    "gpuhost_collector_missed_ticks_total", "Ticks that passed while a poll was still running.", "collector"
)
ERRORS = counter(
    "gpuhost_collector_errors_total",
    "Failures by kind, of the whole subject or of one device. A device that does not have a value is no failure.",
    "collector",
    "kind",
)
SPECS = (UP, AGE, IN_FLIGHT, DURATION, POLLS, MISSED, ERRORS)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one successful poll told, published whole."""

    at: float
    samples: tuple[Sample, ...]


class Task:
    """One collector's thread and its state. Single attributes are replaced whole; readers take no lock."""

    def __init__(self, collector: Collector, interval: float, clock: Clock, after: float = 0.0) -> None:
        """`after`: seconds from a multiple of the interval to its tick."""
        self.collector = collector
        self.interval = interval
        self._after = after
        self.snapshot: Snapshot | None = None
        self.in_flight: float | None = None
        self.read_at = clock.now()  # of the last success, else of the start
        self.has_read = False
        self.duration: float | None = None
        self.succeeded = False
        self.polls = 0
        self.missed = 0
        self.failure = ""
        self.failure_kind = ""
        self._clock = clock
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=collector.name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()

    def hurry(self) -> None:
        """Poll now rather than at the next tick."""
        self._wake.set()

    def fresh(self, now: float) -> Snapshot | None:
        snapshot = self.snapshot
        return snapshot if snapshot and now - snapshot.at <= lifetime(self.interval) else None

    def poll(self) -> None:
        """One poll; nothing it raises leaves here."""
        started = self._clock.now()
        self.in_flight = started
        failure, kind, keep = "", "", False
        try:
            samples = tuple(self.collector.poll(started))
        except SourceError as error:
            failure, kind = str(error), error.kind
            keep = isinstance(error, (Transient, Hung))
        except Exception as error:
            failure, kind = f"{type(error).__name__}: {error}", "internal"
            if failure != self.failure and not self._stopping:
                log.exception("%s: a defect in the exporter", self.collector.name)
        finished = self._clock.now()
        if self._stopping:
            return  # the readers are being ended below it: what it found says nothing
        if failure:
            if kind != "unavailable":  # a state, told as such, and no failure to count
                self.collector.errors[kind] += 1
            if not keep:
                self.snapshot = None
            if failure != self.failure and kind != "internal":
                # A reader that is not there has been told of once, by the client; each of its subjects adds nothing.
                level = logging.DEBUG if kind == "unavailable" else logging.WARNING
                log.log(level, "%s: %s (%s)", self.collector.name, failure, kind)
        else:
            self.snapshot = Snapshot(finished, samples)
            self.read_at = finished
            self.has_read = True
            if self.failure:
                log.info("%s: reads again", self.collector.name)
        self.failure, self.failure_kind = failure, kind
        self.succeeded = not failure
        self.duration = finished - started
        self.polls += 1
        self.in_flight = None

    def _run(self) -> None:
        while not self._stopping:
            started = self._clock.now()
            self.poll()
            self.missed += int((self._clock.now() - started) / self.interval)
            self._wake.wait(self._pause())
            self._wake.clear()

    def _pause(self) -> float:
        """Seconds to the next tick on the wall clock, so that all hosts read at the same time."""
        wall = self._clock.wall() - self._after
        return max(0.001, (math.floor(wall / self.interval) + 1) * self.interval - wall)


class Runner:
    def __init__(self, collectors: Sequence[tuple[Collector, float]], clock: Clock) -> None:
        self._clock = clock
        self.tasks = tuple(
            Task(collector, interval, clock, after=place // _TOGETHER * _APART_SECONDS)
            for place, (collector, interval) in enumerate(collectors)
        )

    def start(self) -> None:
        for task in self.tasks:
            task.start()

    def stop(self) -> None:
        for task in self.tasks:
            task.stop()

    def hurry(self, collectors: Container[str] | None = None) -> None:
        """Have these collectors, or all, poll now rather than at their next tick."""
        for task in self.tasks:
            if collectors is None or task.collector.name in collectors:
                task.hurry()

    def snapshots(self) -> list[tuple[float, tuple[Sample, ...]]]:
        """When each subject was read and what it told, of what is fresh now."""
        now = self._clock.now()
        return [(snapshot.at, snapshot.samples) for task in self.tasks if (snapshot := task.fresh(now))]

    def samples(self) -> Iterator[Sample]:
        """Everything that is published and fresh now, self-metrics last."""
        now = self._clock.now()
        for task in self.tasks:
            snapshot = task.fresh(now)
            if snapshot:
                yield from snapshot.samples
        yield from self.self_samples()

    def self_samples(self) -> Iterator[Sample]:
        """Ages as of now: a page rendered from a stopped world must not look young."""
        now = self._clock.now()
        for task in self.tasks:
            name = task.collector.name
            started = task.in_flight
            yield UP(name, value=task.succeeded and task.fresh(now) is not None)
            if task.has_read:
                yield AGE(name, value=max(0.0, now - task.read_at))
            yield IN_FLIGHT(name, value=0.0 if started is None else max(0.0, now - started))
            if task.duration is not None:
                yield DURATION(name, value=task.duration)
            yield POLLS(name, value=task.polls)
            yield MISSED(name, value=task.missed)
            for kind, count in sorted(dict(task.collector.errors).items()):
                yield ERRORS(name, kind, value=count)

    def waiting(self) -> tuple[str, ...]:
        """Collectors that have not finished a first poll and are not hung in it."""
        now = self._clock.now()
        return tuple(
            task.collector.name
            for task in self.tasks
            if not task.polls and now - (task.in_flight or now) <= lifetime(task.interval)
        )

    def progressing(self) -> bool:
        """Whether any collector finished a poll within its lifetime: the sampler is alive, hung hardware or not."""
        now = self._clock.now()
        return any(now - task.read_at <= lifetime(task.interval) for task in self.tasks)
