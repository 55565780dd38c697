"""The ledger's series."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as text
from support.gpus import FakeNvml, gpu, host_of, poll
from support.traces import START, Trace
from trees import Link, plant

from gpuhost_exporter.collector import AT_ZERO
from gpuhost_exporter.collectors.checkpoints import RESULTS, Checkpoints
from gpuhost_exporter.collectors.ledger import LedgerCollector
from gpuhost_exporter.config import Price, Settings
from gpuhost_exporter.exposition import Renderer
from gpuhost_exporter.ledger.accounts import ACCOUNTS
from gpuhost_exporter.ledger.checkpoint import Checkpoint
from gpuhost_exporter.ledger.cost import per_gpu
from gpuhost_exporter.ledger.hours import buckets
from gpuhost_exporter.ledger.ledger import HOLD_SECONDS
from gpuhost_exporter.sources.marker import Marker
from gpuhost_exporter.sources.state import State
from gpuhost_exporter.sources.traffic import Carried, Traffic


class Watched(Trace):
    """The collector fed with what a trace tells."""

    def __init__(self, folder, *history, settings=None, **options):
        super().__init__(*history, **options)
        nvml = FakeNvml(*(gpu(each.index, uuid=each.uuid) for each in self.gpus))
        host = host_of(nvml)
        self.host = replace(host, state=State(str(folder)), settings=settings or Settings())
        self.collector = LedgerCollector(self.host)
        self.found = {}

    def change(self, seen):
        self.host.nvml.states = seen.states
        self.host.board.post("activity", tuple(seen.activities), math.inf)
        for window in seen.windows:
            self.host.processes.put(window)
        self.host.clock.time = self.now
        self.found = poll(self.collector, self.now)
        return seen

    def of(self, name, *labels, index=0):
        return self.found.get(name, {}).get((str(index), self.gpus[index].uuid, *labels))


def test_every_account_is_there_from_the_start_at_0(tmp_path):
    watched = Watched(tmp_path, ("steady", 0)).run()
    assert [watched.of("gpu_time_seconds_total", account) for account in ACCOUNTS] == [0.0] * len(ACCOUNTS)


def test_booked_and_pending_are_the_time_since_the_start(tmp_path):
    watched = Watched(tmp_path, ("checkpoint-sync", 100)).run()
    booked = sum(watched.of("gpu_time_seconds_total", account) for account in ACCOUNTS)
    assert booked + watched.of("ledger_pending_seconds") == pytest.approx(100)


class Nameless(Watched):
    """GPU 7 is lost until 60 s, and cannot be opened; from 30 to 40 s nothing of the driver is told."""

    def change(self, seen):
        at, nvml = self.now - START, self.host.nvml
        nvml.driver_state = "hung" if 30 <= at < 40 else "ok"
        nvml.broken = {7: "lost"} if nvml.driver_state == "ok" and at < 60 else {}
        if at >= 60 and len(nvml.known) == len(self.gpus):
            nvml.known = (*nvml.known, gpu(7))
        return super().change(replace(seen, states=seen.states | ({"GPU-7": "ok"} if at >= 60 else {})))


def test_a_gpu_that_was_lost_before_the_exporter_started_has_its_account(tmp_path):
    trace = Nameless(tmp_path, ("steady", 100))
    trace.run(range(60))
    found, nobody = trace.found["gpu_time_seconds_total"], ("7", "")
    told = {account: found[(*nobody, account)] for account in ACCOUNTS if found[(*nobody, account)]}
    assert told == pytest.approx({"lost": 59 - HOLD_SECONDS - 10, "unknown": 10}, abs=1)
    assert sum(told.values()) + trace.found["ledger_pending_seconds"][nobody] == pytest.approx(59)
    assert trace.found["gpu_phase"][(*nobody, "lost")] == 1


def test_and_its_time_goes_to_its_uuid_once_it_has_told_it(tmp_path):
    found = Nameless(tmp_path, ("steady", 100)).run().found["gpu_time_seconds_total"]
    assert {labels[1] for labels in found if labels[0] == "7"} == {"GPU-7"}


def test_the_report_has_it(tmp_path):
    trace = Nameless(tmp_path, ("steady", 100))
    trace.run(range(60))
    (lost,) = (spent for spent in per_gpu(buckets(trace.host.state, 0.0, math.inf)) if spent.gpu == "7")
    assert lost.seconds["lost"] > 20


def test_a_checkpoint_makes_its_histograms_and_its_last_figures(tmp_path):
    watched = Watched(tmp_path, ("checkpoint-sync", 120)).run()
    kind = ("/data", "sync")
    found = watched.found
    assert found["checkpoint_duration_seconds"][(*kind, "count")] == 2
    assert found["checkpoint_duration_seconds"][(*kind, "sum")] == pytest.approx(14, abs=0.5)
    assert found["checkpoint_duration_seconds"][(*kind, "5.0")] == 0
    assert found["checkpoint_duration_seconds"][(*kind, "10.0")] == 2
    assert found["checkpoint_size_bytes"][(*kind, "256000000000.0")] == 2
    assert found["checkpoint_last_bytes"][kind] == pytest.approx(140e9, rel=0.05)
    assert found["checkpoint_last_bytes_per_second"][kind] == pytest.approx(20e9, rel=0.1)
    assert found["checkpoint_interval_seconds"][kind] == pytest.approx(60, abs=0.1)
    assert found["checkpoint_last_timestamp_seconds"][kind] == pytest.approx(1090, abs=1)
    assert found["checkpoint_gpu_seconds_lost_total"][kind] == pytest.approx(2 * 2 * 7 * 0.97, rel=0.05)
    assert found["checkpoint_in_progress"] == {kind: 0, ("unknown", "sync"): 0}


def test_the_time_of_a_checkpoint_stands_while_clocks_drift_and_moves_when_one_is_set(tmp_path, monkeypatch):
    watched = Watched(tmp_path, ("checkpoint-sync", 60)).run()
    kind = ("/data", "sync")
    first = watched.found["checkpoint_last_timestamp_seconds"][kind]

    def told(ahead):
        monkeypatch.setattr(watched.host.clock, "wall", lambda: watched.now + ahead, raising=False)
        return poll(watched.collector, watched.now)["checkpoint_last_timestamp_seconds"][kind]

    assert [told(0.003), told(-0.002)] == [first, first]
    assert told(3600) == pytest.approx(first + 3600)


def test_without_a_checkpoint_there_are_no_figures_of_one(tmp_path):
    found = Watched(tmp_path, ("steady", 60)).run().found
    assert {name for name in found if name.startswith("checkpoint_")} == {"checkpoint_in_progress"}
    assert found["checkpoint_in_progress"] == {("unknown", "sync"): 0}


def test_one_that_is_in_progress_shows(tmp_path):
    watched = Watched(tmp_path, ("checkpoint-stall", 50)).run()
    assert watched.found["checkpoint_in_progress"] == {("/data", "sync"): 1, ("unknown", "sync"): 0}
    assert watched.of("gpu_phase", "checkpointing") == 1
    assert watched.of("gpu_phase_since_timestamp_seconds") == pytest.approx(1024, abs=2)


def test_the_one_that_did_not_join_is_named_with_its_last_xid(tmp_path):
    def named(told):
        watched = Watched(tmp_path, ("nccl-hang", 100), count=8)
        wall = watched.host.clock.wall() - watched.host.clock.now() + 1020
        watched.host.board.post("xids", {watched.gpus[6].uuid: ("31", wall + told)}, math.inf)
        watched.run()
        assert watched.of("gpu_hang_seconds", index=0) == pytest.approx(80, abs=2)
        return watched.found["gpu_culprit_info"], watched.gpus[6].uuid

    found, uuid = named(0)
    assert found == {("6", uuid, "not_joined", "idle", "31"): 1}
    found, uuid = named(-400)
    assert found == {("6", uuid, "not_joined", "idle", ""): 1}


@pytest.mark.parametrize(
    ("scenario", "processes", "at", "kind"),
    [
        ("checkpoint-async", True, 32, ("/data", "async")),
        ("checkpoint-sync", False, 36, ("unknown", "sync")),
    ],
    ids=["async, by what was written beside training", "copies alone"],
)
def test_one_in_progress_says_where_to_and_how_as_far_as_that_shows(tmp_path, scenario, processes, at, kind):
    watched = Watched(tmp_path, (scenario, at), processes=processes).run()
    found = watched.found["checkpoint_in_progress"]
    assert {each for each, count in found.items() if count} == {kind}
    assert sum(found.values()) == 1


@pytest.mark.parametrize(("at", "mode"), [(34, "sync"), (36, "remote")])
def test_one_that_writes_no_file_looks_remote_after_its_first_seconds(tmp_path, at, mode):
    class Remote(Watched):
        def windows(self, before, now):
            return tuple(
                replace(each, processes=tuple(told._replace(written_chars=0, made_bytes=0) for told in each.processes))
                for each in super().windows(before, now)
            )

    found = Remote(tmp_path, ("checkpoint-sync", at)).run().found["checkpoint_in_progress"]
    assert {kind for kind, count in found.items() if count} == {("unknown", mode)}


def test_more_mounts_than_are_told_apart_are_other():
    kinds = Checkpoints()
    mounts = [f"/data{number}" for number in range(20)]
    tuple(kinds.progress((mount, "sync") for mount in mounts))
    found = {sample.labels: sample.value for sample in kinds.progress([("/data1", "sync"), ("/data19", "sync")])}
    assert len(found) == 10
    assert {labels for labels, value in found.items() if value} == {("/data1", "sync"), ("other", "sync")}


@pytest.mark.parametrize(
    ("price", "dollars"),
    [(Price(), 3.0), (Price(2.5), 2.5), (Price(2.5, {"NVIDIA H100 80GB HBM3": 1.9}), 1.9), (Price(0.0), 0.0)],
    ids=["nothing set", "for all", "of the product", "free"],
)
def test_an_hour_costs_what_is_configured(tmp_path, price, dollars):
    watched = Watched(tmp_path, ("steady", 1), settings=Settings(price=price)).run()
    assert watched.of("price_dollars_per_gpu_hour") == dollars


@pytest.mark.parametrize(
    ("profiled", "processes", "labels"),
    [(True, True, ("gpm", "process")), (False, True, ("nvml", "process")), (True, False, ("gpm", "none"))],
)
def test_it_says_what_it_judges_by(tmp_path, profiled, processes, labels):
    watched = Watched(tmp_path, ("steady", 5), profiled=profiled, processes=processes).run()
    assert watched.of("ledger_evidence_info", *labels) == 1
    assert len(watched.found["ledger_evidence_info"]) == 2


def test_processes_that_may_not_be_read_are_told_to_doctor_with_what_grants_it(tmp_path):
    class Denied(Watched):
        def windows(self, before, now):
            return tuple(
                replace(each, processes=tuple(process._replace(denied=True) for process in each.processes))
                for each in super().windows(before, now)
            )

    watched = Denied(tmp_path, ("steady", 5)).run()
    assert watched.collector.remarks() == ("I/O of GPU processes: denied",)
    assert "CAP_SYS_PTRACE" in watched.collector.privilege
    assert watched.of("ledger_evidence_info", "gpm", "none") == 1
    assert Watched(tmp_path, ("steady", 5)).run().collector.remarks() == ()


def test_the_step_of_a_job_that_pauses_in_each_is_told_and_of_one_that_does_not_is_not(tmp_path):
    paused = Watched(tmp_path, ("data-starved", 100)).run()
    assert [paused.of("gpu_step_seconds", index=index) for index in (0, 1)] == pytest.approx([3.7, 3.7], rel=0.01)
    assert "gpu_step_seconds" not in Watched(tmp_path, ("steady", 100)).run().found


def test_it_says_whose_work_each_gpu_does(tmp_path):
    watched = Watched(tmp_path, ("steady", 5)).run()
    assert watched.of("gpu_job_info", "slurm:90017", "", "", "", "", "", "", "") == 1
    assert watched.of("gpu_jobs") == 1
    assert len(watched.found["gpu_job_info"]) == 2


def test_marks_are_taken_counted_and_logged(tmp_path, caplog):
    watched = Watched(tmp_path, ("steady", 30))
    marker = watched.host.marker = Marker(str(tmp_path), watched.host.clock)
    watched.run(range(10))
    assert watched.found["checkpoint_marks_total"] == {(result,): 0 for result in RESULTS}
    pid = watched.gpus[0].pids[0]
    marker._take(b"gpuhost/1 checkpoint end 1 2.5 step-7", pid, limited=False)
    marker._take(b"gpuhost/1 checkpoint end 1 2.5 step-7", 4_000_000, limited=False)
    marker._take(b"garbage", pid, limited=False)
    with caplog.at_level("INFO"):
        watched.run(range(10, 25))
    counts = {result: value for (result,), value in watched.found["checkpoint_marks_total"].items()}
    assert counts == {"taken": 1, "unowned": 1, "malformed": 1, "limited": 0}
    assert "checkpoint step-7 of slurm:90017: 2.5 s" in caplog.text
    assert watched.found["checkpoint_last_duration_seconds"] == {("/data", "async"): pytest.approx(2.5)}


def test_a_socket_that_could_not_be_made_has_no_counters_and_is_remarked(tmp_path):
    watched = Watched(tmp_path, ("steady", 3))
    watched.host.marker = Marker("/proc", watched.host.clock)
    watched.host.marker.start()
    watched.run()
    assert "checkpoint_marks_total" not in watched.found
    assert any(remark.startswith("marker: /proc/marker/socket:") for remark in watched.collector.remarks())


def test_a_gap_before_the_start_is_a_gauge_and_no_jump(tmp_path):
    first = Watched(tmp_path, ("steady", 30)).run()
    assert "ledger_gap_seconds" not in first.found
    first.host.state.close()
    again = Watched(tmp_path, ("steady", 500)).run(range(100, 104))
    assert again.found["ledger_gap_seconds"] == {(): pytest.approx(80, abs=6)}
    assert sum(again.of("gpu_time_seconds_total", account) for account in ACCOUNTS) < 4


def test_a_culprit_is_one_series_and_says_why(tmp_path):
    watched = Watched(tmp_path, ("gpu-lost", 60), count=4).run()
    assert watched.of("gpu_culprit", "not_joined", index=3) == 1
    assert watched.of("gpu_culprit_info", "not_joined", "lost", "", index=3) == 1
    assert len(watched.found["gpu_culprit_info"]) == 1
    assert watched.of("gpu_culprit", "not_joined", index=0) == 0
    assert watched.of("gpu_hang_seconds", index=0) >= 30


@pytest.fixture
def two_sockets(tmp_path):
    """GPU 0 and an adapter below one host bridge, GPU 1 and another below the other."""
    at = {"0000:1a:00.0": "15", "0000:1b:00.0": "15", "0000:2a:00.0": "26", "0000:2b:00.0": "26"}
    return plant(
        tmp_path / "root",
        {f"sys/bus/pci/devices/{bdf}": Link(f"../../../devices/pci0000:{bus}/{bdf}") for bdf, bus in at.items()},
    )


class Networked(Watched):
    """GPU 0's adapter carries 20 GB/s in each second that it is looked at, GPU 1's nothing."""

    def __init__(self, folder, root, *history):
        super().__init__(folder, *history, pcie=False)
        self.host.root = root
        self.host.nvml.known = tuple(
            replace(each, bdf=bdf)
            for each, bdf in zip(self.host.nvml.known, ("0000:1a:00.0", "0000:2a:00.0"), strict=True)
        )
        self.asked_at = []
        self.host.traffic.connect(lambda: self.asked_at.append(self.now) is None)
        self.collector = LedgerCollector(self.host)

    def change(self, seen):
        if self.asked_at and self.asked_at[-1] == self.before:
            adapters = (Carried("0000:1b:00.0", 20 * 10**9, 10**9), Carried("0000:2b:00.0", 0, 0))
            self.host.traffic.put(Traffic(self.before - 1.0, self.before, adapters))
        return super().change(seen)


def test_each_gpu_goes_by_the_adapters_nearest_to_it(tmp_path, two_sockets):
    watched = Networked(tmp_path, two_sockets, ("network-collective", 56)).run()
    names = ("communication", "waiting")
    near, far = ([watched.of("gpu_time_seconds_total", name, index=index) for name in names] for index in (0, 1))
    assert near == [pytest.approx(12.5, abs=1), 0]
    assert far == [0, pytest.approx(12.5, abs=1)]
    assert [watched.of("gpu_phase", phase, index=0) for phase in ("communicating", "waiting")] == [1, 0]
    assert [watched.of("gpu_phase", phase, index=1) for phase in ("communicating", "waiting")] == [0, 1]
    assert len(watched.asked_at) < 24, "only while a GPU is busy with nothing that its own counters show"


@pytest.mark.parametrize(("parse", "is_openmetrics"), [(text, False), (openmetrics, True)])
def test_histograms_are_what_prometheus_takes_for_one(tmp_path, parse, is_openmetrics):
    watched = Watched(tmp_path, ("checkpoint-sync", 60)).run()
    watched.now += AT_ZERO
    page, _ = Renderer().block(watched.collector.poll(watched.now), is_openmetrics)
    families = {family.name: family for family in parse(page.decode() + "# EOF\n" * is_openmetrics)}
    family = families["gpuhost_checkpoint_duration_seconds"]
    assert family.type == "histogram"
    samples = {(sample.name, sample.labels.get("le")): sample.value for sample in family.samples}
    assert samples["gpuhost_checkpoint_duration_seconds_bucket", "+Inf"] == 1
    assert samples["gpuhost_checkpoint_duration_seconds_count", None] == 1
    assert samples["gpuhost_checkpoint_duration_seconds_sum", None] == pytest.approx(7, abs=0.5)


def ended(job, started, *, whole=True):
    return Checkpoint(job, "/data", "sync", started, 7.0, 7.0, 140e9, 14.0, whole=whole)


def of(kinds, name, now=1000.0):
    found = {sample.spec.name: sample.value for sample in kinds.samples(now, 0.0)}
    return found.get(f"gpuhost_checkpoint_{name}")


def test_two_jobs_that_save_in_turn_each_have_their_own_interval():
    kinds, told = Checkpoints(), []
    for job, started in (("a", 100.0), ("b", 130.0), ("a", 160.0), ("b", 250.0), ("c", 260.0), ("a", 280.0)):
        kinds.add(ended(job, started), started + 10)
        told.append(of(kinds, "interval_seconds"))
    assert told == [None, None, 60.0, 120.0, None, 120.0]


def test_a_remnant_counts_for_what_it_cost_alone():
    kinds = Checkpoints()
    kinds.add(ended("a", 100.0, whole=False), 110.0)
    kinds.add(ended("a", 160.0), 170.0)
    assert of(kinds, "gpu_seconds_lost_total") == 28.0
    assert of(kinds, "interval_seconds") is None
    counts = [sample.value for sample in kinds.samples(1000.0, 0.0) if sample.labels[-1] == "count"]
    assert counts == [1, 1]
    kinds.add(ended("a", 200.0, whole=False), 210.0)
    assert of(kinds, "last_timestamp_seconds") == 160.0


def test_what_the_first_one_moves_was_at_0_for_the_slowest_scrape():
    kinds = Checkpoints()

    def told(now):
        figures = {(sample.spec.name, sample.labels[-1]): sample.value for sample in kinds.samples(now, 0.0)}
        names = (("duration_seconds", "count"), ("size_bytes", "sum"), ("gpu_seconds_lost_total", "sync"))
        return [figures.get((f"gpuhost_checkpoint_{name}", part)) for name, part in names]

    assert told(100.0) == [None] * 3
    kinds.add(ended("a", 100.0), 110.0)
    assert told(110.0) == [0, 0, 0]
    assert of(kinds, "last_duration_seconds", 110.0) == 7.0, "a gauge need not wait"
    kinds.add(ended("a", 160.0), 170.0)
    assert told(109.0 + AT_ZERO) == [0, 0, 0]
    assert told(110.0 + AT_ZERO) == [2, 280e9, 28.0]
    kinds.add(ended("a", 220.0), 230.0)
    assert told(230.0) == [3, 420e9, 42.0], "the series is known by now"
