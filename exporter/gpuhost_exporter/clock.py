"""The clock seam: everything that asks for the time is handed one of these."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since boot, never set back, the same in every process of the host."""

    def wall(self) -> float:
        """Seconds since the epoch; may jump."""


class SystemClock:
    __slots__ = ()

    def now(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> float:
        return time.time()
