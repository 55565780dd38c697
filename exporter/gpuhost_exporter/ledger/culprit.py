"""Who holds a job up: the GPU that did not come to a collective, and the one that its siblings wait for.

In a synchronous job the straggler waits least: while busy, more of its SMs work than of its siblings', whose time
goes into a collective's one small kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from gpuhost_exporter.averages import median
from gpuhost_exporter.ledger.piece import Piece, Work
from gpuhost_exporter.ledger.thresholds import Thresholds

Kind = Literal["not_joined", "straggler"]
KINDS: tuple[Kind, ...] = ("not_joined", "straggler")
_FEWEST = 3  # GPUs among which one can stand out
_SLOW_CLOCK = 0.95


@dataclass(frozen=True, slots=True)
class Culprit:
    """`evidence`: lost, unknown, no_process, blocked, idle or busy of one that did not join; heat, clock or
    unexplained of a straggler."""

    uuid: str
    kind: Kind
    evidence: str


@dataclass(slots=True)
class _Job:
    hung_since: float | None = None
    leader: str = ""
    leads_since: float = 0.0


@dataclass(slots=True)
class _Density:
    mean: float
    at: float


class Culprits:
    kinds = KINDS

    def __init__(self, limits: Thresholds) -> None:
        self._limits = limits
        self._jobs: dict[str, _Job] = {}
        self._of: dict[str, str] = {}  # uuid -> the job that had it last
        self._densities: dict[str, _Density] = {}
        self.found: tuple[Culprit, ...] = ()
        self.hung: dict[str, float] = {}  # uuid -> seconds for which its job has hung

    @property
    def densities(self) -> dict[str, float]:
        """SM activity while busy, averaged over half a minute."""
        return {uuid: density.mean for uuid, density in self._densities.items()}

    def tick(self, now: float, latest: Mapping[str, Piece], works: Mapping[str, Work], saving: Iterable[str]) -> None:
        """`latest`: what each GPU told last. `saving`: jobs in a checkpoint, whose ranks wait for a reason."""
        self._follow(latest)
        members: dict[str, dict[str, Piece]] = {}
        for uuid, name in self._of.items():
            if uuid in latest:
                members.setdefault(name, {})[uuid] = latest[uuid]
        # A job none of whose GPUs has a process any more is over.
        members = {name: gpus for name, gpus in members.items() if any(piece.held for piece in gpus.values())}
        self._of = {uuid: name for uuid, name in self._of.items() if name in members}
        self._jobs = {name: self._jobs.get(name, _Job()) for name in members}
        found: list[Culprit] = []
        hung: dict[str, float] = {}
        for name, gpus in members.items():
            job = self._jobs[name]
            away = [uuid for uuid, piece in gpus.items() if not piece.spinning]
            spinning = len(gpus) - len(away)
            if spinning and len(away) <= 1 and name not in saving:
                if job.hung_since is None:
                    job.hung_since = min(piece.since for piece in gpus.values() if piece.spinning)
                if now - job.hung_since >= self._limits.hang_seconds:
                    hung.update(dict.fromkeys(gpus, now - job.hung_since))
                    found += [Culprit(uuid, "not_joined", _absence(gpus[uuid], works.get(name))) for uuid in away]
            else:
                job.hung_since = None
                found += self._straggler(now, job, gpus)
        self.found, self.hung = tuple(found), hung

    def _follow(self, latest: Mapping[str, Piece]) -> None:
        for uuid, piece in latest.items():
            if piece.jobs:
                self._of[uuid] = piece.jobs[0]
            if piece.density is None or not piece.working:
                if piece.state != "read" or not piece.held:
                    self._densities.pop(uuid, None)
                continue
            known = self._densities.get(uuid)
            if known is None:
                self._densities[uuid] = _Density(piece.density, piece.at)
            elif piece.at > known.at:
                share = min(1.0, (piece.at - known.at) / (self._limits.straggler_seconds / 3))
                known.mean += (piece.density - known.mean) * share
                known.at = piece.at

    def _straggler(self, now: float, job: _Job, gpus: Mapping[str, Piece]) -> list[Culprit]:
        means = {uuid: self._densities[uuid].mean for uuid in gpus if uuid in self._densities}
        leader = max(means, key=lambda uuid: means[uuid], default="")
        others = [mean for uuid, mean in means.items() if uuid != leader]
        if len(means) < _FEWEST or means[leader] < self._limits.straggler_ratio * median(others):
            job.leader = ""
            return []
        if leader != job.leader:
            job.leader, job.leads_since = leader, now
        if now - job.leads_since < self._limits.straggler_seconds:
            return []
        clocks = [piece.clock for uuid, piece in gpus.items() if uuid != leader and piece.clock]
        own = gpus[leader].clock
        slow = bool(clocks) and own is not None and own < _SLOW_CLOCK * median(clocks)
        evidence = "unexplained" if not slow else "heat" if gpus[leader].held_back else "clock"
        return [Culprit(leader, "straggler", evidence)]


def _absence(piece: Piece, work: Work | None) -> str:
    if piece.state != "read":
        return piece.state
    if not piece.held:
        return "no_process"
    if work and work.writer_blocked:
        return "blocked"
    return "idle" if piece.busy < 0.5 else "busy"
