"""The ledger on the simulator's timelines, whose truth is known: each account within 1 % of the time booked."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from support.traces import START, Trace

from gpuhost_exporter.ledger.accounts import ACCOUNTS

WITHIN = 0.01
# The simulated jobs' own levels: a trained GPU is busy 96 % of the time, one that saves 3 %, one that stages 6 %.
TRAINING = 0.96
LAG = 3.5


def near(shares, expected, within=WITHIN):
    """The whole table, shown when it fails: accounts that nothing is expected in have nothing."""
    print(f"{'account':16}{'booked':>9}{'expected':>9}")
    for account in ACCOUNTS:
        print(f"{account:16}{shares.get(account, 0.0):9.4f}{expected.get(account, 0.0):9.4f}")
    assert set(shares) | set(expected) <= set(ACCOUNTS)
    assert sum(shares.values()) == pytest.approx(1.0)
    for account in ACCOUNTS:
        assert shares.get(account, 0.0) == pytest.approx(expected.get(account, 0.0), abs=within), account


def sync():
    return {"checkpoint": 7 / 60 * 0.97, "compute": (53 * TRAINING + 7 * 0.03) / 60, "host": 53 / 60 * 0.04}


def stall():
    return {"checkpoint": 1 / 3 * 0.97, "compute": (80 * TRAINING + 40 * 0.03) / 120, "host": 80 / 120 * 0.04}


def starved():
    """Gaps between kernels while it computes are host, in the ticks that hold no stall."""
    return {
        "data": 1.7 / 3.7 * 0.96 + 0.01,
        "compute": (2 * TRAINING + 1.7 * 0.04) / 3.7,
        "host": 2 / 3.7 * 0.04 - 0.01,
    }


@pytest.mark.parametrize("skew", [0.0, 0.6], ids=["windows together", "process windows 0.6 s earlier"])
@pytest.mark.parametrize(
    ("scenario", "seconds", "expected"),
    [
        ("steady", 60, {"compute": TRAINING, "host": 0.04}),
        ("idle", 60, {"unallocated": 1.0}),
        ("checkpoint-sync", 600 + LAG, sync()),
        ("checkpoint-async", 600 + LAG, {"checkpoint": 0.94 / 60, "compute": 0.945, "host": 59 / 60 * 0.04}),
        ("checkpoint-stall", 600 + LAG, stall()),
        ("data-starved", 370 + LAG, starved()),
        ("nccl-hang", 220 + LAG, {"waiting": 200 / 220 * 0.998, "compute": 20 / 220 * TRAINING}),
        ("straggler", 120 + LAG, {"compute": TRAINING, "host": 0.04}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_gpu_gets_what_the_scenario_did(scenario, seconds, expected, skew):
    trace = Trace((scenario, seconds), skew=skew).run(range(int(seconds) + 1))
    for index in range(2):
        near(trace.shares(index), expected)


@pytest.mark.parametrize("told", ["pcie", "network"])
def test_a_collective_between_hosts_is_communication_by_pcie_or_by_the_adapters_alone(told):
    """NVLink is quiet all the time; 10 s of each 30 are the exposed all-reduce."""
    trace = Trace(("network-collective", 300 + LAG), pcie=told == "pcie", network=told == "network")
    compute, communication = 20 / 30 * TRAINING, 10 / 30 * 0.998
    near(
        trace.run().shares(), {"communication": communication, "compute": compute, "host": 1 - compute - communication}
    )


def test_without_either_it_cannot_be_told_from_waiting():
    shares = Trace(("network-collective", 300 + LAG), pcie=False).run().shares()
    assert "communication" not in shares
    assert shares["waiting"] == pytest.approx(10 / 30, abs=WITHIN)


def test_a_hang_beside_quiet_adapters_is_waiting_and_they_are_looked_at_only_then():
    trace = Trace(("nccl-hang", 220 + LAG), network=True).run()
    near(trace.shares(), {"waiting": 200 / 220 * 0.998, "compute": 20 / 220 * TRAINING})
    assert min(trace.looks) - START == pytest.approx(21, abs=1)
    trace = Trace(("steady", 100), network=True).run()
    assert not trace.looks


class Upload(Trace):
    """Training, but once a minute the GPUs stand for `copy` seconds of copies out of them and for `send` seconds more.

    The host sends at `rate` in the latter; while it trains, collectives by RDMA and `beside` through the kernel.
    """

    def __init__(self, copy, send, rate=3e9, beside=1e6, *, adapters=True):
        super().__init__(("steady", 240 + LAG), network=adapters)
        self.copy, self.send, self.rate, self.beside = copy, send, rate, beside

    def activity(self, gpu, before, now):
        found, into = super().activity(gpu, before, now), self.into(before)
        if not 0 <= into < self.copy + self.send:
            return found
        return replace(
            found,
            graphics_ratio=0.02,
            sm_active_ratio=0.01,
            tensor_ratio=0.0,
            memory_bandwidth_ratio=0.01,
            pcie_tx_bytes_per_second=5e9 if into < self.copy else 0.0,
        )

    def windows(self, before, now):
        if not 0 <= self.into(before) < self.copy + self.send:
            return super().windows(before, now)
        return tuple(
            replace(
                window,
                processes=tuple(
                    sample._replace(read_chars=0, written_chars=0, made_bytes=0) for sample in window.processes
                ),
            )
            for window in super().windows(before, now)
        )

    def into(self, moment):
        return -1.0 if moment is None else (moment - START) % 60 - 20

    def networks(self):
        told = []
        for window in super().networks():
            into = self.into(window.since)
            stands = into >= 0 and self.into(window.at) <= self.copy + self.send
            kernel = self.rate if stands and into >= self.copy else 1e6 if stands else self.beside
            told.append(replace(window, sent=kernel if stands else 20e9, kernel=kernel))
        return tuple(told)


def test_an_upload_lasts_while_the_gpus_stand_for_it_and_the_host_sends():
    """4 s of copies and 30 s of sending: the network is what tells the latter."""
    trace = Upload(4, 30).run()
    stood = 34 / 60
    near(
        trace.shares(),
        {"checkpoint": stood * 0.98, "compute": (1 - stood) * TRAINING + stood * 0.02, "host": (1 - stood) * 0.04},
    )
    assert [(found.mode, found.mount) for found in trace.checkpoints] == [("remote", "unknown")] * 4
    for found in trace.checkpoints:
        assert (found.seconds, found.stalled) == (pytest.approx(34, abs=1), pytest.approx(34, abs=1))
        assert found.bytes == pytest.approx(2 * 4 * 5e9, rel=0.01)
    assert not any(3 <= (look - START) % 60 < 20 for look in trace.looks), (
        "adapters are looked at for it, and only then"
    )


def test_an_upload_beside_training_is_its_copy():
    trace = Upload(4, 0, beside=0.5e9).run()
    assert [found.mode for found in trace.checkpoints] == ["remote"] * 4
    for found in trace.checkpoints:
        assert found.seconds == pytest.approx(4, abs=1)


@pytest.mark.parametrize("copy", [1, 4])
def test_copies_that_the_host_sends_nowhere_are_no_checkpoint_whatever_its_collectives_carry(copy):
    trace = Upload(copy, 0).run()
    assert trace.looks
    assert not trace.checkpoints
    if copy == 1:
        assert trace.shares().get("checkpoint", 0.0) < WITHIN


def test_a_stall_after_the_copies_with_a_quiet_network_is_no_part_of_an_upload():
    trace = Upload(4, 30, rate=1e6, beside=0.0).run()
    assert not trace.checkpoints
    assert trace.shares().get("checkpoint", 0.0) < 5 / 60


def test_without_adapters_that_tell_copies_are_all_the_evidence():
    trace = Upload(4, 30, adapters=False).run()
    assert [found.mode for found in trace.checkpoints] == ["remote"] * 4
    for found in trace.checkpoints:
        assert found.seconds == pytest.approx(4, abs=1)


def test_ten_minutes_of_checkpoints_an_hour_are_a_sixth():
    """The guide's own case, 16.7 %: 15 stalls of 40 s. The few kernels that run meanwhile are computing."""
    trace = Trace(("checkpoint-stall", 1800), ("steady", 1800 + LAG)).run()
    shares = trace.shares()
    assert shares["checkpoint"] == pytest.approx(0.97 / 6, abs=0.002)
    assert sum(found.stalled for found in trace.checkpoints) / 3600 == pytest.approx(1 / 6, abs=0.001)


