"""Known traces and what they must be called: who held the array back, for how long, at what rate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuhost_exporter.saturation import PageCache, Reading, Saturation, latency_ratios
from gpuhost_exporter.sources.block import Field

KIB = 1024
DRIVES = ("nvme0n1", "nvme1n1", "nvme2n1", "nvme3n1")
WRAP = 1 << 32


class Trace:
    """Members whose counters grow at given rates, read once a second."""

    def __init__(self, members=DRIVES, start=0, **named):
        self.fold = Saturation(**named)
        self.at = 1000.0
        self.counters = {name: [start] * 17 for name in members}
        self.own = None
        self.memory = None
        self.written = self.moved = 0
        self.stalled = 0.0
        self.read()

    def read(self):
        members = {name: {name: tuple(fields)} for name, fields in self.counters.items()}
        own = None if self.own is None else {"md0": tuple(self.own)}
        self.fold.add(Reading(self.at, members, own, self.memory))

    def go(self, seconds, loads, *, step=1.0, cached=None, stalled=0.0, throttled=False, own=None):
        """`loads`: each member's (bytes/s read, bytes/s written, bytes a request, queue, busy)."""
        for _ in range(int(seconds / step)):
            self.at += step
            for fields, (read, written, request, queue, busy) in zip(self.counters.values(), loads, strict=True):
                spend(fields, read * step, written * step, request, 1000 * queue * step, 1000 * busy * step)
            if own is not None:
                self.own = self.own or [0] * 17
                spend(self.own, own[0] * step, own[1] * step, 512 * KIB, 0, 0)
            if cached is not None:
                self.written += int(cached * step)
                self.moved += int(sum(load[0] + load[1] for load in loads) * step)
                self.stalled += stalled * step
                self.memory = PageCache(self.written, self.moved, throttled, self.stalled)
            self.read()
        return self.fold.totals


def spend(fields, read, written, request, weighted, busy):
    for count, sectors, moved in (
        (Field.READS, Field.READ_SECTORS, read),
        (Field.WRITES, Field.WRITTEN_SECTORS, written),
    ):
        fields[count] += round(moved / request)
        fields[sectors] += round(moved / 512)
    share = read / (read + written) if read + written else 0
    for field, value in (
        (Field.WEIGHTED_MILLISECONDS, weighted),
        (Field.BUSY_MILLISECONDS, busy),
        (Field.READ_MILLISECONDS, weighted * share),
        (Field.WRITE_MILLISECONDS, weighted * (1 - share)),
    ):
        fields[field] = round(fields[field] + value) % WRAP


def every(*load):
    return (load,) * len(DRIVES)


def one_slow(slow, others):
    return (others, others, slow, others)


FULL_SPEED = every(5.5e9, 0, 256 * KIB, 12, 1.0)
VERDICTS = {
    "a healthy array at its limit": (FULL_SPEED, "array", 22e9),
    "an array that is slow as a whole": (every(2e9, 0, 256 * KIB, 30, 1.0), "array", 8e9),
    "one slow member, the others wait": (
        one_slow((0.8e9, 0, 256 * KIB, 31, 0.99), (0.8e9, 0, 256 * KIB, 0.8, 0.3)), "member", 3.2e9,
    ),
    "one slow member, the others busy but short of requests": (
        one_slow((2e9, 0, 256 * KIB, 100, 1.0), (2e9, 0, 256 * KIB, 3, 0.97)), "member", 8e9,
    ),
    "all at the edge of having enough requests": (
        one_slow((4e9, 0, 256 * KIB, 4.3, 1.0), (4e9, 0, 256 * KIB, 3.8, 1.0)), "array", 16e9,
    ),
    "requests of just 128 KiB": (every(4e9, 0, 128 * KIB, 8, 1.0), "array", 16e9),
}  # fmt: skip


@pytest.mark.parametrize(("loads", "by", "rate"), VERDICTS.values(), ids=VERDICTS)
def test_who_holds_a_saturated_array_back_and_what_it_delivers(loads, by, rate):
    totals = Trace().go(10, loads)
    assert totals.limited_seconds == {"array": 0, "member": 0, "submitter": 0} | {by: pytest.approx(10)}
    assert totals.saturated_seconds == {"read": pytest.approx(10), "write": 0}
    assert totals.saturated_bytes["read"] / totals.saturated_seconds["read"] == pytest.approx(rate, rel=0.001)
    blamed = {member for member, seconds in totals.limiting_seconds.items() if seconds}
    assert blamed == ({"nvme2n1"} if by == "member" else set())


NOT_ASKED = {
    "idle": every(0, 0, 4 * KIB, 0, 0),
    "4 KiB random reads that saturate every drive": every(1e9, 0, 4 * KIB, 64, 1.0),
    "4 KiB random reads that saturate one": one_slow((1e9, 0, 4 * KIB, 64, 1.0), (0.1e9, 0, 4 * KIB, 0.2, 0.3)),
    "streams that the drives keep up with": every(2.4e9, 0, 256 * KIB, 3, 1.0),
    "bursts with pauses": every(4e9, 0, 256 * KIB, 12, 0.8),
    "a queue that stands without a single answer": every(0, 0, 256 * KIB, 32, 1.0),
}


