"""The last reading of each subject, for those who join subjects: inventory, targets, status page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


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
        self._last: dict[str, tuple[float, object]] = {}

    def post(self, subject: str, reading: object, until: float) -> None:
        self._last[subject] = until, reading

    def last(self, subject: str, kind: type[T], now: float) -> T | None:
        until, reading = self._last.get(subject, (now, None))
        return reading if now <= until and isinstance(reading, kind) else None
