"""XIDs: each event counted once, whoever tells it, over restarts, and visible to increase()."""

from __future__ import annotations

import os
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.gpus import NOW, FakeNvml, gpu, host_of, poll

from gpuhost_exporter.collectors.inventory import learn
from gpuhost_exporter.collectors.xid import AT_ZERO, NVML_WAITS, Copies, RisingCounters, XidCollector
from gpuhost_exporter.sources.kmsg import KernelLog, LoggedSxid, LoggedXid
from gpuhost_exporter.sources.nvml.readings import Xid
from gpuhost_exporter.sources.state import State
from gpuhost_exporter.xids import SEVERITIES, Catalogue

BOOT = "boot"
SETTLED = NOW + AT_ZERO


class Nvml(FakeNvml):
    def __init__(self, *gpus):
        super().__init__(*gpus)
        self.events = []

    def take_events(self):
        taken, self.events = tuple(self.events), []
        return taken


class Site:
    """One host over restarts. `settled` polls once and comes back when the series have stood at 0 long enough."""

    def __init__(self, folder, *gpus):
        self.folder = str(folder)
        self.nvml = Nvml(*(gpus or (gpu(0), gpu(1))))
        self.restart()

    def restart(self):
        if hasattr(self, "host"):
            self.host.state.close()
        host = host_of(self.nvml)
        host.kernel_log, host.state = KernelLog(), State(self.folder)
        host.kernel_log.put(())
        self.host, self.collector = host, XidCollector(host)

    def settled(self):
        self.poll(NOW)
        return self

    def poll(self, now=SETTLED):
        return poll(self.collector, now)

    def logged(self, *events):
        self.host.kernel_log.put(events)

    def cursor(self):
        self.host.state.flush()
        return State(self.folder).load("kernel_log").get("sequence")


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path).settled()


def xid(sequence, code=79, bdf="0000:10:00", wall=SETTLED, text="", uuid=None, *, inferred=False):
    return LoggedXid(BOOT, sequence, wall, bdf, uuid, code, text, inferred)


def nvml_xid(code=79, index=0, wall=SETTLED):
    return Xid(f"GPU-{index}", f"0000:1{index}:00", code, wall, "nvml")


def events(found, severity, gpu_label="0", uuid="GPU-0"):
    return found["xid_events_total"][gpu_label, uuid, severity]


def errors(found):
    """Codes counted, by GPU."""
    return {(uuid, code): value for (_, uuid, code), value in found["xid_errors_total"].items() if value}


def test_every_gpu_has_every_severity_and_watched_code_at_zero_before_anything_happens(site):
    found = site.poll()
    watched = [str(code) for code in Catalogue.load().watched]
    assert found["xid_events_total"] == {
        (str(index), f"GPU-{index}", severity): 0 for index in (0, 1) for severity in SEVERITIES
    }
    assert found["xid_errors_total"] == {(str(i), f"GPU-{i}", code): 0 for i in (0, 1) for code in watched}
    assert {labels[0] for labels in found["xid_info"]} == set(watched)
    assert "xid_last_timestamp_seconds" not in found
    assert "sxid_errors_total" not in found
    assert found["kernel_log_up"] == {(): 1}


def test_an_event_counts_for_its_gpu_by_severity_and_code_with_its_time(site):
    site.logged(xid(1, 79, wall=1.5e9))
    found = site.poll()
    assert events(found, "critical") == 1
    assert errors(found) == {("GPU-0", "79"): 1}
    assert found["xid_last_timestamp_seconds"] == {("0", "GPU-0", "79"): 1.5e9}
    assert events(found, "critical", "1", "GPU-1") == 0


def test_the_last_of_each_gpu_is_told_to_other_collectors(site):
    site.logged(xid(1, 31, wall=SETTLED - 5), xid(2, 45, wall=SETTLED - 4), xid(3, 13, wall=SETTLED - 9))
    site.poll()
    told = site.host.board.last("xids", dict, site.host.clock.now())
    assert told == {"GPU-0": ("45", SETTLED - 4)}


