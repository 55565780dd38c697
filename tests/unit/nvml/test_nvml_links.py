"""NVLink by link: what is told, what a failed call costs, and how seldom an idle GPU is asked."""

from __future__ import annotations

from types import SimpleNamespace

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuhost_exporter.sources.nvml.links import sysfs_bdf
from gpuhost_exporter.sources.nvml.reader import Reader

STATE = "nvmlDeviceGetNvLinkState"


def read(reader, uuid="GPU-0"):
    batch = reader.read("links", frozenset())
    return next(reading for reading in batch.readings if reading.uuid == uuid)


def opened(nv, clock):
    reader = Reader(nv, clock, lambda uuid, call: None)
    reader.open()
    return reader


def test_a_hopper_link_counts_by_the_data_link_fields(reader):
    links = read(reader).links
    assert [link.index for link in links] == list(range(18))
    link = links[3]
    assert (link.active, link.version, link.remote, link.remote_bdf) == (True, "4.0", "switch", "0000:07:00.0")
    assert link.rate_bytes_per_second == 26.562e9
    assert (link.tx_bytes, link.rx_bytes) == (13 * 1024, 23 * 1024)
    assert link.errors == (("replay", 3), ("recovery", 0), ("crc", 1), ("ecc", 403))


def test_counters_that_lie_on_hopper_are_never_asked(nv, reader):
    reader.read("links", frozenset())
    reader.read("activity", frozenset())
    asked = {field for name, arguments in nv.log if name == "nvmlDeviceGetFieldValues" for field, _ in arguments[1]}
    assert asked.isdisjoint({*range(32, 60), *range(96, 120), *range(148, 161), *range(201, 223), *range(251, 274)})


def test_an_older_driver_gives_link_errors_by_the_getter(nv, clock):
    for gpu in nv.gpus:
        gpu.fields = {key: value for key, value in gpu.fields.items() if key[0] not in (161, 162, 163)}
    link = read(opened(nv, clock)).links[3]
    assert link.errors == (("replay", 3), ("recovery", 103), ("crc", 203), ("ecc", 403))


def test_a_blackwell_link_has_other_counters(nv, clock):
    gpu = nv.gpus[0]
    gpu.answers |= {"nvmlDeviceGetArchitecture": 10, "nvmlDeviceGetNvLinkVersion": 7}
    gpu.answers["nvmlDeviceGetNvLinkErrorCounter"] = pynvml.NVMLError(3)
    for link in range(18):
        gpu.fields |= {(202, link): 1000 + link, (204, link): 2000 + link, (215, link): link}
        gpu.fields[161, link] = 99
    link = read(opened(nv, clock)).links[3]
    assert (link.version, link.tx_bytes, link.rx_bytes) == ("5.0", 1003, 2003)
    assert link.errors == (("recovery", 3),)


def test_a_dead_link_has_no_rate_no_bytes_and_no_errors(nv, clock):
    nv.gpus[0].answers["nvmlDeviceGetNvLinkState"] = lambda link: int(link != 5)
    nv.gpus[0].fields[164, 5] = 0
    links = read(opened(nv, clock)).links
    assert (links[5].active, links[5].rate_bytes_per_second) == (False, None)
    assert (links[5].tx_bytes, links[5].rx_bytes, links[5].errors) == (None, None, ())
    assert [link.index for link in links if link.active] == [link for link in range(18) if link != 5]


def test_a_link_that_comes_back_tells_what_it_refused_while_down(nv, reader):
    nv.gpus[0].answers["nvmlDeviceGetNvLinkState"] = lambda link: int(link != 5)
    nv.gpus[0].answers["nvmlDeviceGetNvLinkVersion"] = lambda link: 6 if link != 5 else pynvml.NVMLError(3)
    down = read(reader).links[5]
    assert (down.version, down.rate_bytes_per_second) == (None, None)
    nv.gpus[0].answers |= {"nvmlDeviceGetNvLinkState": 1, "nvmlDeviceGetNvLinkVersion": 6}
    up = read(reader).links[5]
    assert (up.version, up.rate_bytes_per_second, up.tx_bytes) == ("4.0", 26.562e9, 15 * 1024)


@pytest.mark.parametrize(("number", "version"), [(4, "3.0"), (5, "3.1"), (6, "4.0"), (7, "5.0"), (99, None)])
def test_the_version_is_an_enumeration_not_a_number(nv, reader, number, version):
    nv.gpus[0].answers["nvmlDeviceGetNvLinkVersion"] = number
    assert {link.version for link in read(reader).links} == {version}


def test_what_does_not_change_is_asked_once(nv, reader):
    for _ in range(5):
        reader.read("links", frozenset())
    for call in ("Version", "RemoteDeviceType", "RemotePciInfo"):
        assert nv.called[f"nvmlDeviceGetNvLink{call}"] == 2 * 18


