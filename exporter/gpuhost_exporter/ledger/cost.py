"""What was lost to what, and what it cost: hourly buckets added up, for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gpuhost_exporter.ledger.accounts import LOSSES
from gpuhost_exporter.ledger.hours import HOUR, Bucket

_LEAST_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Spent:
    """One GPU's time, or of all GPUs together: seconds and dollars by account."""

    gpu: str
    uuid: str
    name: str
    seconds: Mapping[str, float]
    dollars: Mapping[str, float]

    @property
    def booked(self) -> float:
        return sum(self.seconds.values())

    @property
    def losses(self) -> tuple[str, ...]:
        """The accounts that lost a second and more, most first."""
        lost = [account for account in LOSSES if self.seconds.get(account, 0.0) >= _LEAST_SECONDS]
        return tuple(sorted(lost, key=lambda account: -self.seconds[account]))

    @property
    def most(self) -> tuple[str, float, float] | None:
        """What it lost most time to: account, seconds, dollars."""
        return next(((account, self.seconds[account], self.dollars[account]) for account in self.losses), None)

    @property
    def lost(self) -> float:
        return sum(self.seconds[account] for account in self.losses)

    @property
    def dollars_lost(self) -> float:
        return sum(self.dollars[account] for account in self.losses)


def per_gpu(buckets: Iterable[Bucket]) -> tuple[Spent, ...]:
    """By GPU, in the order of their numbers. An hour costs what it did when it was booked."""
    latest: dict[str, Bucket] = {}
    seconds: dict[str, dict[str, float]] = {}
    dollars: dict[str, dict[str, float]] = {}
    for bucket in buckets:
        if bucket.uuid not in latest or bucket.start >= latest[bucket.uuid].start:
            latest[bucket.uuid] = bucket
        for account, value in bucket.seconds.items():
            _add(seconds.setdefault(bucket.uuid, {}), account, value)
            _add(dollars.setdefault(bucket.uuid, {}), account, value / HOUR * bucket.price)
    ordered = sorted(latest.values(), key=lambda bucket: (bucket.index, bucket.uuid))
    return tuple(
        Spent(str(bucket.index), bucket.uuid, bucket.name, seconds[bucket.uuid], dollars[bucket.uuid])
        for bucket in ordered
    )


def together(gpus: Iterable[Spent]) -> Spent:
    seconds: dict[str, float] = {}
    dollars: dict[str, float] = {}
    for spent in gpus:
        for account, value in spent.seconds.items():
            _add(seconds, account, value)
        for account, value in spent.dollars.items():
            _add(dollars, account, value)
    return Spent("all", "", "", seconds, dollars)


def _add(table: dict[str, float], account: str, value: float) -> None:
    table[account] = table.get(account, 0.0) + value