def test_a_code_that_is_not_watched_begins_at_zero_and_rises_later(site):
    site.logged(xid(1, 31, text="pid=1, MMU Fault"))
    found = site.poll()
    assert found["xid_errors_total"]["0", "GPU-0", "31"] == 0
    assert events(found, "application") == 1
    assert ("31", "GPU memory page fault", "application", "RESTART_APP") in found["xid_info"]
    assert site.poll(SETTLED + AT_ZERO)["xid_errors_total"]["0", "GPU-0", "31"] == 1


def test_a_code_without_entry_is_counted_as_a_warning_and_has_no_meaning(site):
    site.logged(xid(1, 51))
    found = site.poll()
    assert events(found, "warning") == 1
    assert ("0", "GPU-0", "51") in found["xid_errors_total"]
    assert "51" not in {labels[0] for labels in found["xid_info"]}


@pytest.mark.parametrize(
    ("text", "severity"), [("NETIR_LINK_EVT  Fatal   XC0", "critical"), ("NETIR_BER_EVENT Nonfatal XC0", "warning")]
)
def test_nvmls_copy_waits_for_the_kernels_which_says_how_grave_it_is(site, text, severity):
    site.nvml.events = [nvml_xid(149)]
    found = site.poll()
    assert errors(found) == {}
    site.logged(xid(1, 149, text=text, wall=SETTLED + 1))
    site.poll(SETTLED + 1)
    found = site.poll(SETTLED + NVML_WAITS)
    assert errors(found) == {("GPU-0", "149"): 1}
    assert events(found, severity) == 1
    assert sum(found["xid_events_total"].values()) == 1


def test_an_event_that_only_nvml_tells_counts_after_its_wait(site):
    site.nvml.events = [nvml_xid(94)]
    assert errors(site.poll()) == {}
    assert errors(site.poll(SETTLED + NVML_WAITS)) == {("GPU-0", "94"): 1}


def test_the_kernels_copy_may_come_late(site):
    site.nvml.events = [nvml_xid(94)]
    site.poll()
    site.poll(SETTLED + NVML_WAITS)
    site.logged(xid(1, 94, wall=SETTLED + 5))
    assert errors(site.poll(SETTLED + 6)) == {("GPU-0", "94"): 1}


@pytest.mark.parametrize(
    ("other", "counted"),
    [
        (xid(2, 79, wall=SETTLED + 11), 1),
        (xid(2, 79, bdf="0000:11:00"), 1),
        (xid(2, 48), 1),
        (xid(2, 79), 1),
    ],
    ids=["later", "another GPU", "another code", "the same line again"],
)
def test_what_differs_or_repeats_is_an_event_of_its_own(site, other, counted):
    site.logged(xid(1, 79), other)
    found = site.poll()
    assert sum(errors(found).values()) == 1 + counted


def test_as_many_copies_as_events_are_taken_for_the_same(site):
    site.nvml.events = [nvml_xid(13), nvml_xid(13)]
    site.logged(xid(1, 13), xid(2, 13), xid(3, 13))
    site.poll()
    assert events(site.poll(SETTLED + NVML_WAITS), "application") == 3


@pytest.mark.parametrize("first", ["kernel_log", "nvml"])
def test_a_storm_that_both_tell_is_counted_once(first):
    copies = Copies()
    tellers = sorted(["kernel_log", "nvml"], key=lambda teller: teller != first)
    new = [
        sum(copies.is_new("GPU-0", 13, SETTLED + delay + number / 1000, teller) for number in range(4000))
        for delay, teller in zip((0, 0.1), tellers, strict=True)
    ]
    assert new == [4000, 0]


@given(st.lists(st.tuples(st.sampled_from(["kernel_log", "nvml"]), st.floats(0, 10))))
def test_of_what_two_tell_within_ten_seconds_the_one_who_tells_more_is_believed(told):
    copies = Copies()
    tellers = [teller for teller, _ in told]
    new = sum(copies.is_new("GPU-0", 13, SETTLED + delay, teller) for teller, delay in told)
    assert new == max(tellers.count("kernel_log"), tellers.count("nvml"))


def test_the_line_without_a_code_adds_nothing_to_an_xid_79(site):
    site.logged(xid(1, 79), xid(2, 79, inferred=True), xid(3, 79, inferred=True))
    assert errors(site.poll()) == {("GPU-0", "79"): 1}


