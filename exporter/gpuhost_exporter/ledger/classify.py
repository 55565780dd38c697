"""Which account takes how much of a stretch of a GPU's time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gpuhost_exporter.ledger.accounts import COMPUTING, PRECEDENCE, STATES, Part
from gpuhost_exporter.ledger.piece import Piece, Work
from gpuhost_exporter.ledger.thresholds import Thresholds


@dataclass(frozen=True, slots=True)
class Around:
    """What there is to know about a piece beyond itself."""

    works: tuple[Work, ...] = ()  # of its jobs, overlapping it
    checkpoint: float = 0.0  # share of it for which a job of it stands for a checkpoint; less than 1 by marks only
    starting: bool = False  # no job of it has done its first tensor work
    waiting: bool = False  # it spins, and has for long enough
    idle_for: float = 0.0  # seconds since it last had work
    clock: float | None = None  # hertz without heat or power brake
    cores: float = 0.0  # that the holder burns


def shares(piece: Piece, around: Around, limits: Thresholds) -> dict[str, float]:
    """Account -> share of the piece. The shares add up to 1 and none is negative."""
    if piece.state in STATES:
        return {piece.state: 1.0}
    claims = frozenset(_claims(piece, around, limits))
    found: dict[str, float] = {}
    saving = around.checkpoint
    for part, share in (("idle", 1.0 - piece.busy), ("busy", piece.busy)):
        if share > 0:
            account, *others = (account for account, of in PRECEDENCE if of == part and (account, of) in claims)
            if account == "checkpoint" and around.checkpoint < 1:
                # It idled for the checkpoint first: what it worked in this piece it did before or after.
                taken = min(share, saving)
                saving -= taken
                found[others[0]] = found.get(others[0], 0.0) + share - taken
                share = taken  # noqa: PLW2901
            found[account] = found.get(account, 0.0) + share
    if piece.held_back and piece.clock and around.clock and around.clock > piece.clock:
        for account in COMPUTING & found.keys():
            lost = found[account] * (1.0 - piece.clock / around.clock)
            found[account] -= lost
            found["throttled"] = found.get("throttled", 0.0) + lost
    return found


def _claims(piece: Piece, around: Around, limits: Thresholds) -> Iterator[tuple[str, Part]]:
    yield "compute" if piece.profiled else "busy", "busy"
    yield "held_idle", "idle"
    if not piece.held:
        yield "unallocated", "idle"
    if piece.exchanging:
        yield "communication", "busy"
    if around.waiting:
        yield "waiting", "busy"
    stalled = piece.idle > limits.gap_ratio
    if around.checkpoint and (stalled or piece.spinning):
        yield "checkpoint", "idle"
        if piece.spinning:
            yield "checkpoint", "busy"
    reading = any(
        work.seconds > 0 and work.read >= limits.read_bytes_per_second * work.seconds for work in around.works
    )
    if around.starting and piece.held:
        account = "restore" if reading else "startup"
        yield account, "idle"
        if piece.spinning:
            yield account, "busy"
    if stalled and (reading or any(work.loading for work in around.works)):
        yield "data", "idle"
    if around.cores >= limits.holder_cores and around.idle_for < limits.idle_limit_seconds:
        yield "host", "idle"


def waits(piece: Piece, following: bool, spun: float, limits: Thresholds) -> bool:
    """Whether the piece spins in company: two in a row with profiling, a minute without.

    `following`: whether the next one spins, `spun`: for how long the GPU has before this one.
    """
    if not piece.spinning:
        return False
    if piece.profiled:
        return spun > 0 or following
    return spun + piece.seconds > limits.classic_seconds