def test_heat_costs_the_hot_gpu_what_its_clock_lacks():
    trace = Trace(("thermal", 120 + LAG), count=4).run()
    slow = 100 / 120 * TRAINING * (1 - 0.71 / 0.97)
    near(trace.shares(2), {"throttled": slow, "compute": TRAINING - slow, "host": 0.04})
    assert "throttled" not in trace.shares(0)


class Braked(Trace):
    """The power brake of the host halves every clock, from 30 s on."""

    since = 30.0

    def activity(self, gpu, before, now):
        told = super().activity(gpu, before, now)
        if now - START <= self.since:
            return told
        return replace(told, sm_clock_hertz=told.sm_clock_hertz / 2, clock_event_reasons=0x80)


def test_a_brake_of_the_whole_host_costs_half_of_what_is_computed():
    trace = Braked(("steady", 120 + LAG), count=8).run()
    slow = 90 / 120 * TRAINING / 2
    for index in range(8):
        near(trace.shares(index), {"throttled": slow, "compute": TRAINING - slow, "host": 0.04})


def test_a_host_that_is_braked_from_the_start_has_nothing_to_compare_with():
    trace = Braked(("steady", 60 + LAG))
    trace.since = -1.0
    assert "throttled" not in trace.run().shares()


def test_a_lost_gpu_is_lost_and_its_siblings_wait():
    trace = Trace(("gpu-lost", 120 + LAG), count=4).run()
    near(trace.shares(3), {"lost": 100 / 120, "compute": 20 / 120 * TRAINING, "host": 0.0067})
    near(trace.shares(0), {"waiting": 100 / 120 * 0.998, "compute": 20 / 120 * TRAINING, "host": 0.0067})
    assert "unknown" not in trace.shares(3)


