"""A histogram as Prometheus has it: cumulative buckets, a sum and a count that never go back."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from gpuhost_exporter.specs import Sample, Spec


class Histogram:
    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def samples(self, spec: Spec, *labels: str) -> Iterator[Sample]:
        total = 0
        for bound, count in zip((*map(_text, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield spec(*labels, bound, value=total)
        yield spec(*labels, "count", value=total)
        yield spec(*labels, "sum", value=self._sum)


def _text(bound: float) -> str:
    """As OpenMetrics wants its numbers: 1.0, 256000000.0."""
    return repr(float(bound))