def test_what_was_denied_when_the_links_were_made_out_stays_denied(nv, reader, clock):
    nv.gpus[0].answers["nvmlDeviceGetNvLinkRemotePciInfo"] = pynvml.NVMLError(4)
    for _ in range(3):
        clock.seconds += 5
        faults = reader.read("links", frozenset()).faults
        assert [(fault.uuid, fault.call, fault.code) for fault in faults] == [
            ("GPU-0", "nvmlDeviceGetNvLinkRemotePciInfo", 4)
        ]


def test_an_address_that_is_no_text_costs_itself_and_stays_a_fault(nv, reader, clock, undecodable):
    nv.gpus[0].answers["nvmlDeviceGetNvLinkRemotePciInfo"] = undecodable
    for _ in range(3):
        clock.seconds += 5
        batch = reader.read("links", frozenset())
        first, second = batch.readings
        assert {(link.active, link.remote, link.remote_bdf) for link in first.links} == {(True, "switch", None)}
        assert {link.remote_bdf for link in second.links} == {"0000:07:00.0"}
        assert [(fault.uuid, fault.call, fault.kind) for fault in batch.faults] == [
            ("GPU-0", "nvmlDeviceGetNvLinkRemotePciInfo", "malformed")
        ]


def test_the_links_are_counted_by_state_where_the_field_is_missing(nv, clock):
    del nv.gpus[0].fields[91, 0]
    nv.gpus[0].answers["nvmlDeviceGetNvLinkState"] = lambda link: 1 if link < 12 else pynvml.NVMLError(2)
    reader = opened(nv, clock)
    assert len(read(reader).links) == 12


def test_a_gpu_without_nvlink_has_no_links_and_no_fault(nv, clock):
    nv.gpus[0].fields = {}
    nv.gpus[0].answers["nvmlDeviceGetNvLinkState"] = pynvml.NVMLError(3)
    batch = opened(nv, clock).read("links", frozenset())
    assert [(reading.uuid, len(reading.links)) for reading in batch.readings] == [("GPU-0", 0), ("GPU-1", 18)]
    assert batch.faults == ()


BUS_IDS = [
    ("00000000:65:00.0", "0000:65:00.0"),
    ("00010000:E1:1F.7", "10000:e1:1f.7"),
    ("0000:1A:00.0", "0000:1a:00.0"),
    ("FFFFFFFF:FF:FF.0", None),
    ("", None),
    (None, None),
]


@pytest.mark.parametrize(("bus_id", "bdf"), BUS_IDS)
def test_bus_ids_become_sysfs_names(bus_id, bdf):
    assert sysfs_bdf(bus_id) == bdf


@given(st.text())
def test_any_text_is_a_bus_id_or_none(text):
    assert sysfs_bdf(text) is None or ":" in text


@pytest.mark.parametrize("answer", [pynvml.NVMLError(999), pynvml.NVMLError(4), 7], ids=["error", "denied", "garbage"])
def test_a_link_that_is_not_read_is_unknown_and_not_down(nv, reader, clock, answer):
    read(reader)
    nv.called.clear()
    nv.gpus[0].answers[STATE] = lambda link: answer if link == 5 else 1
    clock.seconds += 5
    batch = reader.read("links", frozenset())
    link = batch.readings[0].links[5]
    assert [each.active for each in batch.readings[0].links] == [True] * 5 + [None] + [True] * 12
    assert (link.version, link.rate_bytes_per_second, link.tx_bytes) == ("4.0", 26.562e9, 15 * 1024)
    assert [(fault.uuid, fault.call) for fault in batch.faults] == [("GPU-0", STATE)]
    assert nv.called["nvmlDeviceGetNvLinkVersion"] == 0, "nothing changed, so what does not change is not asked anew"
    nv.gpus[0].answers[STATE] = 1
    clock.seconds += 600
    assert {each.active for each in read(reader).links} == {True}
    assert nv.called["nvmlDeviceGetNvLinkVersion"] == 0


def test_paths_are_not_asked_anew_for_a_link_that_was_not_read(nv, reader, clock):
    read(reader)
    reader.read("fabric", frozenset())
    nv.called.clear()
    nv.gpus[0].answers[STATE] = lambda link: pynvml.NVMLError(999) if link == 5 else 1
    assert None in {each.active for each in read(reader).links}
    reader.read("fabric", frozenset())
    assert nv.called["nvmlDeviceGetP2PStatus"] == 0


def test_a_link_first_read_later_then_tells_its_rate(nv, clock):
    nv.gpus[0].answers[STATE] = lambda link: pynvml.NVMLError(999) if link == 5 else 1
    reader = opened(nv, clock)
    first = read(reader).links[5]
    assert (first.active, first.rate_bytes_per_second, first.tx_bytes) == (None, None, None)
    nv.gpus[0].answers[STATE] = 1
    later = read(reader).links[5]
    assert (later.active, later.rate_bytes_per_second, later.tx_bytes) == (True, 26.562e9, 15 * 1024)


