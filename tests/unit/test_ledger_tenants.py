"""Several jobs on one GPU, and a GPU in MIG instances: what is booked is decided, and said in the metric's help."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.traces import START, Trace

from gpuhost_exporter.collectors.ledger import EVIDENCE, TIME
from gpuhost_exporter.ledger.culprit import Culprits
from gpuhost_exporter.ledger.piece import companions, works
from gpuhost_exporter.ledger.thresholds import Thresholds
from gpuhost_exporter.sources.evidence import CgroupIo, HostIo, MountIo

LAG = 3.5


class Shared(Trace):
    """Both jobs have both GPUs; the second one never writes."""

    unread = False

    def job(self, index):
        return str(index + 1)

    def activity(self, gpu, before, now):
        told = super().activity(gpu, before, now)
        both = tuple(
            process for each in self.gpus for process in super(Shared, self).activity(each, None, now).processes
        )
        return replace(told, processes=both)

    def windows(self, before, now):
        def changed(sample):
            if sample.job == "slurm:1":
                return sample
            return sample._replace(written_chars=0, denied=self.unread)

        found = super().windows(before, now)
        return tuple(replace(each, processes=tuple(map(changed, each.processes))) for each in found)


def test_a_checkpoint_of_one_tenant_is_booked_once_and_to_no_other():
    trace = Shared(("checkpoint-sync", 120 + LAG)).run()
    assert {found.job for found in trace.checkpoints} == {"slurm:1"}
    for index in (0, 1):
        assert trace.shares(index)["checkpoint"] == pytest.approx(7 / 60 * 0.97, abs=0.01)
    assert sum(found.gpu_seconds for found in trace.checkpoints) == pytest.approx(2 * 2 * 7 * 0.97, rel=0.05)
    assert "a checkpoint of one is booked though the others may have idled" in TIME.help


@pytest.mark.parametrize(("unread", "rung"), [(False, "process"), (True, "none")])
def test_of_several_tenants_the_one_whose_bytes_are_known_worst_says_how_good_the_evidence_is(unread, rung):
    trace = Shared(("steady", 10))
    trace.unread = unread
    trace.run()
    assert {trace.ledger.rung(piece) for piece in trace.ledger.latest.values()} == {rung}
    assert "the one known worst" in EVIDENCE.help


class Partitioned(Trace):
    """GPU 0 is cut into instances: neither GPM nor NVML tells how busy it is as a whole."""

    held = True

    def activity(self, gpu, before, now):
        told = super().activity(gpu, before, now)
        if gpu.index:
            return told
        silent = dict.fromkeys(("graphics_ratio", "sm_active_ratio", "tensor_ratio", "utilization_ratio"))
        return replace(told, gpm="mig", processes=told.processes if self.held else (), **silent)


def test_a_gpu_in_instances_is_unknown_while_it_is_held_and_its_whole_siblings_are_not():
    trace = Partitioned(("steady", 60)).run()
    assert trace.shares(0) == {"unknown": 1.0}
    assert "unknown" not in trace.shares(1)
    assert "A GPU in MIG instances is unknown" in TIME.help


def test_a_gpu_in_instances_that_nobody_has_is_unallocated():
    trace = Partitioned(("steady", 60))
    trace.held = False
    assert trace.run().shares(0) == {"unallocated": 1.0}


class Late(Trace):
    """Processes that do nothing, on GPUs that stand; whose they are is told after `late` s. Others write meanwhile."""

    late = 2.5

    def activity(self, gpu, before, now):
        told = super().activity(gpu, before, now)
        return replace(told, graphics_ratio=0.0, sm_active_ratio=0.0, tensor_ratio=0.0, pcie_tx_bytes_per_second=0.0)

    def windows(self, before, now):
        def silent(window):
            if now - START < self.late:
                window = replace(window, processes=(), jobs=(), holders=())
            processes = tuple(each._replace(written_chars=0, made_bytes=0) for each in window.processes)
            return replace(window, processes=processes, host=HostIo(10**9, 0, ()))

        return tuple(map(silent, super().windows(before, now)))


def test_a_gpu_whose_holder_is_told_late_has_no_checkpoint_of_everybodys():
    trace = Late(("steady", 120)).run()
    assert not trace.checkpoints
    assert not trace.ledger.checkpoints_running()
    assert "checkpoint" not in trace.shares()


def test_nor_one_that_outlives_the_time_until_then():
    trace = Late(("steady", 120))
    trace.late = 8.0
    trace.run()
    assert not trace.ledger.checkpoints_running()
    assert all(found.started + found.seconds - START <= 10 for found in trace.checkpoints)
    assert trace.ledger.books[trace.gpus[0].uuid].totals["checkpoint"] <= 8
    assert {piece.jobs for piece in trace.ledger.latest.values()} == {("slurm:90017",)}


def test_a_gpu_that_nobody_owns_up_to_belongs_to_the_host_and_its_writes_make_a_checkpoint():
    trace = Late(("steady", 60))
    trace.late = 1000.0
    trace.run()
    assert trace.ledger.checkpoints_running().keys() == {"host"}
    assert trace.shares()["checkpoint"] > 0.9


def window(moved, *, point=None, denied=False):
    """100 MB by one holder; `moved`: what the device of a mount took meanwhile."""
    (told,) = Trace(("steady", 10)).windows(1000.0, 1001.0)
    holder = told.processes[0]._replace(written_chars=10**8, mount=point, denied=denied)
    io = CgroupIo("/job", holder.job, 0, 10**8, None, None, None, None)
    host = HostIo(None, None, None, None if moved is None else MountIo("/data", moved))
    return replace(told, processes=(holder,), cgroups=(io,), host=host)


@pytest.mark.parametrize("denied", [False, True], ids=["its own bytes are read", "only its control group's"])
@pytest.mark.parametrize(
    ("point", "moved", "expected"),
    [
        ("/home", 10**8, "/home"),
        (None, 10**8, "/data"),
        (None, 5 * 10**7, "/data"),
        (None, 4 * 10**7, ""),
        (None, 0, ""),
        (None, None, ""),
    ],
    ids=["open files tell", "the device that moved", "half of it", "too little", "nothing", "not told"],
)
def test_where_open_files_do_not_tell_the_device_that_took_the_bytes_names_the_mount(point, moved, expected, denied):
    found = works(window(moved, point=point, denied=denied), Thresholds())["slurm:90017"]
    assert (found.rung, found.mount) == ("cgroup" if denied else "process", expected)


def test_a_gpu_is_blocked_only_by_processes_of_its_own_holder():
    (told,) = Trace(("steady", 10)).windows(1000.0, 1001.0)
    first, second = (each._replace(threads_blocked=0) for each in told.processes)
    writer = first._replace(pid=7, holder=first.pid, gpus=(), role="writer", threads_blocked=1)

    def blocked(*processes):
        return works(replace(told, processes=processes), Thresholds())["slurm:90017"].blocked

    assert blocked(first, second) == frozenset()
    assert blocked(first, second, writer) == set(first.gpus)
    assert blocked(first, second._replace(threads_blocked=2)) == set(second.gpus)


PODS = (("podA", 0), ("podA", 1), ("podB", 2), ("podB", 3))


class Pods(Trace):
    """Ranks of one job in two pods: the first saves from 30 to 70 s, the second spins for it."""

    meets = "job-master-0:23456"

    def job(self, index):
        return PODS[index][0]

    def saves(self, now):
        return 30 < now - START <= 70

    def activity(self, gpu, before, now):
        told = super().activity(gpu, before, now)
        told = replace(told, pcie_tx_bytes_per_second=0.0, pcie_rx_bytes_per_second=0.0)
        if before is None or not self.saves(now):
            return told
        spins = gpu.index >= 2
        return replace(told, graphics_ratio=float(spins), sm_active_ratio=0.02 * spins, tensor_ratio=0.0,
                       memory_bandwidth_ratio=0.0, nvlink_tx_bytes=0, nvlink_rx_bytes=0)  # fmt: skip

    def windows(self, before, now):
        def changed(sample):
            wrote = 10**9 if self.saves(now) and sample.job == "slurm:podA" else 0
            return sample._replace(written_chars=wrote, made_bytes=wrote)

        return tuple(
            replace(
                each,
                processes=tuple(map(changed, each.processes)),
                jobs=tuple(
                    job._replace(rank=rank, rendezvous=self.meets)
                    for job, (_, rank) in zip(each.jobs, PODS, strict=True)
                ),
            )
            for each in super().windows(before, now)
        )


def pods(meets):
    trace, culprits, hung = Pods(("steady", 90), count=4), Culprits(Thresholds()), set()
    trace.meets = meets
    for second in range(91):
        trace.tick(START + second)
        ledger = trace.ledger
        culprits.tick(trace.now, ledger.latest, ledger.works, ledger.checkpoints_running())
        hung |= culprits.hung.keys()
    return trace, hung


def test_ranks_of_a_job_in_another_pod_wait_for_its_checkpoint():
    trace, hung = pods(Pods.meets)
    for index in (0, 2):
        totals = trace.ledger.books[trace.gpus[index].uuid].totals
        assert totals["checkpoint"] == pytest.approx(40, abs=0.5)
        assert totals["waiting"] == 0
    (found,) = trace.checkpoints
    assert found.gpu_seconds == pytest.approx(4 * 40, abs=1)
    assert not hung


def test_those_of_another_job_do_not():
    trace, hung = pods("localhost:23456")
    assert trace.ledger.books[trace.gpus[2].uuid].totals["waiting"] == pytest.approx(40, abs=1)
    assert hung == {gpu.uuid for gpu in trace.gpus[2:]}


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"rendezvous": "10.0.0.7:29500"}, False),
        ({"rank": 0}, False),
        ({"rank": None}, False),
        ({"world_size": 16}, False),
        ({"account": "other"}, False),
    ],
    ids=["one", "met elsewhere", "a rank twice", "no rank", "another size", "another namespace"],
)
def test_pods_are_of_one_job_where_they_meet_as_its_parts(changes, same):
    (told,) = Trace(("steady", 10)).windows(1000.0, 1001.0)
    first = told.jobs[0]._replace(id="podA", rank=0, world_size=2, rendezvous="master:29500", account="ml")
    second = first._replace(**{"id": "podB", "rank": 1, **changes})
    found = companions(replace(told, jobs=(first, second)))
    assert found == ({first.key: {second.key}, second.key: {first.key}} if same else {})


@pytest.mark.parametrize(
    "place", ["localhost:29500", "127.0.0.1:29500", "::1:29500", "[::1]:29500", "0.0.0.0:29500", "master", None]
)
def test_a_place_that_is_in_each_container_tells_nothing(place):
    (told,) = Trace(("steady", 10)).windows(1000.0, 1001.0)
    pair = tuple(told.jobs[0]._replace(id=f"pod{rank}", rank=rank, rendezvous=place) for rank in range(2))
    assert companions(replace(told, jobs=pair)) == {}
