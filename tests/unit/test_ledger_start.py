"""What a job does before its first step, and what the exporter finds under way when it starts itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.traces import START, Trace

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