@pytest.mark.parametrize("loads", NOT_ASKED.values(), ids=NOT_ASKED)
def test_what_is_not_asked_for_more_is_never_called_slow(loads):
    totals = Trace().go(10, loads)
    assert sum(totals.limited_seconds.values()) == 0
    assert sum(totals.saturated_seconds.values()) == 0


def test_a_window_of_reads_and_writes_is_divided_by_their_bytes():
    totals = Trace().go(10, every(3e9, 1e9, 256 * KIB, 12, 1.0))
    assert totals.saturated_seconds == {"read": pytest.approx(7.5), "write": pytest.approx(2.5)}
    for direction in ("read", "write"):
        rate = totals.saturated_bytes[direction] / totals.saturated_seconds[direction]
        assert rate == pytest.approx(16e9, rel=0.001)


BUFFERED = every(0, 0.5e9, 512 * KIB, 0.6, 0.5)  # one flusher thread: 2 GB/s


def test_buffered_writes_that_tasks_wait_for_are_the_submitters_limit_and_not_the_arrays():
    trace = Trace()
    trace.go(1, BUFFERED, cached=2e9, stalled=0.7)
    totals = trace.go(10, BUFFERED, cached=2e9, stalled=0.7)
    assert totals.limited_seconds == {"array": 0, "member": 0, "submitter": pytest.approx(10)}
    assert sum(totals.saturated_seconds.values()) == 0


def test_writers_that_the_kernel_throttles_wait_even_where_it_tells_no_pressure():
    trace = Trace()
    for _ in range(11):
        trace.at += 1
        for fields in trace.counters.values():
            spend(fields, 0, 0.5e9, 512 * KIB, 600, 500)
        trace.written += 2 * 10**9
        trace.memory = PageCache(trace.written, trace.written, throttled=True, stalled_seconds=None)
        trace.read()
    assert trace.fold.totals.limited_seconds["submitter"] == pytest.approx(10)


NOBODY_WAITS = {
    "nobody waits for the write-back": (BUFFERED, {"cached": 2e9, "stalled": 0.05}),
    "the writes are direct": (BUFFERED, {"cached": 1e6, "stalled": 0.9}),
    "a log file is written": (every(0, 1e6, 256 * KIB, 0.01, 0.01), {"cached": 4e6, "stalled": 0.9}),
    "readers wait, with some writes": (every(1e9, 0.1e9, 256 * KIB, 2, 0.9), {"cached": 0.4e9, "stalled": 0.9}),
    "many small writes": (every(0, 0.3e9, 8 * KIB, 3, 0.9), {"cached": 1.2e9, "stalled": 0.9}),
}


@pytest.mark.parametrize(("loads", "named"), NOBODY_WAITS.values(), ids=NOBODY_WAITS)
def test_what_is_no_limit_of_the_submitter(loads, named):
    assert sum(Trace().go(10, loads, **named).limited_seconds.values()) == 0


def test_waiting_for_another_volume_is_not_booked_to_one_that_writes_a_little():
    trace = Trace()
    for _ in range(11):
        trace.moved += 4 * 10**9  # another array reads
        trace.go(1, every(0, 0.05e9, 256 * KIB, 0.1, 0.2), cached=0.2e9, stalled=0.9)
    assert trace.fold.totals.limited_seconds["submitter"] == 0


def test_a_gap_between_two_readings_is_booked_to_nothing():
    trace = Trace()
    trace.go(5, FULL_SPEED)
    trace.go(60, FULL_SPEED, step=60)
    assert trace.go(5, FULL_SPEED).limited_seconds["array"] == pytest.approx(10)


def test_one_missed_second_is_no_gap():
    trace = Trace()
    assert trace.go(20, FULL_SPEED, step=2).limited_seconds["array"] == pytest.approx(20)


def test_readings_in_quick_succession_are_taken_together():
    trace = Trace()
    assert trace.go(10, FULL_SPEED, step=0.125).limited_seconds["array"] == pytest.approx(10, abs=0.5)


def test_milliseconds_that_wrap_at_32_bits_cost_nothing():
    totals = Trace(start=WRAP - 20_000).go(10, FULL_SPEED)
    assert totals.limited_seconds["array"] == pytest.approx(10)


def test_counters_that_start_again_cost_one_window():
    trace = Trace()
    trace.go(5, FULL_SPEED)
    trace.counters["nvme1n1"] = [0] * 17
    assert trace.go(5, FULL_SPEED).limited_seconds["array"] == pytest.approx(9)


