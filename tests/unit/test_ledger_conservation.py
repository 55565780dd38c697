"""Whatever is told, each second is booked once: to one account, in order, for good."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fakes import FakeClock
from support.gpus import FakeNvml, gpu, host_of, poll, reading
from support.traces import Trace

from gpuhost_exporter.collectors.ledger import LedgerCollector
from gpuhost_exporter.ledger.accounts import ACCOUNTS
from gpuhost_exporter.ledger.ledger import HOLD_SECONDS, Ledger, Seen
from gpuhost_exporter.ledger.piece import HOST
from gpuhost_exporter.ledger.thresholds import Thresholds
from gpuhost_exporter.sources.evidence import Evidence, HostIo, JobIdentity, ProcessSample
from gpuhost_exporter.sources.marker import Mark
from gpuhost_exporter.sources.nvml.book import GPU_STATES
from gpuhost_exporter.sources.nvml.readings import Activity, Process

MOST_PENDING = 5.0
NOON = 1_760_011_200.0  # 2025-10-09 12:00 UTC
PROCESSES = (None, (), (Process(1, None),), (Process(2, None),), (Process(1, None), Process(2, None)))


class Memory:
    """A state directory that is not there."""

    def names(self, prefix):
        return ()

    def update(self, name, change):
        change({})

    def stuck(self, name):
        return False

    def keep_newest(self, prefix, count):
        pass


def maybe(draw, value):
    return value if draw.random() < 0.8 else None


def activity(draw, now):
    at = now - draw.choice([0.0, 0.02, 0.9, 3.0, 14.0])
    ratio = [maybe(draw, draw.choice([0.0, 1.0, draw.random()])) for _ in range(5)]
    return reading(
        Activity,
        uuid=draw.choice(["GPU-0", "GPU-1"]),
        since=at - draw.choice([0.0, 1.0, 1.1, 20.0]),
        at=at,
        gpm=draw.choice(["ok", "mig", "permission"]),
        graphics_ratio=ratio[0],
        sm_active_ratio=ratio[1],
        tensor_ratio=ratio[2],
        memory_bandwidth_ratio=ratio[3],
        utilization_ratio=ratio[4],
        pcie_tx_bytes_per_second=maybe(draw, draw.uniform(0, 60e9)),
        pcie_rx_bytes_per_second=maybe(draw, draw.uniform(0, 60e9)),
        nvlink_tx_bytes=maybe(draw, draw.randrange(10**15)),
        sm_clock_hertz=maybe(draw, draw.uniform(0, 2e9)),
        clock_event_reasons=maybe(draw, draw.randrange(0x1000)),
        power_watts=maybe(draw, draw.uniform(0, 700)),
        processes=draw.choice(PROCESSES),
    )


def window(draw, now):
    at = now - draw.choice([0.0, 0.5, 4.0])
    samples = tuple(
        ProcessSample(
            pid=pid,
            start=0.0,
            ppid=1,
            holder=pid,
            gpus=(f"GPU-{pid - 1}",),
            role=draw.choice(["holder", "loader", "writer", "other"]),
            role_evidence="",
            job=f"slurm:{pid}",
            comm="python3",
            state="R",
            threads=1,
            threads_looked=1,
            threads_blocked=draw.randrange(2),
            cpu_seconds=maybe(draw, draw.uniform(0, 8)),
            blocked_seconds=None,
            denied=draw.random() < 0.2,
            read_chars=maybe(draw, draw.randrange(10**11)),
            written_chars=maybe(draw, draw.randrange(10**11)),
            read_bytes=maybe(draw, draw.randrange(10**11)),
            write_bytes=maybe(draw, draw.randrange(10**11)),
            cancelled_bytes=0,
            made_bytes=maybe(draw, draw.randrange(-(10**11), 10**11)),
        )
        for pid in (1, 2)
        if draw.random() < 0.7
    )
    return Evidence(
        since=at - draw.choice([0.0, 0.3, 1.0, 5.0]),
        at=at,
        processes=samples,
        jobs=tuple(JobIdentity("slurm", str(sample.pid)) for sample in samples),
        holders=tuple((sample.pid, number) for number, sample in enumerate(samples)),
        cgroups=(),
        host=HostIo(maybe(draw, draw.randrange(10**11)), None, draw.choice([None, ()])),
        unseen=(),
        left_out=frozenset(),
    )


def history(draw):
    now = 1000.0
    for _ in range(draw.randrange(1, 40)):
        now += draw.choice([0.0, 0.2, 0.97, 1.0, 1.03, 2.4, 7.0, 100.0])
        known = [uuid for uuid in ("GPU-0", "GPU-1") if draw.random() < 0.9]
        yield (
            now,
            Seen(
                states={uuid: draw.choice(("ok",) * 9 + GPU_STATES) for uuid in known},
                activities=[activity(draw, now) for _ in range(draw.randrange(3))],
                windows=[window(draw, now) for _ in range(draw.randrange(3))],
                power_limits={"GPU-0": 700.0},
                marks=[mark(draw, now) for _ in range(draw.randrange(3))],
            ),
        )


def mark(draw, now):
    return Mark(now - draw.random(), draw.choice([1, 2, 3]), draw.randrange(3), maybe(draw, draw.uniform(0, 50)), "")


class Jumping(FakeClock):
    """Its wall clock goes its own way: time synchronisation, or somebody who sets it."""

    ahead = NOON - 1000.0

    def wall(self):
        return self.time + self.ahead


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_booked_and_pending_are_the_time_since_the_start_whatever_the_clock_and_the_driver_do(seed):
    """Missed ticks, suspends, GPUs that go and come back, a driver that does not answer, a wall clock set."""
    draw = random.Random(seed)
    gpus = (gpu(0), gpu(1))
    host = replace(host_of(FakeNvml(*gpus)), clock=Jumping(), state=Memory())
    collector = LedgerCollector(host)
    began = None
    for now, seen in history(draw):
        host.clock.time = now
        host.clock.ahead += draw.choice([0.0] * 8 + [-7200.0, -0.3, 0.5, 3600.0])
        host.nvml.states = {"GPU-0": "hung", "GPU-1": "hung", **seen.states}
        host.board.post("activity", tuple(seen.activities), now + 30)
        for each in seen.windows:
            host.processes.put(each)
        found = poll(collector, now)
        began = now if began is None else began
        for index in (0, 1):
            booked = (value for labels, value in found["gpu_time_seconds_total"].items() if labels[0] == str(index))
            pending = found["ledger_pending_seconds"][str(index), f"GPU-{index}"]
            assert sum(booked) + pending == pytest.approx(now - began, rel=1e-3, abs=1e-6)
            assert 0 <= pending <= MOST_PENDING
    written = sum(bucket.seconds[name] for bucket in collector._hours.day(NOON, gpus, {"GPU-0": 1.0, "GPU-1": 1.0})
                  for name in bucket.seconds)  # fmt: skip
    assert written == pytest.approx(sum(found["gpu_time_seconds_total"].values()), abs=1e-6)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_any_history_books_exactly_the_time_that_passed(seed):
    spent = dict.fromkeys(("GPU-0", "GPU-1"), 0.0)

    def spend(_at, uuid, account, seconds):
        assert account in ACCOUNTS
        assert seconds >= 0
        spent[uuid] += seconds

    ledger = Ledger(Thresholds(), spend)
    before = {}
    for now, seen in history(random.Random(seed)):
        ended = ledger.tick(now, seen)
        assert all(found.seconds >= 0 and found.gpu_seconds >= 0 and found.bytes >= 0 for found in ended)
        for uuid, book in ledger.books.items():
            assert sum(book.totals.values()) == pytest.approx(book.booked - book.began, abs=1e-6)
            assert spent[uuid] == pytest.approx(book.booked - book.began, abs=1e-6)
            assert book.booked <= book.told <= now
            assert now - book.booked <= MOST_PENDING
            after = dict(book.totals)
            assert all(after[account] >= before.get(uuid, after)[account] for account in ACCOUNTS)
            before[uuid] = after


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["checkpoint-sync", "checkpoint-async", "data-starved", "gpu-reset", "thermal"]),
    st.lists(st.sampled_from([0.8, 0.98, 1.0, 1.02, 1.3, 2.0, 3.1]), min_size=60, max_size=60),
)
def test_ticks_that_come_early_late_or_not_at_all_lose_nothing(scenario, pauses):
    ticks = list(itertools.accumulate(pauses, initial=0.0))
    trace = Trace((scenario, ticks[-1]), count=4).run(ticks)
    for watched in trace.gpus:
        book = trace.ledger.books[watched.uuid]
        assert sum(book.totals.values()) == pytest.approx(book.booked - book.began, abs=1e-6)
        assert trace.now - book.booked <= MOST_PENDING


def ticks_of(trace, moments):
    for moment in moments:
        trace.tick(1000.0 + moment)


def test_a_suspended_host_was_nobody_knows_what():
    """CLOCK_BOOTTIME goes on; no average spans it, since the readers begin anew."""

    class Slept(Trace):
        def change(self, seen):
            if self.now != 1010.0 + 3600:
                return seen
            return Seen(
                seen.states,
                [replace(each, since=each.at, gpm="warming_up", graphics_ratio=None) for each in seen.activities],
            )

    trace = Slept(("steady", 4000))
    ticks_of(trace, [*range(11), *range(3610, 3630)])
    totals = trace.ledger.books[trace.gpus[0].uuid].totals
    assert totals["unknown"] == pytest.approx(3600, abs=1)


@pytest.mark.parametrize("state", ["hung", "unknown", "unreadable"])
def test_while_nothing_answers_time_is_booked_as_unknown_as_it_passes(state):
    trace = Trace(("steady", 100))
    ticks_of(trace, range(20))
    for now in range(1020, 1060):
        seen = Seen({gpu.uuid: state for gpu in trace.gpus}, ())
        trace.ledger.tick(float(now), seen)
        for book in trace.ledger.books.values():
            assert now - book.booked <= MOST_PENDING
    totals = trace.ledger.books[trace.gpus[0].uuid].totals
    assert totals["unknown"] == pytest.approx(40 - HOLD_SECONDS, abs=1.5)
    assert totals["lost"] == 0


def test_a_driver_upgrade_is_unknown_and_not_lost_and_what_follows_is_booked_again():
    trace = Trace(("steady", 200))
    ticks_of(trace, range(20))
    for now in range(1020, 1050):
        trace.ledger.tick(float(now), Seen({gpu.uuid: "unknown" for gpu in trace.gpus}, ()))
    ticks_of(trace, range(50, 100))
    shares = trace.shares()
    assert "lost" not in shares
    assert shares["unknown"] == pytest.approx(30 / 96, abs=0.02)
    assert shares["compute"] == pytest.approx(66 / 96 * 0.96, abs=0.02)


@pytest.mark.parametrize(("processes", "account"), [((), "unallocated"), (None, "held_idle")], ids=["none", "not told"])
def test_an_idle_gpu_that_is_read_each_15_s_is_that_all_the_time(processes, account):
    ledger = Ledger(Thresholds())
    last = None
    for now in range(1000, 1100):
        if now % 15 == 0 or last is None:
            last = reading(Activity, uuid="GPU-0", since=now - 15.0, at=float(now), gpm="ok", graphics_ratio=0.0,
                           utilization_ratio=0.0, processes=processes)  # fmt: skip
        ledger.tick(now + 0.05, Seen({"GPU-0": "ok"}, [last]))
    book = ledger.books["GPU-0"]
    assert {name for name, seconds in book.totals.items() if seconds} == {account}


def test_a_gpu_in_instances_is_unknown_while_it_is_held():
    ledger = Ledger(Thresholds())
    for now in range(1000, 1030):
        told = reading(Activity, uuid="GPU-0", since=now - 1.0, at=float(now), gpm="mig", processes=(Process(1, None),))
        ledger.tick(float(now), Seen({"GPU-0": "ok"}, [told]))
    assert {name for name, seconds in ledger.books["GPU-0"].totals.items() if seconds} == {"unknown"}
    assert HOST not in ledger.works


def test_two_readings_between_two_ticks_are_both_booked():
    """Two threads tick on the same second: now the one, now the other is first."""

    class Crossing(Trace):
        waiting = ()

        def change(self, seen):
            if int(self.now) % 2:
                self.waiting = seen.activities
                return replace(seen, activities=())
            return replace(seen, activities=[*self.waiting, *seen.activities])

    shares = Crossing(("steady", 60)).run().shares()
    assert "unknown" not in shares
    assert shares["compute"] == pytest.approx(0.96, abs=0.01)


class Held(Trace):
    """The ledger is not called between the two moments, while readers go on; then it is told all at once."""

    hold = (0, 0)

    def __init__(self, *history, **options):
        super().__init__(*history, **options)
        self.kept = []

    def tick(self, now):
        if self.hold[0] < now - 1000.0 < self.hold[1]:
            self.kept.append((self.now, now))
            self.now = now
        else:
            super().tick(now)

    def change(self, seen):
        kept, self.kept = self.kept, []
        activities = [self.activity(gpu, *each) for each in kept[-3:] for gpu in self.gpus]  # the board keeps four
        windows = [window for each in kept for window in self.windows(*each)]
        return replace(seen, activities=[*activities, *seen.activities], windows=[*windows, *seen.windows])


@pytest.mark.parametrize(("hold", "told"), [((38, 41), 7), ((39, 43), 7), ((37, 42), 7), ((36, 42), 6), ((34, 44), 4)])
def test_a_tick_that_is_late_books_a_checkpoint_that_ended_meanwhile(hold, told):
    """It lasts from 30 to 37 s, of which so many are told."""
    trace = Held(("checkpoint-sync", 75))
    trace.hold = hold
    (found,) = trace.run().checkpoints
    totals = trace.ledger.books[trace.gpus[0].uuid].totals
    assert totals["checkpoint"] == pytest.approx(told * 0.97, abs=0.1)
    assert found.gpu_seconds == pytest.approx(2 * totals["checkpoint"], abs=0.1)


def test_a_day_of_sleep_is_booked_in_a_few_steps():
    class Counted(Ledger):
        steps = 0

        def _lead_watches(self, since, horizon):
            self.steps += 1
            return super()._lead_watches(since, horizon)

    trace = Trace(("steady", 90_000))
    trace.ledger = Counted(Thresholds())
    ticks_of(trace, range(10))
    before = trace.ledger.steps
    trace.ledger.tick(1000.0 + 86_400, Seen({gpu.uuid: "ok" for gpu in trace.gpus}, ()))
    assert trace.ledger.steps - before < 10