def test_a_gpu_that_comes_back_is_booked_again():
    trace = Trace(("gpu-reset", 180 + LAG), count=4).run()
    shares = trace.shares(3)
    assert shares["lost"] == pytest.approx(30 / 180, abs=WITHIN)
    assert shares["unallocated"] == pytest.approx(10 / 180, abs=WITHIN)
    assert trace.shares(0)["waiting"] == pytest.approx(20 / 180, abs=WITHIN)


def test_two_jobs_on_a_host_do_not_share_a_checkpoint():
    """GPUs 0 to 3 save while 4 to 7 train: the others' idle share is not booked to it."""

    calm = Trace(("steady", 1000), count=8)

    class Two(Trace):
        def job(self, index):
            return "1" if index < 4 else "2"

        def activity(self, gpu, before, now):
            if gpu.index < 4:
                return super().activity(gpu, before, now)
            return calm.activity(gpu, before, now)

        def windows(self, before, now):
            return tuple(
                replace(
                    window,
                    processes=tuple(
                        sample if sample.job == "slurm:1" else sample._replace(written_chars=0)
                        for sample in window.processes
                    ),
                )
                for window in super().windows(before, now)
            )

    trace = Two(("checkpoint-sync", 240 + LAG), count=8).run()
    near(trace.shares(0), sync())
    near(trace.shares(6), {"compute": TRAINING, "host": 0.04})
    assert {checkpoint.job for checkpoint in trace.checkpoints} == {"slurm:1"}


class Stalls(Trace):
    """Busy for 1.7 s of every 2 s; a utilization gauge is at 1 whenever it is looked at."""

    def activity(self, gpu, before, now):
        told = super().activity(gpu, before, now)

        def work(until):
            whole, part = divmod(until - START, 2.0)
            return whole * 1.7 + min(part, 1.7)

        if before is None:
            return told
        return replace(told, graphics_ratio=(work(now) - work(before)) / (now - before), utilization_ratio=1.0)