def test_a_member_that_leaves_costs_one_window_and_keeps_its_seconds():
    trace = Trace()
    slow = one_slow((0.8e9, 0, 256 * KIB, 31, 0.99), (0.8e9, 0, 256 * KIB, 0.8, 0.3))
    trace.go(5, slow)
    del trace.counters["nvme2n1"]
    totals = trace.go(5, FULL_SPEED[:3])
    assert totals.limited_seconds == {"array": pytest.approx(4), "member": pytest.approx(5), "submitter": 0}
    assert totals.limiting_seconds["nvme2n1"] == pytest.approx(5)


def test_a_drive_alone_is_an_array_of_itself():
    totals = Trace(members=("nvme9n1",)).go(10, [(3e9, 0, 256 * KIB, 16, 1.0)])
    assert totals.limited_seconds["array"] == pytest.approx(10)
    assert totals.limited_seconds["member"] == 0


def test_a_mirror_delivers_what_it_took_and_not_what_its_members_wrote():
    trace = Trace(members=DRIVES[:2])
    load = [(0, 2e9, 256 * KIB, 12, 1.0)] * 2
    trace.go(1, load, own=(0, 2e9))
    totals = trace.go(10, load, own=(0, 2e9))
    assert totals.saturated_bytes["write"] / totals.saturated_seconds["write"] == pytest.approx(2e9, rel=0.001)


def test_an_array_that_does_not_count_for_itself_is_not_called_slow():
    trace = Trace(members=DRIVES[:2])
    totals = trace.go(10, [(0, 2e9, 256 * KIB, 12, 1.0)] * 2, own=(0, 0))
    assert sum(totals.saturated_seconds.values()) == 0


def test_the_paths_of_a_multipath_drive_count_together():
    fold = Saturation()
    fields = {name: [0] * 17 for name in ("nvme0c0n1", "nvme0c1n1")}
    for second in range(11):
        fold.add(Reading(float(second), {"nvme0n1": {name: tuple(each) for name, each in fields.items()}}))
        for each in fields.values():
            spend(each, 1.5e9, 0, 256 * KIB, 3000, 1000)
    assert fold.totals.limited_seconds["array"] == pytest.approx(10)
    assert fold.totals.saturated_bytes["read"] == pytest.approx(30e9, rel=0.001)


def test_smaller_requests_count_where_none_can_be_larger():
    loads = every(4e9, 0, 60 * KIB, 8, 1.0)
    assert sum(Trace().go(10, loads).limited_seconds.values()) == 0
    assert Trace(large=48 * KIB).go(10, loads).limited_seconds["array"] == pytest.approx(10)


def test_after_a_minute_of_io_each_member_is_compared_with_its_siblings():
    trace = Trace()
    trace.go(59, one_slow((1e9, 0, 256 * KIB, 6, 1.0), (1e9, 0, 256 * KIB, 2, 0.9)))
    assert trace.fold.ratios == {}
    trace.go(1, one_slow((1e9, 0, 256 * KIB, 6, 1.0), (1e9, 0, 256 * KIB, 2, 0.9)))
    assert trace.fold.ratios == {
        "nvme0n1": pytest.approx(1), "nvme1n1": pytest.approx(1),
        "nvme2n1": pytest.approx(3), "nvme3n1": pytest.approx(1),
    }  # fmt: skip
    trace.go(60, every(0, 0, 4 * KIB, 0, 0))
    assert trace.fold.ratios == {}, "an idle minute tells nothing"


@pytest.mark.parametrize(
    ("compared", "ratios"),
    [
        ({"a": (1000, 1.0)}, {}),
        ({"a": (1000, 1.0), "b": (10, 5.0)}, {}),
        ({"a": (1000, 1.0), "b": (1000, 0.0)}, {"b": 0.0}),
        ({"a": (1000, 1.0), "b": (500, 1.0)}, {"a": 0.5, "b": 2.0}),
    ],
    ids=["alone", "too few requests", "no time told", "by request"],
)
def test_who_has_no_siblings_to_compare_with_has_no_ratio(compared, ratios):
    assert latency_ratios(compared) == ratios


steps = st.lists(
    st.tuples(
        st.floats(0.1, 10),
        st.lists(st.lists(st.integers(0, WRAP - 1), min_size=17, max_size=17), min_size=2, max_size=2),
    ),
    max_size=6,
)


@given(steps)
def test_whatever_counters_do_no_more_time_is_booked_than_has_passed(trace):
    fold = Saturation()
    at = 0.0
    for seconds, members in trace:
        at += seconds
        fold.add(Reading(at, {name: {name: tuple(each)} for name, each in zip("ab", members, strict=True)}))
    totals = fold.totals
    assert sum(totals.limited_seconds.values()) <= at + 1e-9
    assert sum(totals.saturated_seconds.values()) <= at + 1e-9
    assert min(*totals.saturated_bytes.values(), *totals.limited_seconds.values()) >= 0
