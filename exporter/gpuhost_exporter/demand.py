"""What storage has delivered of late while it was asked for more, from the published samples and their rates."""

from __future__ import annotations

from dataclasses import dataclass

from gpuhost_exporter.collectors import storage
from gpuhost_exporter.latest import Latest
from gpuhost_exporter.saturation import DIRECTIONS, LIMITS, Limit

_SHARE = 0.2  # of the time looked at: less is too little to judge by


@dataclass(frozen=True, slots=True)
class Demand:
    """`member` is who holds it back, "" where that is the array or the submitter. Bytes a second while saturated.

    Targets are None where the device has none: a mirror, a drive whose link is not known.
    """

    by: Limit
    member: str
    direction: str
    delivered: float | None
    good: float | None
    poor: float | None

    def slow(self) -> bool:
        return self.delivered is not None and self.poor is not None and self.delivered < self.poor


def demand(latest: Latest, moved: Latest, device: str) -> Demand | None:
    """None while nobody asks the device for more than it gives. `moved` holds the counters' rates."""
    shares = {by: moved.value(storage.LIMITED, device, by) or 0.0 for by in LIMITS}
    by = max(LIMITS, key=lambda limit: shares[limit])
    if shares[by] < _SHARE:
        return None
    saturated = {name: moved.value(storage.SATURATED_SECONDS, device, name) or 0.0 for name in DIRECTIONS}
    direction = "write" if by == "submitter" else max(DIRECTIONS, key=lambda name: saturated[name])
    taken = moved.value(storage.SATURATED_BYTES, device, direction)
    holding = {name: share for name, share in moved.below(storage.LIMITING, device) if share} if by == "member" else {}
    return Demand(
        by=by,
        member=max(holding, key=lambda name: holding[name], default=""),
        direction=direction,
        delivered=taken / saturated[direction] if taken is not None and saturated[direction] else None,
        good=latest.value(storage.TARGET, device, direction, "good"),
        poor=latest.value(storage.TARGET, device, direction, "poor"),
    )
