"""The same checkpoint by each rung of the evidence ladder: 140 GB in 7 s, which drives take as slowly as they can."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.traces import Trace

from gpuhost_exporter.ledger.piece import works
from gpuhost_exporter.ledger.thresholds import Thresholds
from gpuhost_exporter.sources.evidence import CgroupIo, DeviceIo, HostIo

DRAINED = 3e9  # bytes per second that the drive takes
LIMITS = Thresholds()


class Unread(Trace):
    """Processes that may not be read; what they write goes through the page cache, or around it."""

    direct = False
    rung = "cgroup"
    dirty = 0.0

    def windows(self, before, now):
        return tuple(self.seen(each) for each in super().windows(before, now))

    def seen(self, window):
        wrote = sum(each.written_chars for each in window.processes)
        dirtied = 0 if self.direct else wrote
        drained = min(self.dirty + dirtied, DRAINED * (window.at - window.since))
        self.dirty += dirtied - drained
        taken = int(wrote if self.direct else drained)
        job = window.jobs[0].key if window.jobs else None
        group = CgroupIo("/job", job, 0, taken, taken + dirtied - int(drained), None, None, None)
        host = HostIo(dirtied, 0 if self.direct else int(drained), (DeviceIo("nvme0n1", 0, taken),))
        return replace(
            window,
            processes=tuple(each._replace(denied=True) for each in window.processes),
            cgroups=(group,) if self.rung == "cgroup" else (),
            host=host,
        )


@pytest.mark.parametrize("direct", [False, True], ids=["through the page cache", "direct"])
@pytest.mark.parametrize("rung", ["cgroup", "host"])
@pytest.mark.parametrize("skew", [0.0, 0.6])
def test_bytes_and_rate_are_the_jobs_on_every_rung(rung, direct, skew):
    trace = Unread(("checkpoint-sync", 110), skew=skew)
    trace.rung, trace.direct = rung, direct
    trace.run()
    assert {trace.ledger.rung(piece) for piece in trace.ledger.latest.values()} == {rung}
    assert trace.dirty < 140e9, "the first one went through the drive while it was looked at"
    assert [found.bytes for found in trace.checkpoints] == pytest.approx([140e9, 140e9], rel=0.05)
    assert [found.seconds for found in trace.checkpoints] == pytest.approx([7, 7], abs=0.5)
    assert [found.rate for found in trace.checkpoints] == pytest.approx([20e9, 20e9], rel=0.1)


@pytest.mark.parametrize(
    ("dirtied", "written", "devices", "expected"),
    [
        (10e9, 3e9, 3e9, 10e9),
        (0, 3e9, 3e9, 0),
        (0, 0, 5e9, 5e9),
        (10e9, 3e9, 8e9, 15e9),
        (10e9, 3e9, 1e9, 10e9),
        (10e9, None, None, 10e9),
        (None, None, 5e9, 5e9),
    ],
    ids=[
        "as it is dirtied",
        "not again as it drains",
        "direct alone",
        "both",
        "to a network file system",
        "no devices",
        "devices alone",
    ],
)
def test_of_the_whole_host_what_drives_take_counts_only_beyond_the_page_cache(dirtied, written, devices, expected):
    (window,) = Unread(("steady", 10)).windows(1000.0, 1001.0)
    moved = None if devices is None else (DeviceIo("nvme0n1", 0, devices),)
    told = works(replace(window, cgroups=(), host=HostIo(dirtied, written, moved)), LIMITS)["slurm:90017"]
    assert (told.rung, told.wrote, told.made) == ("host", expected, expected)


@pytest.mark.parametrize(("dirtied", "expected"), [(10e9, 10e9), (0, 0), (None, 3e9)])
def test_of_a_control_group_what_it_dirtied_counts_alone_where_that_is_told(dirtied, expected):
    (window,) = Unread(("steady", 10)).windows(1000.0, 1001.0)
    group = CgroupIo("/job", "slurm:90017", 0, 3e9, dirtied, None, None, None)
    told = works(replace(window, cgroups=(group,)), LIMITS)["slurm:90017"]
    assert (told.rung, told.wrote, told.made) == ("cgroup", expected, expected)
