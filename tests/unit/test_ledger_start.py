"""What a job does before its first step, and what the exporter finds under way when it starts itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.traces import START, Trace

from gpuhost_exporter.ledger.checkpoint import Watch
from gpuhost_exporter.ledger.piece import Piece, Work
from gpuhost_exporter.ledger.thresholds import Thresholds
from gpuhost_exporter.sources.marker import Mark

EMPTY = 10.0  # seconds for which nobody has the GPUs
RATE = 500e6
SILENT = dict.fromkeys(
    ("graphics_ratio", "sm_active_ratio", "tensor_ratio", "pcie_tx_bytes_per_second", "utilization_ratio"), 0.0
)


class Fetching(Trace):
    """Processes come after EMPTY s, write to disk until `fetched` while their GPUs stand, then train, and from `saving`
    stand and write for 5 s more."""

    fetched = EMPTY + 90.0
    saving = EMPTY + 150.0
    marks = ()

    def stands(self, now):
        at = now - START
        return EMPTY < at <= self.fetched or self.saving < at <= self.saving + 5

    def activity(self, gpu, before, now):
        told = super().activity(gpu, before, now)
        if now - START <= EMPTY:
            return replace(told, **SILENT, processes=())
        return replace(told, **SILENT) if self.stands(now) else told

    def windows(self, before, now):
        if now - START <= EMPTY:
            return ()
        wrote = int(RATE) if self.stands(now) else 0
        return tuple(
            replace(
                window,
                processes=tuple(
                    each._replace(start=START + EMPTY, written_chars=wrote // 2, made_bytes=wrote // 2)
                    for each in window.processes
                ),
            )
            for window in super().windows(before, now)
        )

    def change(self, seen):
        due = tuple(mark for mark in self.marks if mark.at <= self.now)
        self.marks = self.marks[len(due) :]
        return replace(seen, marks=due)


def seconds(trace, account):
    return trace.ledger.books[trace.gpus[0].uuid].totals[account]


@pytest.mark.parametrize("fetched", [90.0, 1500.0], ids=["a minute and a half", "longer than a start may take"])
def test_weights_that_are_fetched_before_the_first_step_are_no_checkpoint_and_the_first_one_after_is(fetched):
    class Slow(Fetching):
        pass

    Slow.fetched, Slow.saving = EMPTY + fetched, EMPTY + fetched + 60
    trace = Slow(("steady", Slow.saving + 30)).run()
    (found,) = trace.checkpoints
    assert found.started - START == pytest.approx(Slow.saving, abs=1)
    assert found.bytes == pytest.approx(5 * RATE, rel=0.05)
    assert seconds(trace, "checkpoint") == pytest.approx(5, abs=0.5)
    assert seconds(trace, "startup") + seconds(trace, "restore") == pytest.approx(min(fetched, 600), abs=2)


def test_a_mark_makes_one_before_the_first_step_too():
    trace = Fetching(("steady", 60))
    pid = trace.gpus[0].pids[0]
    trace.marks = (Mark(START + 30, pid, 1, None, "converted"), Mark(START + 40, pid, 1, 10.0, "converted"))
    (found,) = trace.run().checkpoints
    assert (found.name, found.seconds) == ("converted", 10.0)
    assert found.bytes == pytest.approx(10 * RATE, rel=0.15)


@pytest.mark.parametrize("begin", [31.0, 33.5, 36.0])
def test_one_that_is_under_way_when_the_exporter_starts_is_booked_and_not_whole(begin):
    """The job saves from 30 to 37 s and from 90 to 97 s; a write() that began before counts when it returns."""

    class Late(Trace):
        def windows(self, before, now):
            found = super().windows(before, now)
            if now - START > begin + 2:
                return found
            return tuple(
                replace(each, processes=tuple(told._replace(made_bytes=60 * 10**9) for told in each.processes))
                for each in found
            )

    trace = Late(("checkpoint-sync", 115)).run(begin + tick for tick in range(int(115 - begin)))
    remnant, whole = trace.checkpoints
    assert (remnant.whole, whole.whole) == (False, True)
    assert remnant.gpu_seconds == pytest.approx(2 * (37 - begin) * 0.97, abs=2)
    assert whole.bytes == pytest.approx(140e9, rel=0.05)
    assert whole.seconds == pytest.approx(7, abs=0.5)


def test_nor_is_a_mark_whose_beginning_was_before():
    trace = Fetching(("steady", 260))
    pid = trace.gpus[0].pids[0]
    trace.marks = (Mark(START + 205, pid, 1, 10.0, "old"), Mark(START + 230, pid, 2, 5.0, "new"))
    trace.run(range(200, 250))
    assert {found.name: found.whole for found in trace.checkpoints} == {"old": False, "new": True}


def test_of_a_window_that_is_told_late_the_seconds_count_with_the_bytes():
    """7 GB in the 7 s for which the GPU stands, all told when 3 s of them are settled."""
    watch, found = Watch("j", Thresholds()), []
    pieces = [
        Piece(at, at + 1.0, held=True, busy=busy, profiled=True, working=busy > 0.5, jobs=("j",))
        for at, busy in enumerate([1.0] * 9 + [0.0] * 7 + [1.0] * 9)
    ]
    works = [
        Work(at, until, "process", made, made, 0.0, False, False, {}, "/data")
        for at, until, made in ((0.0, 9.0, 0.0), (9.0, 16.0, 7e9), (16.0, 25.0, 0.0))
    ]
    for step in range(21):
        known = step + 4.5
        told = [each for each in works if each.at <= known]
        ended = watch.advance(step, step + 1.0, [[each for each in pieces if each.at <= known]], told)
        found += [ended] if ended else []
    (one,) = found
    assert one.whole
    assert (one.started, one.seconds, one.stalled) == pytest.approx((9.0, 7.0, 7.0))
    assert one.rate == pytest.approx(1e9, rel=0.01)
