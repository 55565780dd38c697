"""What following the GPUs' processes costs: CPU time of the reader, and time of the process that is looked at."""

from __future__ import annotations

import contextlib
import pickle
import time

import pytest
from support.crowd import Victim, others
from support.fakes import FakeClock
from support.worker import Worker

from gpuhost_exporter.clock import SystemClock
from gpuhost_exporter.sources.files import Root
from gpuhost_exporter.sources.follow import Follower

pytestmark = [pytest.mark.slow, pytest.mark.alone]

CPU_SECONDS_A_MINUTE = 0.35


def test_eight_holders_with_seven_workers_each_among_two_thousand_others(capsys):
    clock = FakeClock()
    clock.time = SystemClock().now()
    with contextlib.ExitStack() as stack:
        holders = [stack.enter_context(Worker()) for _ in range(8)]
        for holder in holders:
            for _ in range(7):
                holder.do("fork")
            holder.do("threads", 150)
        stack.enter_context(others(2000))
        follower = Follower(Root(), clock)
        holding = {f"GPU-{index}": [holder.pid] for index, holder in enumerate(holders)}
        follower.look(holding)
        begin = time.process_time()
        for _ in range(60):
            clock.time += 1.0
            evidence = follower.look(holding)
            pickle.dumps(evidence, protocol=5)
        spent = time.process_time() - begin
    assert len(evidence.processes) == 64
    with capsys.disabled():
        print(f"\n{spent:.2f} CPU s a minute (aim {CPU_SECONDS_A_MINUTE})")
    assert spent < CPU_SECONDS_A_MINUTE


def test_a_process_with_500_threads_does_not_feel_being_looked_at(capsys):
    """Twenty looks a second in place of one: median and 99th percentile of two system calls, in microseconds."""
    best = {}
    with Victim() as victim:
        for rate in (0, 20) * 3:
            follower = Follower(Root(), SystemClock())
            victim.start(3.0)
            end = time.monotonic() + 2.8
            while rate and time.monotonic() < end:
                follower.look({"GPU-0": [victim.pid]})
                time.sleep(1 / rate)
            took = victim.finish()
            told = [took[len(took) // 2], took[len(took) * 99 // 100]]
            best[rate] = min(best.get(rate, told), told)
    with capsys.disabled():
        print(f"\nmedian, 99 %: {best[0]} us left alone, {best[20]} us looked at")
    assert best[20][0] < 1.5 * best[0][0]
    assert best[20][1] < 2 * best[0][1] + 50
