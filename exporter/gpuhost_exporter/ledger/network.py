"""What a GPU's network adapters carried while it was busy with nothing that its own counters show.

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
    """One window. `rates`: by GPU, bytes a second of the busier direction of the adapters nearest to it."""

    since: float
    at: float
    rates: Mapping[str, float]


class Networks:
    """The last few windows."""

    def __init__(self, limits: Thresholds) -> None:
        self._limits = limits
        self._windows: deque[Network] = deque()
        self._wanted_at = float("-inf")

    def take(self, now: float, windows: Iterable[Network]) -> None:
        self._windows.extend(windows)
        while self._windows and self._windows[0].at < now - _KEPT_SECONDS:
            self._windows.popleft()

    def wanted(self, now: float, latest: Iterable[Piece]) -> bool:
        """Whether to look at the adapters now; `latest`: what each GPU told last."""
        if any(piece.lone for piece in latest):
            self._wanted_at = now
        return now - self._wanted_at < _AFTER_SECONDS

    def beside(self, uuid: str, piece: Piece) -> Piece:
        """The GPU's piece, judged by what its adapters carried too."""
        if not piece.lone or not self._windows:
            return piece
        window = min(self._windows, key=lambda each: max(each.since - piece.at, piece.since - each.at))
        rate = window.rates.get(uuid)
        if rate is None or max(window.since - piece.at, piece.since - window.at) > _NEAR_SECONDS:
            return piece
        return piece.networked(rate, self._limits)
