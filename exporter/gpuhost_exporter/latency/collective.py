"""The result of an allreduce, as the program that an operator or a timer starts leaves it in the state directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpuhost_exporter.errors import Malformed

SUBJECT = "collective"
MOST_ITERATIONS = 1000
_LONGEST_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Collective:
    """Seconds of each allreduce on its slowest rank; `at`: seconds since the epoch of its end."""

    at: float
    ranks: int
    hosts: int
    bytes: int
    seconds: tuple[float, ...]

    def data(self) -> dict[str, Any]:
        return {
            "at": self.at,
            "ranks": self.ranks,
            "hosts": self.hosts,
            "bytes": self.bytes,
            "seconds": list(self.seconds),
        }


def parse(data: Mapping[str, Any]) -> Collective | None:
    """None where there is no result. Raises Malformed."""
    if not data:
        return None
    at, seconds = data.get("at"), data.get("seconds")
    counts = [data.get(key) for key in ("ranks", "hosts", "bytes")]
    if not isinstance(at, float) or not isinstance(seconds, list) or not 0 < len(seconds) <= MOST_ITERATIONS:
        raise Malformed(f"allreduce result: expected a time and 1 to {MOST_ITERATIONS} latencies")
    if not all(isinstance(count, int) and not isinstance(count, bool) and count > 0 for count in counts):
        raise Malformed(f"allreduce result: expected ranks, hosts and bytes above 0, got {counts}")
    if not all(isinstance(value, float) and 0.0 < value < _LONGEST_SECONDS for value in seconds):
        raise Malformed("allreduce result: a latency that is no time")
    ranks, hosts, size = (int(count or 0) for count in counts)
    return Collective(at, ranks, hosts, size, tuple(seconds))
