"""Levels, counters and faults of a simulated host over time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuhost_exporter.sim import catalogue, scenario
from gpuhost_exporter.sim.control import Control, Segment
from gpuhost_exporter.sim.scenario import GpuLevels, HostLevels
from gpuhost_exporter.sim.timeline import Timeline

HOSTS = st.sampled_from(sorted(set(catalogue.names()) - {"nogpu"}))
HISTORIES = st.lists(st.tuples(st.sampled_from(scenario.names()), st.floats(0.5, 400)), min_size=1, max_size=4)
TIMES = st.lists(st.floats(0, 2000), min_size=2, max_size=12).map(sorted)


def timeline(host: str, history: Sequence[tuple[str, float]]) -> Timeline:
    """Scenarios one after the other, each for so many seconds; the last goes on."""
    start = 1000.0
    segments = []
    for name, seconds in history:
        segments.append(Segment(name, start))
        start += seconds
    return Timeline(Control(host, tuple(segments), None, "boot", 1.76e9))


@settings(max_examples=60, deadline=None)
@given(HOSTS, HISTORIES, TIMES, st.integers(0, 7))
def test_no_counter_goes_back_across_any_switch(
    host: str, history: list[tuple[str, float]], times: list[float], index: int
) -> None:
    line = timeline(host, history)
    gpu = index % len(line.host.gpus)
    for before, after in itertools.pairwise(times):
        pairs = [
            *zip(line.gpu_levels(gpu, before)[1], line.gpu_levels(gpu, after)[1], strict=True),
            *zip(line.host_levels(before)[1], line.host_levels(after)[1], strict=True),
        ]
        assert all(new >= old - 1e-9 * abs(old) for old, new in pairs)


@settings(max_examples=60, deadline=None)
@given(HOSTS, HISTORIES, TIMES)
def test_a_moment_is_the_same_in_whatever_order_it_is_asked_for(
    host: str, history: list[tuple[str, float]], times: list[float]
) -> None:
    forwards, backwards = timeline(host, history), timeline(host, history)
    one = {at: (forwards.gpu(0, at), forwards.host_levels(at)) for at in times}
    other = {at: (backwards.gpu(0, at), backwards.host_levels(at)) for at in reversed(times)}
    assert one == other


@pytest.mark.parametrize("name", sorted(set(scenario.names()) - {"tour"}))
def test_a_counter_is_the_sum_of_its_rate(name: str) -> None:
    line = timeline("h100x8", [(name, 10.0), ("data-starved", 1000.0)])
    step = 0.01
    middles = [(number + 0.5) * step for number in range(3000)]
    for index in (0, 5):
        rates = [line.gpu_levels(index, at)[0] for at in middles]
        summed = [math.fsum(column) * step for column in zip(*rates, strict=True)]
        assert GpuLevels._make(summed) == pytest.approx(line.gpu_levels(index, 30.0)[1], rel=2e-3, abs=1e-6)
    rates_of_host = [line.host_levels(at)[0] for at in middles]
    summed = [math.fsum(column) * step for column in zip(*rates_of_host, strict=True)]
    assert HostLevels._make(summed) == pytest.approx(line.host_levels(30.0)[1], rel=2e-3, abs=1e-6)


@settings(max_examples=80, deadline=None)
@given(HOSTS, st.sampled_from(scenario.names()), st.floats(0, 3000), st.integers(0, 7))
def test_ratios_stay_between_0_and_1(host: str, name: str, at: float, index: int) -> None:
    line = timeline(host, [(name, 1.0)])
    levels = line.gpu_levels(index % len(line.host.gpus), at)[0]
    outside = {
        field: level for field, level in levels._asdict().items() if scenario.is_ratio(field) and not 0 <= level <= 1
    }
    assert not outside


@pytest.mark.parametrize(
    ("name", "at", "watts", "celsius"),
    [
        ("idle", 60, (60, 100), (28, 40)),
        ("steady", 60, (600, 680), (55, 75)),
        ("nccl-hang", 60, (120, 170), (33, 45)),
        ("thermal", 80, (450, 560), (84, 92)),
    ],
)
def test_an_h100s_power_and_temperature_follow_its_work(
    name: str, at: float, watts: tuple[float, float], celsius: tuple[float, float]
) -> None:
    moment = timeline("h100x8", [(name, 1.0)]).gpu(2, at)
    assert watts[0] <= moment.watts <= watts[1]
    assert celsius[0] <= moment.celsius <= celsius[1]


def test_temperature_lags_behind_power() -> None:
    line = timeline("h100x8", [("steady", 100.0), ("idle", 100.0)])
    assert line.gpu(0, 101).watts < 100
    assert line.gpu(0, 101).celsius > 55
    assert line.gpu(0, 130).celsius < 40


def test_a_straggler_never_waits_and_its_siblings_do() -> None:
    line = timeline("h100x8", [("straggler", 1.0)])
    slow, sibling = line.gpu(5, 60), line.gpu(4, 60)
    assert slow.sm_clock_mhz == 1395
    assert slow.levels.sm > sibling.levels.sm
    assert sibling.sm_clock_mhz > 1900


def test_a_hung_collective_is_busy_by_time_only() -> None:
    levels = timeline("h100x8", [("nccl-hang", 1.0)]).gpu(0, 60).levels
    assert levels.graphics > 0.99
    assert (levels.tensor, levels.nvlink) == (0, 0)


def test_a_reset_gpus_counters_start_again_and_its_siblings_go_on() -> None:
    line = timeline("h100x8", [("gpu-reset", 1.0)])
    before, after = line.gpu(3, 49.9), line.gpu(3, 50.5)
    assert before.joules > 1e9
    assert 0 <= after.joules < 100
    assert line.gpu(2, 50.5).joules > line.gpu(2, 49.9).joules > 1e9


def test_without_nvlink_collectives_take_pcie() -> None:
    levels = timeline("l40s", [("steady", 1.0)]).gpu(0, 10).levels
    assert levels.nvlink == 0
    assert levels.pcie_tx > 10e9


def test_an_array_gives_no_more_than_its_drives() -> None:
    levels = timeline("vm", [("checkpoint-sync", 1.0)]).host_levels(33)[0]
    assert levels.disk_write <= 1.2e9 * 1.05


def test_a_fault_ends_with_its_scenario() -> None:
    line = timeline("h100x8", [("gpu-lost", 60.0), ("steady", 1.0)])
    assert line.active("gpu_lost", 19.9) is None
    assert line.active("gpu_lost", 20) is not None
    assert line.active("gpu_lost", 60) is None


def test_what_was_logged_stays_logged_after_a_switch() -> None:
    line = timeline("h100x8", [("xid-79", 60.0), ("steady", 1.0)])
    assert [event.fault.code for event in line.events(500)] == [79, 154]
    assert not line.events(19)


def test_a_fault_that_a_switch_forestalled_is_never_logged() -> None:
    assert not timeline("h100x8", [("xid-79", 10.0), ("steady", 1.0)]).events(500)


def test_hosts_without_the_device_have_none_of_its_faults() -> None:
    line = timeline("nogpu", [("nvlink-down", 100.0), ("array-degraded", 1.0)])
    assert not line.events(500)
    assert not line.faults(30)


def test_link_errors_are_those_of_one_link_and_stay() -> None:
    line = timeline("h100x8", [("nvlink-down", 60.0), ("steady", 1.0)])
    assert [line.link_errors(3, at).get(17, 0) for at in (14, 16, 500)] == [0, 6, 18]
    assert line.link_errors(2, 500) == {}


def test_the_tour_walks_through_its_stops_and_begins_again() -> None:
    line = timeline("h100x8", [("tour", 1.0)])
    stops = scenario.load("tour").stops
    seen = []
    at = 0.0
    for stop in (*stops, stops[0]):
        seen.append(line.scenario(at + 1))
        at += stop.seconds
    assert seen == [stop.scenario for stop in (*stops, stops[0])]