def test_a_gpu_that_fell_off_without_an_xid_is_counted_once(site):
    site.logged(xid(1, 79, inferred=True), xid(2, 79, inferred=True))
    assert errors(site.poll()) == {("GPU-0", "79"): 1}


def test_what_was_logged_before_the_start_rises_after_the_series_stood_at_zero(tmp_path):
    site = Site(tmp_path)
    site.logged(xid(1, 79, wall=100.0))
    found = site.poll(NOW)
    assert events(found, "critical") == 0
    assert found["xid_last_timestamp_seconds"] == {("0", "GPU-0", "79"): 100.0}
    assert errors(site.poll(SETTLED - 1)) == {}
    found = site.poll(SETTLED)
    assert (events(found, "critical"), errors(found)) == (1, {("GPU-0", "79"): 1})


def test_no_event_is_counted_again_after_a_restart(site):
    site.logged(xid(1, 79), xid(2, 48))
    site.poll()
    site.restart()
    assert site.host.kernel_log.cursor(site.host.state) == (BOOT, 2)


def test_an_event_that_did_not_show_before_the_exporter_ended_is_counted_by_the_next(tmp_path):
    site = Site(tmp_path)
    site.logged(xid(1, 79), xid(2, 79, inferred=True))
    site.poll(NOW)
    assert site.cursor() is None
    site.poll(SETTLED)
    assert site.cursor() == 2


def test_events_wait_for_a_driver_that_starts_so_that_they_find_their_gpu(tmp_path):
    site = Site(tmp_path)
    site.nvml.known, site.nvml.driver_state = (), "starting"
    site.logged(xid(1, 79))
    found = site.poll(NOW)
    assert "xid_last_timestamp_seconds" not in found
    site.nvml.known, site.nvml.driver_state = (gpu(0),), "ok"
    site.poll(NOW)
    assert errors(site.poll(SETTLED)) == {("GPU-0", "79"): 1}


@pytest.mark.parametrize(
    ("event", "labels"),
    [
        (xid(1, bdf="0000:99:00"), ("unknown", "pci-0000:99:00")),
        (xid(1, bdf="0000:99:00", uuid="GPU-x"), ("unknown", "GPU-x")),
        (xid(1, bdf="0000:17:00"), ("7", "GPU-7")),
        (xid(1, bdf="0000:99:00", uuid="GPU-7"), ("7", "GPU-7")),
    ],
    ids=["nobody knows it", "named by the log", "learned before it was lost", "learned, named by the log"],
)
def test_an_event_of_a_gpu_that_nvml_does_not_know_is_kept_under_what_is_known(site, event, labels):
    site.host.state.update(
        "inventory", lambda data: learn(data, "gpus", {"GPU-7": {"index": 7, "bdf": "0000:17:00.0"}})
    )
    site.logged(event)
    site.poll()
    found = site.poll(SETTLED + AT_ZERO)
    assert found["xid_events_total"][(*labels, "critical")] == 1
    assert found["xid_errors_total"][(*labels, "79")] == 1


def test_an_index_that_changes_takes_the_count_with_it(site):
    site.logged(xid(1, 79))
    site.poll()
    site.nvml.known = (gpu(5, uuid="GPU-0"), gpu(1))
    found = site.poll()
    assert found["xid_events_total"]["5", "GPU-0", "critical"] == 1
    assert ("0", "GPU-0", "critical") not in found["xid_events_total"]


def test_sxids_are_counted_by_code_and_by_whether_they_are_fatal(site):
    site.logged(LoggedSxid(BOOT, 1, SETTLED, 12028, fatal=False), LoggedSxid(BOOT, 2, SETTLED, 20034, fatal=True))
    assert site.poll()["sxid_errors_total"] == {("12028", "false"): 0, ("20034", "true"): 0}
    site.logged(LoggedSxid(BOOT, 3, SETTLED, 12028, fatal=False))
    found = site.poll(SETTLED + AT_ZERO)
    assert found["sxid_errors_total"] == {("12028", "false"): 2, ("20034", "true"): 1}
    assert sum(found["xid_events_total"].values()) == 0


