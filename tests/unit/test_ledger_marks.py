"""Checkpoints that training scripts mark: exact where evidence is of a second, and only of the job that marks."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.traces import START, Trace

from gpuhost_exporter.ledger.marks import Marks
from gpuhost_exporter.ledger.thresholds import Thresholds
from gpuhost_exporter.sources.marker import Mark

LAG = 12
PERIOD = 30.0
FROM, UNTIL = 10.3, 14.62  # of each period: all GPUs stand


def stood(now):
    whole, part = divmod(now - START, PERIOD)
    return whole * (UNTIL - FROM) + min(max(part - FROM, 0.0), UNTIL - FROM)


class Marked(Trace):
    """GPUs stand from FROM to UNTIL in each period, without a byte.

    `marks`: (moment, GPU, serial, seconds or None), and whether it starts alone.
    """

    standing = True

    def __init__(self, *marks, seconds=60, count=2, scenario="steady", **options):
        super().__init__((scenario, seconds + LAG), count=count, **options)
        self.marks = sorted(marks, key=lambda mark: mark[0])

    def activity(self, gpu, before, now):
        told = super().activity(gpu, before, now)
        if before is None or not self.standing:
            return told
        busy = 1 - (stood(now) - stood(before)) / (now - before)
        ratios = ("graphics_ratio", "tensor_ratio", "pcie_tx_bytes_per_second", "pcie_rx_bytes_per_second")
        return replace(told, **{name: getattr(told, name) * busy for name in ratios})

    def change(self, seen):
        came = [mark for mark in self.marks if START + mark[0] <= self.now]
        self.marks = self.marks[len(came) :]
        marks = [
            Mark(
                START + at,
                index if index >= 1000 else self.gpus[index].pids[0],
                serial,
                seconds,
                f"step-{serial}",
                *more,
            )
            for at, index, serial, seconds, *more in came
        ]
        return replace(seen, marks=marks)


def span(index=0, serial=1, since=FROM, until=UNTIL):
    return (since, index, serial, None), (until, index, serial, until - since)


def booked(trace, index=0):
    return trace.ledger.books[trace.gpus[index].uuid].totals["checkpoint"]


def test_a_marked_checkpoint_begins_and_ends_when_it_does_and_is_the_time_that_gpus_stood():
    trace = Marked(*span(), seconds=28).run()
    (found,) = trace.checkpoints
    assert found.started - START == pytest.approx(FROM, abs=1e-6)
    assert found.seconds == pytest.approx(UNTIL - FROM, abs=1e-6)
    assert (found.name, found.mode) == ("step-1", "sync")
    assert found.bytes < 256e6, "too small for evidence to see"
    assert [booked(trace, index) for index in (0, 1)] == pytest.approx([UNTIL - FROM] * 2, rel=0.01)
    assert found.gpu_seconds == pytest.approx(2 * (UNTIL - FROM), rel=0.01)
    assert trace.ledger.marks == {"taken": 2}
    assert not trace.ledger.checkpoints_running()


def test_without_a_mark_the_same_is_no_checkpoint():
    trace = Marked(seconds=28).run()
    assert not trace.checkpoints
    assert booked(trace) == 0


def test_what_gpus_stand_for_beside_the_mark_is_not_booked_to_it():
    trace = Marked(*span(since=11.0, until=12.0), seconds=28).run()
    assert booked(trace) == pytest.approx(1.0, abs=0.01)
    assert trace.checkpoints[0].seconds == pytest.approx(1.0)


def test_one_that_the_gpus_work_through_costs_nothing_and_is_async():
    trace = Marked(*span(since=16.0, until=26.0), seconds=28).run()
    (found,) = trace.checkpoints
    assert (found.mode, found.stalled) == ("async", 0)
    assert booked(trace) == pytest.approx(0, abs=0.01)


def test_ranks_that_mark_the_same_are_one_checkpoint_of_the_job():
    trace = Marked(*span(0), *span(1, since=10.6, until=14.9), seconds=28).run()
    (found,) = trace.checkpoints
    assert (found.started - START, found.seconds) == pytest.approx((10.3, 4.6), abs=1e-6)


def test_two_in_a_row_are_two():
    trace = Marked(*span(until=12.0), *span(serial=2, since=12.1), seconds=28).run()
    assert [found.seconds for found in trace.checkpoints] == pytest.approx([1.7, 2.52], abs=1e-6)
    assert booked(trace) == pytest.approx(UNTIL - FROM - 0.1, abs=0.03)


@pytest.mark.parametrize("inner", [(11.0, 12.0), (13.0, 13.5), (20.0, 27.0)], ids=["early", "late", "until later"])
def test_one_within_or_beside_another_of_the_same_process_ends_only_itself(inner):
    since, until = inner
    trace = Marked(*span(until=26.0), *span(serial=2, since=since, until=until), seconds=38).run()
    (found,) = trace.checkpoints
    assert (found.name, found.started - START) == ("step-1", pytest.approx(FROM, abs=1e-6))
    assert found.seconds == pytest.approx(max(26.0, until) - FROM, abs=1e-6)
    assert [booked(trace, index) for index in (0, 1)] == pytest.approx([UNTIL - FROM] * 2, rel=0.01)


def test_spans_that_are_never_ended_are_no_more_than_so_many():
    marks = Marks("job", Thresholds(), 0.0)
    for serial in range(5000):
        marks.take(Mark(100.0, 1, serial, None, ""))
    assert len(marks._spans) == 512
    marks.forget(4000.0, {1})
    assert not marks


def test_evidence_of_the_same_one_makes_no_second_and_gives_the_bytes():
    trace = Marked(*span(since=30.0, until=37.0), seconds=58, scenario="checkpoint-sync")
    trace.standing = False
    (found,) = trace.run().checkpoints
    assert (found.name, found.mount, found.mode) == ("step-1", "/data", "sync")
    assert found.bytes == pytest.approx(140e9, rel=0.05)
    assert found.gpu_seconds == pytest.approx(2 * 7 * 0.97, rel=0.01)


def test_a_start_that_was_not_heard_is_known_from_the_end():
    _, end = span()
    (found,) = Marked(end, seconds=28).run().checkpoints
    assert (found.started - START, found.seconds) == pytest.approx((FROM, UNTIL - FROM), abs=1e-6)


def test_one_whose_end_was_not_heard_has_no_length_and_stops_at_the_next():
    lost, _ = span()
    start, end = span(serial=2, since=FROM + PERIOD, until=UNTIL + PERIOD)
    trace = Marked(lost, (*start, True), end, seconds=58).run()
    (found,) = trace.checkpoints
    assert found.name == "step-2"
    assert not trace.ledger.checkpoints_running()


def test_one_whose_process_ended_is_over():
    class Killed(Marked):
        def activity(self, gpu, before, now):
            return replace(super().activity(gpu, before, now), processes=() if now - START > 13 else self.held(gpu))

        def held(self, gpu):
            return super().activity(gpu, None, START).processes

        def windows(self, before, now):
            found = super().windows(before, now)
            return [replace(each, processes=(), holders=(), jobs=()) for each in found] if now - START > 13 else found

    trace = Killed(span()[0], seconds=28).run()
    assert not trace.checkpoints
    assert not trace.ledger.checkpoints_running()
    assert booked(trace) < 13 - FROM + 0.1


def test_a_mark_is_its_own_job_s_alone_and_a_stranger_s_nobody_s():
    class Two(Marked):
        def job(self, index):
            return "1" if index == 0 else "2"

    trace = Two(*span(), (11.0, 4_000_000, 7, None), seconds=28, count=2).run()
    assert booked(trace, 0) == pytest.approx(UNTIL - FROM, rel=0.01)
    assert booked(trace, 1) == 0
    assert {found.job for found in trace.checkpoints} == {"slurm:1"}
    assert trace.ledger.marks == {"taken": 2, "unowned": 1}


def test_marks_of_a_holder_count_where_processes_are_not_told():
    trace = Marked(*span(), seconds=28, processes=False).run()
    assert booked(trace) == pytest.approx(UNTIL - FROM, rel=0.01)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_any_marks_book_each_second_once(seed):
    draw = random.Random(seed)
    marks = [
        (
            draw.uniform(0, 40),
            draw.choice([0, 1, 1000]),
            draw.randrange(4),
            draw.choice([None, draw.uniform(0, 90)]),
            draw.choice([False, True]),
        )
        for _ in range(draw.randrange(12))
    ]
    trace = Marked(*marks, seconds=40).run()
    for book in trace.ledger.books.values():
        assert sum(book.totals.values()) == pytest.approx(book.booked - book.began, abs=1e-6)
        assert all(seconds >= 0 for seconds in book.totals.values())
    assert all(found.seconds >= found.stalled - 1e-6 >= -1e-6 and found.gpu_seconds >= 0 for found in trace.checkpoints)
