"""Checkpoints that a job's processes mark themselves: start and end are exact, and other evidence is not asked.

Ranks that mark the same one overlap, as do parts that a process marks within: they are one checkpoint of the job.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from gpuhost_exporter.ledger.checkpoint import UNKNOWN_MOUNT, Checkpoint, Mode, copied, last_mount, stands
from gpuhost_exporter.ledger.piece import Piece, Work
from gpuhost_exporter.ledger.thresholds import Thresholds
from gpuhost_exporter.sources.marker import Mark

_LONGEST_SECONDS = 3600.0  # of one whose end is not heard
_MOST_SPANS = 512  # of one job at a time


@dataclass(slots=True)
class _Span:
    """One process' own; `until` is infinite while it lasts."""

    since: float
    until: float
    pid: int
    serial: int
    name: str


@dataclass(slots=True)
class _Sums:
    """What the job did in the checkpoint that is settled next."""

    stalled: float = 0.0
    made: float = 0.0
    copied: float = 0.0
    gpu_seconds: float = 0.0
    told: bool = False  # the bytes that its processes wrote are known
    mounts: dict[str, float] = field(default_factory=dict)


class Marks:
    """Of one job. Led along the time that is being settled, as checkpoint.Watch is."""

    def __init__(self, job: str, limits: Thresholds, since: float) -> None:
        """`since`: when the job was first seen."""
        self._job = job
        self._limits = limits
        self._since = since
        self._spans: list[_Span] = []
        self._sums = _Sums()
        self._works_until = -math.inf
        self._settled = -math.inf

    def __bool__(self) -> bool:
        """Whether marks tell what there is to know of the time that is settled now."""
        return bool(self._spans)

    @property
    def running_since(self) -> float | None:
        return min((span.since for span in self._spans if span.until > self._settled), default=None)

    @property
    def running(self) -> tuple[str, Mode]:
        """Mount and mode of the checkpoint in progress, as far as it has come."""
        sums = self._sums
        if sums.told and sums.made < self._limits.checkpoint_bytes <= sums.copied:
            return UNKNOWN_MOUNT, "remote"
        begin = self.running_since
        passed = 0.0 if begin is None else self._settled - begin
        return last_mount(sums.mounts, sums.made), "async" if 2 * sums.stalled < passed else "sync"

    def take(self, mark: Mark) -> None:
        if mark.alone:
            # Those that its process had open have ended, and that was not heard: how long they took nobody knows.
            self._spans = [span for span in self._spans if span.pid != mark.pid or span.until < math.inf]
        since, until = (mark.at, math.inf) if mark.seconds is None else (mark.at - mark.seconds, mark.at)
        for span in self._spans:
            if (span.pid, span.serial) == (mark.pid, mark.serial):
                span.until = max(span.since, until)
                return
        if len(self._spans) < _MOST_SPANS:
            self._spans.append(_Span(since, until, mark.pid, mark.serial, mark.name))

    def forget(self, now: float, alive: Container[int]) -> None:
        """Drop what lasts too long, and what was begun by a process that has ended."""
        self._spans = [
            span
            for span in self._spans
            if span.until < math.inf or (now - span.since < _LONGEST_SECONDS and span.pid in alive)
        ]

    def share(self, since: float, at: float) -> float:
        """How much of that stretch lies in checkpoints, 0 to 1."""
        covered, end = 0.0, since
        for span in sorted(self._spans, key=lambda span: span.since):
            begin = max(end, span.since)
            end = max(end, min(at, span.until))
            covered += max(0.0, end - begin)
        return covered / (at - since) if at > since else 0.0

    def cost(self, gpu_seconds: float) -> None:
        """Time that was booked to it."""
        self._sums.gpu_seconds += gpu_seconds

    def advance(
        self, since: float, at: float, pieces: Sequence[Sequence[Piece]], works: Sequence[Work]
    ) -> Checkpoint | None:
        """Go on from one moment to the next, as Watch.advance does. Returns the checkpoint that ended."""
        self._settled = at
        group = self._first()
        if not group:
            return None
        begin, end = group[0].since, max(span.until for span in group)
        common = min(at, end) - max(since, begin)
        if common > 0:
            here = [[piece for piece in of_gpu if piece.since < at and since < piece.at] for of_gpu in pieces]
            still = [any(stands(piece, self._limits) for piece in of_gpu) for of_gpu in here if of_gpu]
            if still and 2 * sum(still) >= len(still):
                self._sums.stalled += common
            self._sums.copied += copied(pieces, max(since, begin), min(at, end))
            self._add([work for work in works if work.since < end and begin < work.at])
        if at - end < self._limits.checkpoint_quiet_seconds:
            return None
        sums, self._sums = self._sums, _Sums()
        self._spans = [span for span in self._spans if span not in group]
        return self._closed(group, begin, end, sums)

    def _first(self) -> list[_Span]:
        """Those that overlap the first one, or one another."""
        group: list[_Span] = []
        end = math.inf
        for span in sorted(self._spans, key=lambda span: span.since):
            if span.since > end:
                break
            end = max(end, span.until) if group else span.until
            group.append(span)
        return group

    def _add(self, works: Sequence[Work]) -> None:
        """What was written, each window whole and once: where it overlaps the mark it is of the checkpoint."""
        for work in works:
            if work.at > self._works_until:
                self._works_until = work.at
                self._sums.told |= work.rung != "none"
                self._sums.made += work.made
                if work.wrote:
                    mount = work.mount or UNKNOWN_MOUNT
                    self._sums.mounts[mount] = self._sums.mounts.get(mount, 0.0) + work.wrote

    def _closed(self, group: Sequence[_Span], begin: float, end: float, sums: _Sums) -> Checkpoint:
        mode: Mode = "sync"
        mount = last_mount(sums.mounts, sums.made)
        if sums.made < self._limits.checkpoint_bytes <= sums.copied and sums.told:
            mode, mount = "remote", UNKNOWN_MOUNT
        elif 2 * sums.stalled < end - begin:
            mode = "async"
        return Checkpoint(
            job=self._job,
            mount=mount,
            mode=mode,
            started=begin,
            seconds=end - begin,
            stalled=min(sums.stalled, end - begin),
            bytes=max(0.0, sums.made) if sums.told and mode != "remote" else max(sums.made, sums.copied),
            gpu_seconds=sums.gpu_seconds,
            name=next((span.name for span in group if span.name), ""),
            whole=begin >= self._since,
        )
