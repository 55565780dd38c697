"""What network adapters carried while a GPU was busy with nothing that its own counters show, or stood after a copy.

Told late and with holes: adapters are looked at only while it decides something (`wanted`), at other moments than GPUs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gpuhost_exporter.ledger.piece import Piece
from gpuhost_exporter.ledger.thresholds import Thresholds

_NEAR_SECONDS = 1.5  # a stretch that no window overlaps goes by one so near: the first look only begins a window
_KEPT_SECONDS = 10.0
_AFTER_SECONDS = 3.0  # adapters are looked at for so long after a GPU last wanted it


@dataclass(frozen=True, slots=True)
class Network:
    """One window. `rates`: by GPU, bytes a second of the busier direction of the adapters nearest to it.

    `sent`: bytes a second that all of the host's adapters sent, RDMA too; `kernel`: without it, None where that is not
    told. Storage may be behind any of them.
    """

    since: float
    at: float
    rates: Mapping[str, float]
    sent: float = 0.0
    kernel: float | None = None


class Networks:
    """The last few windows."""

    def __init__(self, limits: Thresholds) -> None:
        self._limits = limits
        self._windows: deque[Network] = deque()
        self._written: deque[Network] = deque()
        self._wanted_at = float("-inf")

    def take(self, now: float, windows: Iterable[Network]) -> None:
        self._windows.extend(windows)
        for kept in (self._windows, self._written):
            while kept and kept[0].at < now - _KEPT_SECONDS:
                kept.popleft()

    def wanted(self, now: float, latest: Iterable[Piece], *, saving: bool = False) -> bool:
        """Whether to look at the adapters now; `latest`: what each GPU told last. `saving`: some job copies out of its
        GPUs and writes nothing."""
        if saving or any(piece.lone or piece.copying for piece in latest):
            self._wanted_at = now
        return now - self._wanted_at < _AFTER_SECONDS

    def told_after(self, moment: float) -> float:
        """Seconds beyond that moment for which it is known what was sent."""
        return max((window.at - moment for window in self._windows if window.kernel is not None), default=0.0)

    def drives(self, since: float, at: float, written: float) -> None:
        """What the host's own drives wrote: GPUDirect Storage goes there past the processes' counters."""
        if at > since:
            self._written.append(Network(since, at, {}, written / (at - since), written / (at - since)))

    def uploaded(self, since: float, at: float, stood: tuple[float, float]) -> float:
        """Bytes that the host put somewhere in that stretch, at the rate of an upload or faster. RDMA counts in windows
        for all of which the job's GPUs `stood`: else it may be their collectives."""
        total = 0.0
        for window in (*self._windows, *self._written):
            common = min(at, window.at) - max(since, window.since)
            stands = stood[0] <= window.since and window.at <= stood[1]
            rate = window.sent if stands else window.kernel or 0.0
            if common > 0 and rate >= self._limits.upload_bytes_per_second:
                total += rate * common
        return total

    def beside(self, uuid: str, piece: Piece) -> Piece:
        """The GPU's piece, judged by what its adapters carried too."""
        if not piece.lone or not self._windows:
            return piece
        window = min(self._windows, key=lambda each: max(each.since - piece.at, piece.since - each.at))
        rate = window.rates.get(uuid)
        if rate is None or max(window.since - piece.at, piece.since - window.at) > _NEAR_SECONDS:
            return piece
        return piece.networked(rate, self._limits)
