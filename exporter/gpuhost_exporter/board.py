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
    """Each post replaces the subject's last; a reader sees a whole reading or the one before it."""

    def __init__(self) -> None:
        self._last: dict[str, object] = {}

    def post(self, subject: str, reading: object) -> None:
        self._last[subject] = reading

    def last(self, subject: str, kind: type[T]) -> T | None:
        reading = self._last.get(subject)
        return reading if isinstance(reading, kind) else None
