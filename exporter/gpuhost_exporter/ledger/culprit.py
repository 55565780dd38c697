"""Who holds a job up: the GPU that did not come to a collective, and the one that its siblings wait for.

In a synchronous job the straggler waits least: while busy, more of its SMs work than of its siblings', whose time
goes into a collective's one small kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from gpuhost_exporter.averages import median
from gpuhost_exporter.ledger.piece import HOST, Piece, Work
from gpuhost_exporter.ledger.thresholds import Thresholds

Kind = Literal["not_joined", "straggler"]
KINDS: tuple[Kind, ...] = ("not_joined", "straggler")
NOTHING: Mapping[str, Any] = MappingProxyType({})
_FEWEST = 3  # GPUs among which one can stand out
_SLOW_CLOCK = 0.95
_FEWEST_SPINNING = 2  # where several are away: one alone may run a small kernel of its own beside GPUs that are held
_MIXED = (HOST, "user:")  # keys of what may be several jobs at once: there at least half must spin
_XID_SECONDS = 300.0  # before the hang began: an older error is another story


@dataclass(frozen=True, slots=True)
class Culprit:
    """`evidence`: lost, unknown, no_process, blocked, idle or busy of one that did not join; heat, clock or
    unexplained of a straggler. `xid`: the code of the GPU's last error, if it came with the hang."""

    uuid: str
    kind: Kind
    evidence: str
    xid: str = ""


@dataclass(slots=True)
class _Job:
    hung_since: float | None = None
    worked_at: float = float("-inf")  # when some GPU of it last did math
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
        self._left: dict[str, float] = {}  # uuid -> since when a job's GPU has no process
        self._densities: dict[str, _Density] = {}
        self.found: tuple[Culprit, ...] = ()
        self.hung: dict[str, float] = {}  # uuid -> seconds for which its job has hung

    @property
    def densities(self) -> dict[str, float]:
        """SM activity while busy, averaged over half a minute."""
        return {uuid: density.mean for uuid, density in self._densities.items()}

    def tick(
        self,
        now: float,
        latest: Mapping[str, Piece],
        works: Mapping[str, Work],
        saving: Iterable[str],
        worlds: Mapping[str, int] = NOTHING,
        xids: Mapping[str, tuple[str, float]] = NOTHING,
    ) -> None:
        """`latest`: what each GPU told last. `saving`: jobs in a checkpoint, whose ranks wait for a reason. `worlds`:
        ranks of a job on all its hosts, where told. `xids`: uuid -> code and moment of its last error."""
        self._follow(latest)
        members: dict[str, dict[str, Piece]] = {}
        for uuid, name in self._of.items():
            if uuid in latest:
                members.setdefault(name, {})[uuid] = latest[uuid]
        # A job none of whose GPUs has a process any more is over.
        members = {name: gpus for name, gpus in members.items() if any(piece.held for piece in gpus.values())}
        self._jobs = {name: self._jobs.get(name, _Job()) for name in members}
        self._leave(members)
        self._of = {uuid: name for name, gpus in members.items() for uuid in gpus}
        found: list[Culprit] = []
        hung: dict[str, float] = {}
        for name, gpus in members.items():
            job = self._jobs[name]
            if name not in saving and self._hangs(name, gpus, worlds.get(name, 1)):
                spinning = [piece for piece in gpus.values() if piece.spinning]
                if job.hung_since is None:
                    job.hung_since = min(piece.since for piece in spinning)
                if now - job.hung_since >= self._patience(spinning):
                    hung.update(dict.fromkeys(gpus, now - job.hung_since))
                    found += [
                        Culprit(uuid, "not_joined", _absence(uuid, piece, works.get(name)), _xid(uuid, job, xids))
                        for uuid, piece in gpus.items()
                        if not piece.spinning
                    ]
            else:
                job.hung_since = None
                found += self._straggler(now, job, gpus)
        self.found, self.hung = tuple(found), hung

    def _leave(self, members: Mapping[str, dict[str, Piece]]) -> None:
        """A GPU without a process is no member of a job that has worked on without it."""
        for name, gpus in members.items():
            job = self._jobs[name]
            for uuid, piece in gpus.items():
                if piece.held:
                    self._left.pop(uuid, None)
                else:
                    self._left.setdefault(uuid, piece.since)
                if piece.working:
                    job.worked_at = max(job.worked_at, piece.at)
            for uuid in [uuid for uuid, piece in gpus.items() if not piece.held]:
                if job.worked_at - self._left[uuid] >= self._limits.hang_seconds:
                    del gpus[uuid], self._left[uuid]

    def _hangs(self, name: str, gpus: Mapping[str, Piece], world: int) -> bool:
        """Whether some wait for the others: for any number that stand, or for one that does something else."""
        away = [piece for piece in gpus.values() if not piece.spinning]
        spinning = len(gpus) - len(away)
        if not spinning or max(len(gpus), world) < 2:
            return False
        if len(away) <= 1:
            return True
        enough = spinning >= _FEWEST_SPINNING and (not name.startswith(_MIXED) or spinning >= len(away))
        return enough and not any(self._busy(piece) for piece in away)

    def _busy(self, piece: Piece) -> bool:
        """Whether it is at work, if with pauses."""
        return piece.state == "read" and piece.held and (piece.working or piece.idle <= self._limits.gap_ratio)

    def _patience(self, spinning: Iterable[Piece]) -> float:
        limits = self._limits
        if all(piece.profiled for piece in spinning):
            return limits.hang_seconds
        return max(limits.hang_seconds, limits.classic_seconds)

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


def _absence(uuid: str, piece: Piece, work: Work | None) -> str:
    if piece.state != "read":
        return piece.state
    if not piece.held:
        return "no_process"
    if work and uuid in work.blocked:
        return "blocked"
    return "idle" if piece.busy < 0.5 else "busy"


def _xid(uuid: str, job: _Job, xids: Mapping[str, tuple[str, float]]) -> str:
    code, at = xids.get(uuid, ("", float("-inf")))
    return code if job.hung_since is not None and at >= job.hung_since - _XID_SECONDS else ""
