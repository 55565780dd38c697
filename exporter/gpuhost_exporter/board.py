"""The last readings of each subject, for those who join subjects: inventory, targets, status page, ledger."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
_KEPT = {"activity": 4}  # for who must miss none though the ticks of two threads cross; of the rest the last one


@dataclass(frozen=True, slots=True)
class Listed:
    """A device that the kernel lists now, read or not. `identity` is None where nothing has told it so far."""

    device: str
    identity: str | None


class Board:
    """Each post replaces the subject's last; a reader sees a whole reading or the one before it, until it is too old.

    A collector posts by Collector.post, so that its readings last as long as what it publishes.
    """

    def __init__(self) -> None:
        self._posted: dict[str, deque[tuple[float, object]]] = {}

    def post(self, subject: str, reading: object, until: float) -> None:
        self._posted.setdefault(subject, deque(maxlen=_KEPT.get(subject, 1))).append((until, reading))

    def last(self, subject: str, kind: type[T], now: float) -> T | None:
        posted = self._posted.get(subject)
        until, reading = posted[-1] if posted else (now, None)
        return reading if now <= until and isinstance(reading, kind) else None

    def recent(self, subject: str, kind: type[T], now: float) -> tuple[T, ...]:
        """The last few, oldest first, of a subject that more than one is kept of."""
        posted = tuple(self._posted.get(subject, ()))
        return tuple(reading for until, reading in posted if now <= until and isinstance(reading, kind))
