"""Each account's evidence, one piece of time at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.gpus import reading

from gpuhost_exporter.ledger.accounts import ACCOUNTS, PRECEDENCE
from gpuhost_exporter.ledger.classify import Around, shares, waits
from gpuhost_exporter.ledger.clocks import Clocks
from gpuhost_exporter.ledger.piece import Piece, Usual, Work, of_activity
from gpuhost_exporter.ledger.thresholds import Thresholds
from gpuhost_exporter.sources.nvml.readings import Activity, Process

LIMITS = Thresholds()
HELD = (Process(1, None),)


def piece(before=None, **told):
    now = reading(Activity, **{"uuid": "GPU-0", "since": 0.0, "at": 1.0, "gpm": "ok", "processes": HELD, **told})
    return of_activity(now, before, 0.0, LIMITS, Usual(700.0, 0.5e9))


def gpm(busy, sm=0.0, tensor=0.0, dram=0.0, **told):
    return piece(graphics_ratio=busy, sm_active_ratio=sm, tensor_ratio=tensor, memory_bandwidth_ratio=dram, **told)


def work(**told):
    silent = {"rung": "process", "wrote": 0.0, "made": 0.0, "read": 0.0, "writer_blocked": False, "loading": False}
    return Work(**{"since": 0.0, "at": 1.0, "cores": {}, "mount": "", **silent, **told})


EMPTY = piece(graphics_ratio=0.0, processes=())
IDLE = gpm(0.0)
SPIN = gpm(1.0, sm=0.13)
TRAIN = gpm(0.75, sm=0.6, tensor=0.4, dram=0.5)
READING = Around(works=(work(read=1e9),))


@pytest.mark.parametrize(
    ("what", "around", "expected"),
    [
        (Piece(0, 1, state="lost"), Around(), {"lost": 1}),
        (Piece(0, 1, state="unknown"), Around(), {"unknown": 1}),
        (piece(), Around(), {"unknown": 1}),
        (EMPTY, Around(), {"unallocated": 1}),
        (IDLE, Around(), {"held_idle": 1}),
        (IDLE, Around(cores=0.9), {"host": 1}),
        (IDLE, Around(cores=0.9, idle_for=601), {"held_idle": 1}),
        (IDLE, READING, {"data": 1}),
        (IDLE, Around(works=(work(loading=True),)), {"data": 1}),
        (IDLE, Around(works=(work(read=1e9),), starting=True), {"restore": 1}),
        (IDLE, Around(starting=True), {"startup": 1}),
        (IDLE, Around(works=(work(read=1e9),), checkpoint=True, starting=True), {"checkpoint": 1}),
        (EMPTY, Around(works=(work(read=1e9),), checkpoint=True), {"unallocated": 1}),
        (TRAIN, Around(), {"compute": 0.75, "held_idle": 0.25}),
        (TRAIN, READING, {"compute": 0.75, "data": 0.25}),
        (IDLE, Around(works=(work(loading=True),), cores=0.9), {"data": 1}),
        (gpm(0.95, sm=0.8, tensor=0.4), Around(cores=0.9), {"compute": 0.95, "host": 0.05}),
        (gpm(0.95, sm=0.8, tensor=0.4), Around(), {"compute": 0.95, "held_idle": 0.05}),
        (gpm(0.95, sm=0.8, tensor=0.4), READING, {"compute": 0.95, "held_idle": 0.05}),
        (gpm(0.95, sm=0.8, tensor=0.4), Around(checkpoint=True), {"compute": 0.95, "held_idle": 0.05}),
        (SPIN, Around(), {"compute": 1}),
        (SPIN, Around(waiting=True), {"waiting": 1}),
        (SPIN, Around(waiting=True, checkpoint=True), {"checkpoint": 1}),
        (SPIN, Around(waiting=True, starting=True), {"startup": 1}),
        (piece(utilization_ratio=0.8), Around(), {"busy": 0.8, "held_idle": 0.2}),
    ],
)
def test_a_piece_goes_where_its_evidence_points(what, around, expected):
    assert shares(what, around, LIMITS) == pytest.approx(expected)


def before(**told):
    return reading(Activity, uuid="GPU-0", since=-1.0, at=0.0, gpm="ok", **told)


@pytest.mark.parametrize(
    ("told", "spins", "exchanges"),
    [
        ({}, True, False),
        ({"tensor": 0.02}, False, False),
        ({"sm": 0.5}, False, False),
        ({"dram": 0.1}, False, False),
        ({"before": before(nvlink_tx_bytes=0), "nvlink_tx_bytes": 30 * 10**9}, False, True),
        ({"before": before(nvlink_tx_bytes=0), "nvlink_tx_bytes": 5 * 10**9}, False, False),
        ({"before": before(nvlink_tx_bytes=9), "nvlink_tx_bytes": 0}, True, False),
        ({"pcie_tx_bytes_per_second": 2e9, "pcie_rx_bytes_per_second": 2e9, "dram": 0.2}, False, True),
        ({"pcie_tx_bytes_per_second": 2e9, "pcie_rx_bytes_per_second": 0.0}, True, False),
    ],
    ids=["hang", "math", "many SMs", "memory", "NVLink", "a little NVLink", "counter reset", "network", "one way"],
)
def test_what_is_busy_without_math_spins_or_exchanges(told, spins, exchanges):
    parts = {"sm": 0.13, "tensor": 0.0, "dram": 0.0, **told}
    seen = piece(
        before=parts.pop("before", None),
        graphics_ratio=1.0,
        sm_active_ratio=parts.pop("sm"),
        tensor_ratio=parts.pop("tensor"),
        memory_bandwidth_ratio=parts.pop("dram"),
        **parts,
    )
    assert (seen.spinning, seen.exchanging) == (spins, exchanges)
    assert shares(seen, Around(), LIMITS) == {"communication" if exchanges else "compute": 1}


@pytest.mark.parametrize(
    ("what", "following", "spun", "waiting"),
    [
        (SPIN, False, 0.0, False),
        (SPIN, True, 0.0, True),
        (SPIN, False, 1.0, True),
        (TRAIN, True, 1.0, False),
        (piece(utilization_ratio=1.0, power_watts=120.0), True, 59.0, False),
        (piece(utilization_ratio=1.0, power_watts=120.0), True, 59.5, True),
        (piece(utilization_ratio=1.0, power_watts=600.0), True, 100.0, False),
        (piece(utilization_ratio=0.9, power_watts=120.0), True, 100.0, False),
        (piece(utilization_ratio=1.0), True, 100.0, False),
    ],
)
def test_waiting_takes_two_ticks_or_without_profiling_a_minute_at_low_power(what, following, spun, waiting):
    assert waits(what, following, spun, LIMITS) == waiting


@pytest.mark.parametrize(
    ("reasons", "throttled"),
    [(0x20, 0.15), (0x40, 0.15), (0x80, 0.15), (0x4, 0.0), (0x8, 0.0), (0x200, 0.0), (None, 0.0)],
    ids=["software thermal", "hardware thermal", "power brake", "power cap", "slowdown", "board limit", "not told"],
)
def test_heat_and_power_brakes_cost_what_the_clock_lacks(reasons, throttled):
    slow = gpm(0.75, sm=0.6, tensor=0.4, sm_clock_hertz=1.6e9, clock_event_reasons=reasons)
    found = shares(slow, Around(clock=2e9), LIMITS)
    assert found.get("throttled", 0.0) == pytest.approx(throttled)
    assert sum(found.values()) == pytest.approx(1)
    assert "throttled" not in shares(slow, Around(clock=None), LIMITS)
    assert "throttled" not in shares(slow, Around(clock=1.5e9), LIMITS)


def at(second, clock, *, brake=False, busy=0.9):
    told = gpm(busy, sm=0.7, tensor=0.4 if busy > 0.5 else 0.0, sm_clock_hertz=clock, clock_event_reasons=0x80 * brake)
    return replace(told, since=second, at=second + 1.0)


def test_the_clock_to_compare_with_is_that_of_siblings_at_work_that_nothing_holds_back():
    clocks, hot = Clocks(), at(0, 1.2e9, brake=True)
    siblings = [at(0, 1.9e9), at(0, 2.0e9), at(0, 1.95e9), at(0, 0.3e9, busy=0.0)]
    clocks.take({"H100": [hot, *siblings], "L40S": [at(0, 2.5e9)]})
    assert clocks.beside("H100", hot) == 1.95e9
    assert clocks.beside("A100", hot) is None


def test_it_is_that_of_the_pieces_own_time():
    clocks, hot = Clocks(), at(0, 1.2e9, brake=True)
    clocks.take({"H100": [hot, at(1, 1.2e9, brake=True), at(0, 1.8e9), at(1, 1.4e9)]})
    assert clocks.beside("H100", hot) == 1.8e9
    assert clocks.beside("H100", at(1, 1.2e9, brake=True)) == 1.4e9


def test_where_all_are_held_back_it_is_the_last_one_seen_before():
    clocks, braked = Clocks(), [at(9, 1.0e9, brake=True) for _ in range(4)]
    clocks.take({"H100": braked})
    assert clocks.beside("H100", braked[0]) is None
    clocks.take({"H100": [at(8, 1.9e9) for _ in range(4)]})
    clocks.take({"H100": [*braked[:3], at(9, 1.0e9)]})  # the brake's reason is told a moment late
    clocks.take({"H100": [at(10, 1.0e9, brake=True) for _ in range(4)]})
    clocks.take({"H100": []})
    assert clocks.beside("H100", at(10, 1.0e9, brake=True)) == 1.9e9


def test_every_account_but_the_estimate_stands_in_the_table_of_precedence():
    assert set(ACCOUNTS) == {account for account, _ in PRECEDENCE} | {"throttled"}
    order = [account for account, _ in PRECEDENCE]
    named = ("lost", "unknown", "unallocated", "checkpoint", "restore", "data", "waiting", "communication")
    assert sorted(named, key=order.index) == list(named)
