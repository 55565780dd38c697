"""The runner: isolation, expiry, ages and self-metrics, with a clock that the test sets."""

from __future__ import annotations

import threading
import time

import pytest
from support.fakes import VALUE, FakeClock, Scripted

from gpuhost_exporter import runner
from gpuhost_exporter.errors import Denied, Hung, Lost, Transient, Unsupported


def task_of(script, interval=1.0):
    clock = FakeClock()
    return runner.Task(Scripted(script), interval, clock), clock


def test_a_failing_device_keeps_what_it_yielded_and_its_siblings():
    def script():
        collector = task.collector
        for device, fails in (("a", False), ("b", True), ("c", False)):
            with collector.guard(device):
                yield VALUE(device, value=1)
                if fails:
                    raise Lost(device)
                yield VALUE(f"{device}2", value=1)

    task, clock = task_of(script)
    task.poll()
    assert [sample.labels[0] for sample in task.fresh(clock.now()).samples] == ["a", "a2", "b", "c", "c2"]
    assert task.collector.errors == {"lost": 1}
    assert task.collector.remarks() == ("b: lost",)
    assert task.succeeded


def test_what_a_device_does_not_have_is_no_failure():
    def script():
        with task.collector.guard("a"):
            raise Unsupported("no such counter")
        yield VALUE("b")

    task, _ = task_of(script)
    task.poll()
    assert not task.collector.errors
    assert task.collector.remarks() == ()


@pytest.mark.parametrize(
    ("error", "kept"),
    [(Transient("busy"), True), (Hung("slow"), True), (Denied("no"), False), (ZeroDivisionError(), False)],
    ids=["transient", "hung", "denied", "defect"],
)
def test_after_a_failure_old_values_stay_only_where_they_may_still_hold(error, kept):
    answers = [None, error]

    def script():
        answer = answers.pop(0)
        if answer:
            raise answer
        yield VALUE("a")

    task, clock = task_of(script)
    task.poll()
    task.poll()
    assert (task.fresh(clock.now()) is not None) is kept
    assert not task.succeeded
    assert sum(task.collector.errors.values()) == 1


@pytest.mark.parametrize(("interval", "limit"), [(1.0, 30.0), (15.0, 45.0)])
def test_a_snapshot_expires_after_three_intervals_or_thirty_seconds(interval, limit):
    task, clock = task_of(lambda: [VALUE("a")], interval)
    task.poll()
    clock.time += limit
    assert task.fresh(clock.now())
    clock.time += 0.1
    assert task.fresh(clock.now()) is None


def samples_of(running):
    return {(s.spec.name, s.labels): s.value for s in running.self_samples()}


def test_ages_and_in_flight_times_are_of_the_moment_of_the_scrape():
    clock = FakeClock()
    running = runner.Runner([(Scripted(lambda: [VALUE("a")]), 1.0)], clock)
    (task,) = running.tasks
    assert ("gpuhost_collector_age_seconds", ("scripted",)) not in samples_of(running), "it has never read"
    task.poll()
    task.in_flight = clock.now()
    clock.time += 7
    seen = samples_of(running)
    assert seen["gpuhost_collector_age_seconds", ("scripted",)] == 7
    assert seen["gpuhost_collector_in_flight_seconds", ("scripted",)] == 7
    assert seen["gpuhost_collector_up", ("scripted",)] == 1
    clock.time += 60
    assert samples_of(running)["gpuhost_collector_up", ("scripted",)] == 0
    assert not any(s.spec is VALUE for s in running.samples())


def test_a_poll_that_never_returns_delays_neither_scrape_nor_its_siblings_nor_the_end():
    block = threading.Event()

    def hang():
        block.wait(30)
        return [VALUE("late")]

    class Clock(FakeClock):
        def now(self):
            return time.monotonic()

        wall = now

    hung, well = Scripted(hang), Scripted(lambda: [VALUE("well")])
    running = runner.Runner([(hung, 0.05), (well, 0.05)], Clock())
    begin = time.monotonic()
    running.start()
    while running.tasks[1].polls < 3:
        assert time.monotonic() - begin < 5
        time.sleep(0.01)
    labels = [s.labels for s in running.samples() if s.spec is VALUE]
    assert labels == [("well",)]
    assert running.waiting() == ("scripted",)
    assert running.tasks[0].polls == 0
    running.stop()
    block.set()
    assert time.monotonic() - begin < 5


def test_a_clock_that_is_set_back_or_forward_does_not_stop_the_ticks():
    task, clock = task_of(lambda: [VALUE("a")], 15.0)
    for wall in (1e9, 1e9 - 86400, 2e9, 7.5):
        clock.time = wall
        assert 0 < task._pause() <= 15.0


@pytest.mark.parametrize("wall", [1e9 + 0.2, 1e9 + 7.95, 1e9 + 0.05])
def test_collectors_tick_at_the_same_time_on_every_host_eight_together(wall):
    clock = FakeClock()
    clock.time = wall
    intervals = [1.0] * 9 + [15.0] * 8
    running = runner.Runner([(Scripted(list), interval) for interval in intervals], clock)
    ticks = [(wall + task._pause()) % task.interval for task in running.tasks]
    assert all(min(tick, 1.0 - tick) < 1e-4 for tick in ticks[:8])
    assert ticks[8:] == pytest.approx([0.1] * 8 + [0.2], abs=1e-4)
