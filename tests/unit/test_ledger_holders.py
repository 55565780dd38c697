"""Who has a GPU, through a while of which nothing is told, and from one job to the next."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.traces import START, Trace

from gpuhost_exporter.sources.nvml.readings import Process

SILENT = dict.fromkeys(("graphics_ratio", "sm_active_ratio", "tensor_ratio", "utilization_ratio"), 0.0)
OFF = 5000  # what the second job's pids are higher by


class Blink(Trace):
    """Nothing is told of the GPUs for some seconds, as while the reader is replaced."""

    begin, seconds = float("inf"), 4.0

    def state(self, index, now):
        return "unknown" if self.begin <= now - START < self.begin + self.seconds else super().state(index, now)


def blink(begin, *history, seconds=4.0):
    trace = Blink(*history)
    trace.begin, trace.seconds = begin, seconds
    trace.run()
    return trace, trace.ledger.books[trace.gpus[0].uuid].totals


def test_a_job_that_hangs_is_not_starting_again_after_a_while_of_which_nothing_is_told():
    _, totals = blink(120.0, ("idle", 20), ("steady", 40), ("nccl-hang", 320))
    assert totals["unknown"] == pytest.approx(4, abs=0.1)
    assert totals["waiting"] == pytest.approx(291, abs=1)
    assert totals["startup"] + totals["restore"] < 3


@pytest.mark.parametrize(
    ("begin", "seconds"), [(76.0, 4.0), (71.0, 10.0), (85.0, 4.0)], ids=["right before it", "for longer", "within it"]
)
def test_nor_is_its_checkpoint_over(begin, seconds):
    """It stands from 80 to 120 s."""
    trace, totals = blink(begin, ("idle", 20), ("steady", 40), ("checkpoint-stall", 90), seconds=seconds)
    (found,) = trace.checkpoints
    assert found.whole
    assert (found.started - START, found.seconds) == pytest.approx((80, 40), abs=0.5)
    assert found.bytes == pytest.approx(140e9, rel=0.01)
    assert totals["checkpoint"] + (totals["unknown"] if begin > 80 else 0) == pytest.approx(38.9, abs=0.5)
    assert totals["startup"] + totals["restore"] < 3


def test_a_checkpoint_of_whose_gpus_nothing_more_is_told_ends():
    class Gone(Blink):
        def state(self, index, now):
            return "unknown" if now - START >= 85 else "ok"

    trace = Gone(("idle", 20), ("steady", 40), ("checkpoint-stall", 90)).run()
    (found,) = trace.checkpoints
    assert found.seconds == pytest.approx(5, abs=1)
    assert not trace.ledger.checkpoints_running()


class Swapped(Trace):
    """At 80 s other processes of another job have the GPUs, after `pause` s without any, and work from 140 s on."""

    pause = 0

    def activity(self, gpu, before, now):
        told, at = super().activity(gpu, before, now), now - START
        if at > 80:
            held = tuple(Process(each.pid + OFF, None) for each in told.processes)
            told = replace(told, processes=held if at > 80 + self.pause else ())
        return replace(told, **SILENT) if 80 < at <= 140 else told

    def windows(self, before, now):
        def moved(process):
            return process._replace(pid=process.pid + OFF, holder=process.pid + OFF, job="slurm:new", cpu_seconds=0.0,
                                    read_chars=0)  # fmt: skip

        found = super().windows(before, now)
        if now - START <= 80:
            return found
        return tuple(
            replace(
                each,
                processes=tuple(map(moved, each.processes)),
                jobs=tuple(job._replace(id="new") for job in each.jobs),
                holders=tuple((pid + OFF, place) for pid, place in each.holders),
            )
            for each in found
        )


@pytest.mark.parametrize("pause", [0, 2])
def test_the_next_job_starts_though_the_gpu_was_never_without_a_process(pause):
    trace = Swapped(("idle", 20), ("steady", 180))
    trace.pause = pause
    totals = trace.run().ledger.books[trace.gpus[0].uuid].totals
    assert totals["startup"] == pytest.approx(61 - pause, abs=1.5)
    assert totals["unallocated"] == pytest.approx(19 + pause, abs=0.5)
    assert totals["held_idle"] < 3


def test_a_process_that_joins_or_leaves_starts_nothing():
    """From 60 s on a second process is there, from 62 s on it alone."""

    class Joined(Trace):
        def activity(self, gpu, before, now):
            told, at = super().activity(gpu, before, now), now - START
            first, second = told.processes, (Process(9999, None),)
            told = replace(told, processes=first if at <= 60 else (*first, *second) if at <= 62 else second)
            return replace(told, **SILENT) if at > 60 else told

    totals = (trace := Joined(("steady", 100))).run().ledger.books[trace.gpus[0].uuid].totals
    assert totals["startup"] + totals["restore"] == 0
