"""Jobs whose GPUs idle in part while they work, as inference does, or training in a virtual machine."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.traces import START, Trace

RATE = 500e6
BEGIN, END = 60.0, 120.0  # of what is written
ALL = 0.96  # the simulated job's busy share


class Gappy(Trace):
    """Busy for `share` of each second; its GPUs stand for `dip` s from BEGIN on, and it writes until END."""

    share, dip = 0.85, 0.0

    def activity(self, gpu, before, now):
        told = super().activity(gpu, before, now)
        if before is None:
            return told
        busy = 0.0 if BEGIN < now - START <= BEGIN + self.dip else self.share
        names = ("graphics_ratio", "sm_active_ratio", "tensor_ratio", "memory_bandwidth_ratio")
        scaled = {name: getattr(told, name) * busy / ALL for name in names}
        return replace(told, **scaled, pcie_tx_bytes_per_second=0.0, pcie_rx_bytes_per_second=0.0)

    def windows(self, before, now):
        wrote = int(RATE / len(self.gpus)) if BEGIN < now - START <= END else 0
        return tuple(
            replace(
                window,
                processes=tuple(each._replace(written_chars=wrote, made_bytes=wrote) for each in window.processes),
            )
            for window in super().windows(before, now)
        )


def run(share, dip):
    trace = Gappy(("steady", END + 30))
    trace.share, trace.dip = share, dip
    trace.run()
    return trace.checkpoints, trace.ledger.books[trace.gpus[0].uuid].totals["checkpoint"]


@pytest.mark.parametrize("share", [0.96, 0.88, 0.8, 0.7])
def test_writes_beside_work_with_gaps_are_no_stall(share):
    (found,), booked = run(share, dip=1.0)
    assert found.mode == "async"
    assert found.stalled == pytest.approx(1, abs=0.1)
    assert booked == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("share", [0.96, 0.85, 0.7])
def test_nor_do_gaps_alone_make_a_checkpoint(share):
    assert run(share, dip=0.0) == ([], 0)


@pytest.mark.parametrize("share", [0.96, 0.7])
def test_a_stall_of_all_their_time_is_one(share):
    (found,), booked = run(share, dip=END - BEGIN)
    assert found.mode == "sync"
    assert (found.started - START, found.seconds) == pytest.approx((BEGIN, END - BEGIN), abs=0.1)
    assert booked == pytest.approx(60, abs=1)


def test_a_job_that_idles_for_half_of_the_time_of_its_checkpoint_stands_for_it():
    class Half(Gappy):
        def activity(self, gpu, before, now):
            self.share = 0.4 if BEGIN < now - START <= BEGIN + 40 else ALL
            return super().activity(gpu, before, now)

    (found,) = Half(("steady", END + 30)).run().checkpoints
    assert found.stalled == pytest.approx(40, abs=1)
