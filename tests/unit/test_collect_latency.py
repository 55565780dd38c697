"""Rounds, skipped rounds and allreduce results, as series."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from support.gpus import FakeNvml, host_of

from gpuhost_exporter.collectors import latency
from gpuhost_exporter.collectors.latency import LatencyCollector
from gpuhost_exporter.errors import Malformed
from gpuhost_exporter.latency.collective import SUBJECT, Collective, parse
from gpuhost_exporter.sources.latency.results import Rejections, Round, Skipped
from gpuhost_exporter.sources.state import State


@pytest.fixture
def collector(tmp_path):
    host = host_of(FakeNvml(), tmp_path)
    host.state = State(str(tmp_path / "state"))
    yield LatencyCollector(host)
    host.state.close()


def poll(collector):
    """name without prefix -> {labels: value}."""
    found = {}
    for sample in collector.poll(collector.host.clock.now()):
        found.setdefault(sample.spec.name.removeprefix("gpuhost_fabric_"), {})[sample.labels] = sample.value
    return found


def told(collector, *results):
    for result in results:
        collector.host.latency.put(result)
    return poll(collector)


def tcp(*seconds, sent=0, lost=0, at=50.0):
    return Round("b", "tcp", seconds, sent or len(seconds) + lost, lost, at)


TCP = ("b", "tcp")


def test_a_round_is_a_histogram_a_median_and_when(collector):
    found = told(collector, tcp(4e-6, 5e-6, 6e-6, 0.2))
    buckets = found["round_trip_seconds"]
    assert buckets["b", "tcp", "4e-06"] == 1
    assert buckets["b", "tcp", "5e-06"] == 2, "the bound itself is inside"
    assert buckets["b", "tcp", "7e-06"] == 3
    assert buckets["b", "tcp", "0.1"] == 3
    assert buckets["b", "tcp", "+Inf"] == buckets["b", "tcp", "count"] == 4
    assert buckets["b", "tcp", "sum"] == pytest.approx(0.200015)
    assert found["round_trip_median_seconds"] == {TCP: pytest.approx(5.5e-6)}
    assert found["probe_timestamp_seconds"] == {TCP: 50.0}


def test_the_buckets_reach_from_a_microsecond_to_100_milliseconds_and_hold_the_target(collector):
    assert (latency.BOUNDS[0], latency.BOUNDS[-1]) == (1e-6, 0.1)
    assert collector.host.targets.guide.collective_latency_seconds in latency.BOUNDS
    assert list(latency.BOUNDS) == sorted(set(latency.BOUNDS))


def test_loss_is_of_the_last_twenty_rounds_and_the_counters_of_all(collector):
    found = told(collector, *(tcp(1e-4, sent=50, lost=50) for _ in range(20)))
    assert found["probe_loss_ratio"] == {TCP: 1.0}
    found = told(collector, *(tcp(1e-4, sent=50, lost=lost) for lost in [10, *[0] * 19]))
    assert found["probe_loss_ratio"] == {TCP: 10 / 1000}
    assert found["probe_messages_total"] == {TCP: 2000}
    assert found["probe_lost_total"] == {TCP: 1010}


def test_a_peer_that_is_down_has_loss_and_no_latency(collector):
    found = told(collector, tcp(sent=3, lost=3))
    assert found["probe_loss_ratio"] == {TCP: 1.0}
    assert "round_trip_median_seconds" not in found
    assert found["round_trip_seconds"]["b", "tcp", "count"] == 0


PRESENT = {"round_trip_median_seconds", "round_trip_drift_ratio"}


def later(collector, seconds):
    collector.host.clock.time += seconds
    return set(poll(collector))


def test_a_peer_that_was_up_and_goes_down_has_no_latency_any_more(collector):
    found = told(collector, *(tcp(1e-4) for _ in range(20)), Round("b", "rdma", (3e-6,), 0, 0, 50.0))
    assert set(found["round_trip_median_seconds"]) == {TCP, ("b", "rdma")}
    assert set(found["round_trip_drift_ratio"]) == {TCP}
    found = told(collector, tcp(sent=3, lost=3, at=80.0))
    assert set(found["round_trip_median_seconds"]) == {("b", "rdma")}, "no test of perftest's has failed yet"
    assert "round_trip_drift_ratio" not in found
    assert found["probe_timestamp_seconds"][TCP] == 80.0
    assert found["round_trip_seconds"]["b", "tcp", "count"] == 20, "counters stay"
    found = told(collector, tcp(2e-4, at=110.0))
    assert found["round_trip_median_seconds"][TCP] == 2e-4
    assert found["round_trip_drift_ratio"][TCP] == 1.0, "the path's past is still known"


def test_a_median_is_gone_three_intervals_after_its_round_and_a_late_one_does_not_end_it(collector):
    assert set(told(collector, *(tcp(1e-4) for _ in range(20)))) >= PRESENT
    assert later(collector, 100.0) >= PRESENT
    gone = later(collector, 10.0)
    assert not PRESENT & gone
    assert {"round_trip_seconds", "probe_timestamp_seconds", "probe_loss_ratio"} <= gone
    assert told(collector, tcp(3e-4, at=900.0))["round_trip_median_seconds"] == {TCP: 3e-4}


def test_a_median_lasts_by_the_interval_that_is_configured(collector):
    collector.host.settings = SimpleNamespace(latency=SimpleNamespace(interval=600.0))
    collector = LatencyCollector(collector.host)
    told(collector, *(tcp(1e-4) for _ in range(20)))
    assert later(collector, 1800.0) >= PRESENT
    assert not later(collector, 400.0) & PRESENT


def test_when_perftest_begins_to_fail_its_last_median_goes(collector):
    told(collector, Round("b", "rdma", (3e-6,), 0, 0, 50.0))
    failed = Skipped("b", "rdma", "failed", "exit status 1: no device")
    assert "round_trip_median_seconds" in told(collector, failed), "one that did not take place tells nothing"
    for _ in range(4):
        collector.host.clock.time += 30.0
        found = told(collector, tcp(1e-4), failed)
    assert found["round_trip_median_seconds"] == {TCP: 1e-4}


def test_drift_compares_the_last_ten_rounds_with_those_before(collector):
    found = told(collector, *(tcp(1e-4) for _ in range(19)))
    assert "round_trip_drift_ratio" not in found
    assert told(collector, tcp(1e-4))["round_trip_drift_ratio"] == {TCP: 1.0}
    found = told(collector, *(tcp(3e-4) for _ in range(10)))
    assert found["round_trip_drift_ratio"] == {TCP: pytest.approx(3.0)}


def test_a_day_of_rounds_is_kept_and_no_more(collector):
    told(collector, *(tcp(1e-4) for _ in range(900)))
    for _ in range(3):
        found = told(collector, *(tcp(2e-4) for _ in range(1000)))
    assert found["round_trip_drift_ratio"] == {TCP: 1.0}
    assert len(collector._paths[TCP].medians) == 2890


def test_rdma_tells_no_loss_because_the_adapter_sends_again(collector):
    found = told(collector, Round("b", "rdma", (3e-6, 3e-6), 0, 0, 50.0))
    assert found["round_trip_seconds"]["b", "rdma", "3e-06"] == 2
    assert not {"probe_loss_ratio", "probe_messages_total", "probe_lost_total"} & set(found)


def test_what_did_not_take_place_is_counted_by_reason_and_explained_until_it_does(collector):
    failed = Skipped("b", "rdma", "failed", "exit status 1: no device")
    found = told(collector, failed, failed, Skipped("b", "tcp", "peer_busy"), Rejections("b", "forged", 3))
    assert found == {
        "probe_skipped_total": {("b", "rdma", "failed"): 2, ("b", "tcp", "peer_busy"): 1},
        "probe_rejected_total": {("b", "forged"): 3},
    }
    assert collector.remarks() == ("rdma to b: exit status 1: no device",)
    told(collector, Round("b", "rdma", (3e-6,), 0, 0, 50.0))
    assert collector.remarks() == ()


def test_without_a_round_there_is_no_series(collector):
    assert poll(collector) == {}
    assert collector.remarks() == (), "not configured is no failure"


def left(collector, **changed):
    """What `gpuhost-exporter allreduce` leaves."""
    result = {"at": 2000.0, "ranks": 16, "hosts": 2, "bytes": 8, "seconds": (4e-6, 6e-6), **changed}
    collector.host.state.replace(SUBJECT, Collective(**result).data())


def test_an_allreduce_is_taken_up_once(collector):
    left(collector)
    for _ in range(3):
        found = poll(collector)
    assert found["round_trip_seconds"]["all", "mpi", "count"] == 2
    assert found["round_trip_median_seconds"] == {("all", "mpi"): pytest.approx(5e-6)}
    assert found["collective_ranks"] == {(): 16}
    assert "probe_loss_ratio" not in found
    collector.host.clock.time += 20 * 3600.0
    found = poll(collector)
    assert found["round_trip_median_seconds"] == {("all", "mpi"): pytest.approx(5e-6)}, "until the next night's"
    assert found["probe_timestamp_seconds"] == {("all", "mpi"): 2000.0}, "its age can be told"
    left(collector, at=3000.0, seconds=(4e-6,))
    assert poll(collector)["round_trip_seconds"]["all", "mpi", "count"] == 3


def test_an_allreduce_that_the_process_before_has_counted_is_not_counted_again(collector):
    left(collector, at=collector.host.clock.wall() - 1.0)
    assert poll(collector) == {"collective_ranks": {(): 16}}


@pytest.mark.parametrize(
    "data",
    [{"at": 1.0}, {"seconds": []}, {"seconds": [1]}, {"seconds": [float("nan")]}, {"ranks": 0}, {"hosts": True}],
    ids=str,
)
def test_a_result_that_is_none_is_refused(data):
    good = Collective(2.0, 2, 1, 8, (1e-6,)).data()
    assert parse(good) == Collective(2.0, 2, 1, 8, (1e-6,))
    assert parse({}) is None
    with pytest.raises(Malformed):
        parse(data if data == {"at": 1.0} else {**good, **data})