def test_a_slot_that_the_driver_says_is_none_is_no_link(nv, clock):
    nv.gpus[0].fields[91, 0] = 20
    links = read(opened(nv, clock)).links
    assert [link.index for link in links] == list(range(18))
    assert {link.active for link in links} == {True}


@pytest.mark.parametrize("broken", ["the field and the first state", "the field and a state in the middle"])
def test_links_that_could_not_be_counted_at_first_are_counted_later(nv, clock, broken):
    first = 0 if broken == "the field and the first state" else 5
    nv.gpus[0].fields[91, 0] = pynvml.NVMLError(27)
    nv.gpus[0].answers[STATE] = lambda link: pynvml.NVMLError(27) if link >= first else 1
    reader = Reader(nv, clock, lambda uuid, call: None)
    inventory = reader.open()
    assert inventory.gpus[0].link_count is None, "neither none nor five"
    batch = reader.read("links", frozenset())
    assert [reading.uuid for reading in batch.readings] == ["GPU-1"]
    assert {(fault.uuid, fault.code) for fault in batch.faults} == {("GPU-0", 27)}
    nv.gpus[0].fields[91, 0] = 18
    nv.gpus[0].answers[STATE] = 1
    assert len(read(reader).links) == 18


def getters(nv):
    return nv.called["nvmlDeviceGetNvLinkErrorCounter"]


def test_error_counters_that_cost_a_call_each_are_asked_every_15_s(nv, reader, clock):
    told = [pynvml.NVMLError(999)] * 18
    nv.gpus[0].answers["nvmlDeviceGetNvLinkErrorCounter"] = lambda link, counter: told[link]
    asked, ecc = [], []
    for poll in range(7):
        told[3] = 1000 + poll
        nv.called.clear()
        links = read(reader).links
        asked.append(getters(nv))
        ecc.append([dict(link.errors).get("ecc") for link in links])
        assert {len(link.errors) for link in links if link.index != 3} == {3}, "the fields are read each time"
        clock.seconds += 5
    assert asked == [36, 0, 0, 36, 0, 0, 36]
    assert [counts[3] for counts in ecc] == [1000, 1000, 1000, 1003, 1003, 1003, 1006]
    assert {counts[4] for counts in ecc} == {None}, "what failed is not told"


def test_a_link_that_comes_up_has_its_errors_at_once(nv, reader, clock):
    nv.gpus[0].answers[STATE] = lambda link: int(link != 5)
    assert read(reader).links[5].errors == ()
    nv.gpus[0].answers[STATE] = 1
    clock.seconds += 5
    assert dict(read(reader).links[5].errors)["ecc"] == 405


IDLE = {
    "nvmlDeviceGetComputeRunningProcesses": [],
    "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=0, memory=0),
}


def test_links_of_a_gpu_that_nothing_uses_are_asked_every_15_s_and_told_in_between(nv, reader, clock):
    used = dict(nv.gpus[0].answers)
    nv.gpus[0].answers |= IDLE
    nv.gpus[0].gpm[1] = 0.0
    busy, idle = [], []
    for _ in range(13):
        for _ in range(5):
            clock.seconds += 1
            reader.read("activity", frozenset())
        nv.log.clear()
        batch = reader.read("links", frozenset())
        told = {reading.uuid: clock.seconds - reading.at for reading in batch.readings}
        assert set(told) == {"GPU-0", "GPU-1"}
        idle.append((told["GPU-0"], len([call for call in nv.log if call[1][0] is nv.gpus[0]]) > 0))
        busy.append(told["GPU-1"])
    assert set(busy) == {0}
    assert idle[1:] == [(5, False), (10, False), (0, True)] * 4
    nv.gpus[0].answers = used
    for _ in range(6):
        clock.seconds += 1
        reader.read("activity", frozenset())
    assert read(reader).at == clock.seconds, "read anew as soon as it is used"


def test_an_idle_gpus_link_that_was_not_read_is_asked_again_at_the_next_reading(nv, reader, clock):
    nv.gpus[0].answers |= IDLE
    nv.gpus[0].gpm[1] = 0.0
    for _ in range(3):
        clock.seconds += 1
        reader.read("activity", frozenset())
    nv.gpus[0].answers[STATE] = lambda link: pynvml.NVMLError(999) if link == 5 else 1
    assert read(reader).links[5].active is None
    nv.gpus[0].answers[STATE] = 1
    clock.seconds += 5
    assert read(reader).links[5].active is True
    clock.seconds += 5
    assert clock.seconds - read(reader).at == 5, "idle all the time"
