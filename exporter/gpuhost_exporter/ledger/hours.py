"""Hourly buckets in the state directory, a file a day (UTC), for people and for `report`. Never a source of /metrics.

ledger-2026-10-09.json   {"gpus": {"GPU-...": {"index": 3, "name": "NVIDIA H100 80GB HBM3"}},
                          "hours": {"14": {"GPU-...": {"price": 3.0, "compute": 3311.2, "checkpoint": 81.0}}},
                          "booked": 1760018399.5}
An hour has the price that was last set in it. Older files have one for the whole day, with the GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import Any

from gpuhost_exporter.ledger.accounts import ACCOUNTS
from gpuhost_exporter.sources.nvml.readings import Gpu
from gpuhost_exporter.sources.state import Data, State

PREFIX = "ledger-"
DAYS_KEPT = 35
HOUR = 3600.0
DAY = 24 * HOUR


@dataclass(frozen=True, slots=True)
class Bucket:
    """What one GPU did within one hour, seconds by account. `start` in seconds since the epoch."""

    start: float
    uuid: str
    index: int
    name: str
    price: float  # dollars an hour
    seconds: Mapping[str, float]


class Hours:
    """Collects what is booked; save() adds it to the files, day() has the last 24 hours in memory.

    While a disk takes nothing, what a file is to be given waits here, added up, and not as one change after the other.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._new: dict[tuple[float, str], dict[str, float]] = {}
        self._day: dict[tuple[float, str], dict[str, float]] = {}
        self._gpus: dict[str, dict[str, Any]] = {}  # those that have gone, too: their hours are not over
        self._prices: dict[str, float] = {}

    def load(self, wall: float) -> None:
        """What earlier runs booked. Once, before anything is added."""
        for bucket in buckets(self._state, wall - DAY, wall):
            self._day[bucket.start, bucket.uuid] = dict(bucket.seconds)

    def add(self, wall: float, uuid: str, account: str, seconds: float) -> None:
        for table in (self._new, self._day):
            accounts = table.setdefault((wall - wall % HOUR, uuid), {})
            accounts[account] = accounts.get(account, 0.0) + seconds

    def day(self, wall: float, gpus: Iterable[Gpu], prices: Mapping[str, float]) -> Iterator[Bucket]:
        """Of the last 24 hours, by whole hours, and at today's prices."""
        self._day = {key: accounts for key, accounts in self._day.items() if key[0] + HOUR > wall - DAY}
        known = {gpu.uuid: gpu for gpu in gpus}
        for (start, uuid), accounts in self._day.items():
            if gpu := known.get(uuid):
                yield Bucket(start, uuid, gpu.index, gpu.name, prices[uuid], accounts)

    def save(self, wall: float, gpus: Iterable[Gpu], prices: Mapping[str, float]) -> None:
        self._gpus |= {gpu.uuid: {"index": gpu.index, "name": gpu.name} for gpu in gpus}
        self._prices |= prices
        new, self._new = self._new, {}
        days: dict[str, dict[tuple[float, str], dict[str, float]]] = {}
        for (start, uuid), accounts in new.items():
            days.setdefault(_day(start), {})[start, uuid] = accounts
        for day in sorted(days)[-DAYS_KEPT:]:
            if self._state.stuck(PREFIX + day):
                self._new |= days[day]
            else:
                change = partial(_merged, new=days[day], gpus=dict(self._gpus), prices=dict(self._prices), wall=wall)
                self._state.update(PREFIX + day, change)
        self._state.keep_newest(PREFIX, DAYS_KEPT)

    def last_booked(self) -> float | None:
        return last_booked(self._state)


def last_booked(state: State) -> float | None:
    """When something was last booked, seconds since the epoch; None when nothing ever was."""
    for name in reversed(state.names(PREFIX)):
        booked = state.load(name).get("booked")
        if isinstance(booked, (int, float)):
            return float(booked)
    return None


def buckets(state: State, since: float, until: float) -> Iterator[Bucket]:
    """Those of the hours that lie at least partly between the two. What is not understood is left out."""
    for name in state.names(PREFIX):
        try:
            midnight = datetime.strptime(name.removeprefix(PREFIX), "%Y-%m-%d").replace(tzinfo=timezone.utc).timestamp()
        except ValueError:
            continue
        if midnight + DAY > since and midnight < until:
            for bucket in _of_day(state.load(name), midnight):
                if bucket.start + HOUR > since and bucket.start < until:
                    yield bucket


def _of_day(data: Data, midnight: float) -> Iterator[Bucket]:
    gpus = _table(data.get("gpus"))
    for hour, by_gpu in _table(data.get("hours")).items():
        for uuid, accounts in _table(by_gpu).items():
            about, told = _table(gpus.get(uuid)), _table(accounts)
            seconds = {
                account: float(value)
                for account, value in told.items()
                if account in ACCOUNTS and isinstance(value, (int, float)) and math.isfinite(value) and value > 0
            }
            index, price = about.get("index"), told.get("price", about.get("price"))
            if seconds and hour.isdecimal() and isinstance(index, int) and isinstance(price, (int, float)):
                yield Bucket(midnight + int(hour) * HOUR, uuid, index, str(about.get("name", "")), price, seconds)


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _merged(
    data: Data,
    new: Mapping[tuple[float, str], Mapping[str, float]],
    gpus: Mapping[str, Mapping[str, Any]],
    prices: Mapping[str, float],
    wall: float,
) -> Data:
    hours = data["hours"] = dict(_table(data.get("hours")))
    for (start, uuid), accounts in new.items():
        hour = hours[_hour(start)] = dict(_table(hours.get(_hour(start))))
        known = hour[uuid] = dict(_table(hour.get(uuid)))
        known |= {"price": prices[uuid]} if uuid in prices else {}
        for account, seconds in accounts.items():
            before = known.get(account, 0.0)
            known[account] = round((before if isinstance(before, (int, float)) else 0.0) + seconds, 3)
    told = _table(data.get("gpus"))
    data["gpus"] = {**told, **{uuid: {**_table(told.get(uuid)), **about} for uuid, about in gpus.items()}}
    data["booked"] = wall
    return data


def _day(wall: float) -> str:
    return datetime.fromtimestamp(wall, timezone.utc).strftime("%Y-%m-%d")


def _hour(wall: float) -> str:
    return str(int(wall % DAY // HOUR))