@pytest.mark.parametrize("every", [15, 30, 60])
@pytest.mark.parametrize("phase", [0.1, 0.5, 0.99])
def test_increase_sees_the_first_event_however_often_it_is_scraped(tmp_path, every, phase):
    """An SXid, a code that is not watched, and what was logged before the exporter started."""
    site = Site(tmp_path)
    site.logged(LoggedSxid(BOOT, 1, NOW, 20034, fatal=True), xid(2, 31), xid(3, 79))
    scrapes = []
    for second in range(4 * every + int(AT_ZERO)):
        found = site.poll(NOW + second)
        if second % every == int(phase * every):
            scrapes.append(found)
    for name, labels in (
        ("sxid_errors_total", ("20034", "true")),
        ("xid_errors_total", ("0", "GPU-0", "31")),
        ("xid_events_total", ("0", "GPU-0", "critical")),
    ):
        values = [found[name][labels] for found in scrapes]
        assert values[0] == 0
        assert values[-1] == 1


def test_a_log_that_cannot_be_read_is_told_once_and_nvmls_events_count_at_once(site, caplog):
    site.host.kernel_log.fail("denied", "/dev/kmsg: Operation not permitted; grant CAP_SYSLOG")
    site.nvml.events = [nvml_xid(48)]
    found = site.poll()
    assert found["kernel_log_up"] == {(): 0}
    assert errors(found) == {("GPU-0", "48"): 1}
    site.poll()
    assert site.collector.errors == {"denied": 1}
    assert [record.message for record in caplog.records if "CAP_SYSLOG" in record.message] == [
        "xid: kernel log: /dev/kmsg: Operation not permitted; grant CAP_SYSLOG (denied)"
    ]


def test_whether_the_log_can_be_read_is_not_said_before_it_was_tried(tmp_path):
    site = Site(tmp_path)
    site.host.kernel_log = KernelLog()
    assert "kernel_log_up" not in site.poll()


def test_garbage_cannot_make_series_without_end(site):
    site.logged(*(xid(number, number % 10_000, bdf=f"{number:04x}:00:00") for number in range(2000)))
    site.nvml.events = [nvml_xid(10**6 + number) for number in range(1000)]
    site.poll()
    found = site.poll(SETTLED + NVML_WAITS)
    assert len(found["xid_errors_total"]) < 700
    assert len(found["xid_events_total"]) < 300
    assert ("unknown", "unknown", "warning") in found["xid_events_total"]
    assert sum(found["xid_events_total"].values()) < 3000
    found = site.poll(SETTLED + NVML_WAITS + AT_ZERO)
    assert sum(found["xid_events_total"].values()) == sum(found["xid_errors_total"].values()) == 3000


def test_a_state_disk_that_hangs_holds_up_neither_an_event_nor_its_count(tmp_path, monkeypatch):
    answers, asked = threading.Event(), threading.Event()
    monkeypatch.setattr(os, "fsync", lambda _: asked.set() or answers.wait(10))
    site = Site(tmp_path)
    began = time.monotonic()
    try:
        site.poll(NOW)
        site.host.state.update("inventory", lambda data: learn(data, "gpus", {"GPU-0": {}}))
        assert asked.wait(5)
        site.logged(xid(1, 79))
        assert site.host.kernel_log.cursor(site.host.state) == (BOOT, 1)
        assert errors(site.poll()) == {("GPU-0", "79"): 1}
        site.logged(xid(2, 48))
        assert errors(site.poll()) == {("GPU-0", "79"): 1, ("GPU-0", "48"): 1}
        assert time.monotonic() - began < 1
    finally:
        answers.set()
    assert site.cursor() == 2


@given(st.lists(st.tuples(st.floats(0, 100), st.sampled_from("ab"))))
def test_a_counter_stands_at_zero_before_it_rises_never_falls_and_loses_nothing(arrivals):
    counters = RisingCounters()
    last = {}
    for now, key in sorted(arrivals):
        counters.add(key, now)
        values = dict(counters.values(now))
        assert key in last or values[key] == 0
        assert all(values[known] >= value for known, value in last.items())
        last = values
    assert sum(counters.values(1000.0).values()) == len(arrivals)