@pytest.mark.parametrize("period", [0.3, 1.0])
def test_a_stall_of_300_ms_every_2_s_is_idle_time(period):
    """What a scrape of a utilization gauge every 15 s cannot see, the mean over each tick has."""
    ticks = [tick * period for tick in range(int(120 / period))]
    shares = Stalls(("steady", 120)).run(ticks).shares()
    assert 1 - shares["compute"] == pytest.approx(0.15, abs=WITHIN)


def test_each_scrape_of_15_s_has_its_share_of_the_short_stalls():
    trace = Stalls(("steady", 150))
    totals, scraped = trace.run([0.0]).ledger.books[trace.gpus[0].uuid].totals, []
    for second in range(1, 150):
        trace.tick(START + second)
        if second % 15 == 0:
            scraped.append(dict(totals))
    for before, now in pairwise(scraped[1:]):
        idle = sum(now.values()) - sum(before.values()) - (now["compute"] - before["compute"])
        assert idle / 15 == pytest.approx(0.15, abs=0.3 / 15), "one stall more or less"


class TestWithoutProfiling:
    def test_busy_is_an_account_of_its_own(self):
        shares = Trace(("checkpoint-sync", 600 + LAG), profiled=False).run().shares()
        near(shares, {"busy": sync()["compute"], "checkpoint": sync()["checkpoint"], "host": sync()["host"]}, 0.02)
        assert "compute" not in shares

    def test_a_hang_shows_after_a_minute(self):
        shares = Trace(("nccl-hang", 220 + LAG), profiled=False).run().shares()
        assert shares["waiting"] == pytest.approx(140 / 220, abs=0.02)


class TestWithoutProcesses:
    """No privileged reader at all: NVML alone."""

    def test_a_checkpoint_still_shows_by_the_copies_out_of_the_gpus(self):
        trace = Trace(("checkpoint-sync", 600 + LAG), processes=False).run()
        near(trace.shares(), {**sync(), "host": 0.0, "held_idle": sync()["host"]})
        assert {(found.mode, found.mount) for found in trace.checkpoints} == {("sync", "unknown")}

    def test_a_wait_for_data_is_only_idle(self):
        shares = Trace(("data-starved", 185 + LAG), processes=False).run().shares()
        assert "data" not in shares
        assert "checkpoint" not in shares
        assert shares["held_idle"] == pytest.approx(0.458, abs=WITHIN)


@pytest.mark.parametrize(
    ("scenario", "mode", "seconds", "stalled", "size"),
    [
        ("checkpoint-sync", "sync", 7, 7, 140e9),
        ("checkpoint-async", "async", 21, 1, 140e9),
        ("checkpoint-stall", "sync", 40, 40, 140e9),
    ],
)
@pytest.mark.parametrize("skew", [0.0, 0.6])
def test_each_checkpoint_is_found_with_its_start_length_and_size(scenario, mode, seconds, stalled, size, skew):
    trace = Trace((scenario, 400), skew=skew).run()
    cycle, first = {"checkpoint-sync": (60, 30), "checkpoint-async": (60, 20), "checkpoint-stall": (120, 20)}[scenario]
    starts = [found.started - START for found in trace.checkpoints]
    assert starts == pytest.approx(list(range(first, 350, cycle)), abs=1)
    for found in trace.checkpoints:
        assert (found.mode, found.mount) == (mode, "/data")
        assert found.seconds == pytest.approx(seconds, abs=1)
        assert found.stalled == pytest.approx(stalled, abs=1)
        assert found.bytes == pytest.approx(size, rel=0.05)
        assert found.gpu_seconds == pytest.approx(2 * stalled * 0.97, rel=0.04)


@pytest.mark.parametrize(
    "scenario", ["steady", "idle", "data-starved", "nccl-hang", "straggler", "thermal", "gpu-lost", "array-slow"]
)
def test_nothing_else_is_taken_for_a_checkpoint(scenario):
    trace = Trace((scenario, 300)).run()
    assert not trace.checkpoints
    assert all("checkpoint" not in trace.shares(index) for index in range(2))
