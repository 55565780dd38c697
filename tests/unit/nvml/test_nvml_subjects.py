"""Health, links, fabric and peers."""

from __future__ import annotations

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuhost_exporter.sources.nvml.fabric import findings
from gpuhost_exporter.sources.nvml.links import sysfs_bdf
from gpuhost_exporter.sources.nvml.reader import Reader
from gpuhost_exporter.sources.nvml.readings import Fabric, Peer


def read(reader, subject, uuid="GPU-0"):
    batch = reader.read(subject, frozenset())
    return next(reading for reading in batch.readings if reading.uuid == uuid)


def opened(nv, clock):
    reader = Reader(nv, clock, lambda uuid, call: None)
    reader.open()
    return reader


# Health


def test_health_of_a_good_gpu(reader):
    health = read(reader, "health")
    assert (health.ecc_enabled, health.ecc_pending, health.mig_enabled, health.persistence) == (True, True, False, True)
    assert health.ecc_errors == (
        ("corrected", "volatile", 0),
        ("corrected", "aggregate", 1),
        ("uncorrected", "volatile", 10),
        ("uncorrected", "aggregate", 11),
    )
    assert health.remapped_rows == (("corrected", 1), ("uncorrected", 2))
    assert (health.remap_pending, health.remap_failed, health.sram_threshold_exceeded) == (False, False, False)
    assert dict(health.remap_banks) == {"max": 637, "high": 2, "partial": 1, "low": 0, "none": 0}
    assert (health.power_limit_watts, health.power_limit_default_watts, health.power_limit_max_watts) == (650, 700, 700)
    assert (health.pcie_generation, health.pcie_width, health.pcie_replays) == (4, 16, 7)
    assert (health.pcie_generation_max, health.pcie_generation_device_max, health.pcie_width_max) == (5, 5, 16)


HEALTH_COSTS = [
    ("nvmlDeviceGetEccMode", {"ecc_enabled": None, "ecc_pending": None}),
    ("nvmlDeviceGetTotalEccErrors", {"ecc_errors": ()}),
    ("nvmlDeviceGetSramEccErrorStatus", {"sram_threshold_exceeded": None}),
    ("nvmlDeviceGetRemappedRows", {"remapped_rows": (), "remap_pending": None, "remap_failed": None}),
    ("nvmlDeviceGetRowRemapperHistogram", {"remap_banks": ()}),
    ("nvmlDeviceGetFieldValues", {"recovery_action": None}),
    ("nvmlDeviceGetPersistenceMode", {"persistence": None}),
    ("nvmlDeviceGetMigMode", {"mig_enabled": None, "mig_pending": None}),
    ("nvmlDeviceGetEnforcedPowerLimit", {"power_limit_watts": None}),
    ("nvmlDeviceGetPowerManagementDefaultLimit", {"power_limit_default_watts": None}),
    ("nvmlDeviceGetPowerManagementLimitConstraints", {"power_limit_max_watts": None}),
    ("nvmlDeviceGetCurrPcieLinkGeneration", {"pcie_generation": None}),
    ("nvmlDeviceGetGpuMaxPcieLinkGeneration", {"pcie_generation_device_max": None}),
    ("nvmlDeviceGetPcieReplayCounter", {"pcie_replays": None}),
]


@pytest.mark.parametrize("code", [3, 4, 13, 999])
@pytest.mark.parametrize(("call", "cost"), HEALTH_COSTS, ids=[call for call, _ in HEALTH_COSTS])
def test_a_failing_call_costs_its_own_part_of_the_health(nv, reader, call, cost, code):
    before = read(reader, "health")
    reader = opened(nv, reader._clock)
    nv.gpus[0].answers[call] = pynvml.NVMLError(code)
    after = read(reader, "health")
    changed = {part: getattr(after, part) for part in before.__slots__ if getattr(after, part) != getattr(before, part)}
    assert changed == cost


HEALTH_GARBAGE = [
    ("nvmlDeviceGetTotalEccErrors", 2**64 - 1, "ecc_errors", ()),
    ("nvmlDeviceGetRemappedRows", (0, 0, 7, 0), "remap_pending", None),
    ("nvmlDeviceGetEccMode", [9, 1], "ecc_enabled", None),
    ("nvmlDeviceGetCurrPcieLinkGeneration", 0, "pcie_generation", None),
    ("nvmlDeviceGetCurrPcieLinkWidth", 2**32 - 1, "pcie_width", None),
    ("nvmlDeviceGetEnforcedPowerLimit", 2**32 - 1, "power_limit_watts", None),
]


@pytest.mark.parametrize(("call", "answer", "part", "value"), HEALTH_GARBAGE)
def test_garbage_in_the_health_is_left_out_and_reported(nv, reader, call, answer, part, value):
    nv.gpus[0].answers[call] = answer
    batch = reader.read("health", frozenset())
    assert getattr(batch.readings[0], part) == value
    assert [(fault.uuid, fault.kind) for fault in batch.faults] == [("GPU-0", "malformed")]


def test_volatile_counters_that_mig_hides_leave_the_aggregate_ones(nv, reader):
    nv.gpus[0].answers["nvmlDeviceGetTotalEccErrors"] = lambda kind, counter: 5 if counter else pynvml.NVMLError(3)
    assert read(reader, "health").ecc_errors == (("corrected", "aggregate", 5), ("uncorrected", "aggregate", 5))


@pytest.mark.parametrize(("action", "word"), [(0, "none"), (1, "gpu_reset"), (4, "drain_and_reset"), (9, "other")])
def test_the_recovery_action_in_words(nv, reader, action, word):
    nv.gpus[0].fields[230, 0] = action
    assert read(reader, "health").recovery_action == word


def test_an_exceeded_sram_threshold_comes_back_through_the_structure(nv, reader):
    nv.gpus[0].sram_exceeded = 1
    assert read(reader, "health").sram_threshold_exceeded is True


CLOCKS = [
    ({}, None, None),
    ({"nvmlDeviceGetApplicationsClock": 1200}, 1.2e9, True),
    ({"nvmlDeviceGetCurrentClocksEventReasons": 0x2}, None, True),
    ({"nvmlDeviceGetClockInfo": 1980}, None, False),
    ({"nvmlDeviceGetClockInfo": pynvml.NVMLError(3)}, None, None),
    ({"nvmlDeviceGetApplicationsClock": pynvml.NVMLError(26), "nvmlDeviceGetClockInfo": 1980}, None, False),
]


@pytest.mark.parametrize(
    ("answers", "limit", "locked"), CLOCKS, ids=["lower", "target", "reason", "full", "unknown", "deprecated"]
)
def test_clocks_are_called_locked_only_where_nvml_tells(nv, reader, answers, limit, locked):
    nv.gpus[0].answers |= answers
    health = read(reader, "health")
    assert (health.sm_clock_limit_hertz, health.clocks_locked) == (limit, locked)


def test_the_call_that_blocks_for_20_ms_is_never_made(nv, reader, clock):
    for subject in ("activity", "health", "links", "fabric", "mig"):
        reader.read(subject, frozenset())
    assert nv.called["nvmlDeviceGetPcieThroughput"] == 0


# Links


def test_a_hopper_link_counts_by_the_data_link_fields(reader):
    links = read(reader, "links").links
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
    link = read(opened(nv, clock), "links").links[3]
    assert link.errors == (("replay", 3), ("recovery", 103), ("crc", 203), ("ecc", 403))


def test_a_blackwell_link_has_other_counters(nv, clock):
    gpu = nv.gpus[0]
    gpu.answers |= {"nvmlDeviceGetArchitecture": 10, "nvmlDeviceGetNvLinkVersion": 7}
    gpu.answers["nvmlDeviceGetNvLinkErrorCounter"] = pynvml.NVMLError(3)
    for link in range(18):
        gpu.fields |= {(202, link): 1000 + link, (204, link): 2000 + link, (215, link): link}
        gpu.fields[161, link] = 99
    link = read(opened(nv, clock), "links").links[3]
    assert (link.version, link.tx_bytes, link.rx_bytes) == ("5.0", 1003, 2003)
    assert link.errors == (("recovery", 3),)


def test_a_dead_link_has_no_rate_no_bytes_and_no_errors(nv, clock):
    nv.gpus[0].answers["nvmlDeviceGetNvLinkState"] = lambda link: int(link != 5)
    nv.gpus[0].fields[164, 5] = 0
    links = read(opened(nv, clock), "links").links
    assert (links[5].active, links[5].rate_bytes_per_second) == (False, None)
    assert (links[5].tx_bytes, links[5].rx_bytes, links[5].errors) == (None, None, ())
    assert [link.index for link in links if link.active] == [link for link in range(18) if link != 5]


def test_a_link_that_comes_back_tells_what_it_refused_while_down(nv, reader):
    nv.gpus[0].answers["nvmlDeviceGetNvLinkState"] = lambda link: int(link != 5)
    nv.gpus[0].answers["nvmlDeviceGetNvLinkVersion"] = lambda link: 6 if link != 5 else pynvml.NVMLError(3)
    down = read(reader, "links").links[5]
    assert (down.version, down.rate_bytes_per_second) == (None, None)
    nv.gpus[0].answers |= {"nvmlDeviceGetNvLinkState": 1, "nvmlDeviceGetNvLinkVersion": 6}
    up = read(reader, "links").links[5]
    assert (up.version, up.rate_bytes_per_second, up.tx_bytes) == ("4.0", 26.562e9, 15 * 1024)


@pytest.mark.parametrize(("number", "version"), [(4, "3.0"), (5, "3.1"), (6, "4.0"), (7, "5.0"), (99, None)])
def test_the_version_is_an_enumeration_not_a_number(nv, reader, number, version):
    nv.gpus[0].answers["nvmlDeviceGetNvLinkVersion"] = number
    assert {link.version for link in read(reader, "links").links} == {version}


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
    assert len(read(reader, "links").links) == 12


def test_a_gpu_without_nvlink_has_no_links_and_no_fault(nv, clock):
    nv.gpus[0].fields = {}
    nv.gpus[0].answers["nvmlDeviceGetNvLinkState"] = pynvml.NVMLError(3)
    batch = opened(nv, clock).read("links", frozenset())
    assert ([reading.uuid for reading in batch.readings], batch.faults) == (["GPU-1"], ())


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


# Fabric and peers


def fabrics(batch):
    return [reading for reading in batch.readings if isinstance(reading, Fabric)]


def peers(batch):
    return [reading for reading in batch.readings if isinstance(reading, Peer)]


def test_a_registered_gpu(nv, reader):
    nv.gpus[0].fabric |= {"healthMask": 0b10_10_10_10, "healthSummary": 1, "cliqueId": 32766}
    nv.gpus[0].fabric["clusterUuid"] = (pynvml.c_uint8 * 16)(*range(16))
    fabric = fabrics(reader.read("fabric", frozenset()))[0]
    assert (fabric.state, fabric.status_code, fabric.summary, fabric.clique) == ("completed", 0, "healthy", "32766")
    assert fabric.cluster_uuid == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert set(dict(fabric.health).values()) == {False}


@pytest.mark.parametrize(("state", "word"), [(0, "not_supported"), (1, "not_started"), (2, "in_progress")])
def test_status_and_clique_are_told_only_once_registration_is_complete(nv, reader, state, word):
    nv.gpus[0].fabric |= {"state": state, "status": 999, "cliqueId": 5}
    fabric = fabrics(reader.read("fabric", frozenset()))[0]
    assert (fabric.state, fabric.status_code, fabric.clique, fabric.cluster_uuid) == (word, None, None, None)


MASKS = [
    (0, {}),
    (0b01, {"degraded_bandwidth": True}),
    (0b10, {"degraded_bandwidth": False}),
    (0b11, {}),
    (0b01 << 4, {"route_unhealthy": True}),
    (1 << 8, {"incorrect_configuration": False}),
    (5 << 8, {"incorrect_configuration": True, "insufficient_nvlinks": True}),
    (15 << 8, {"incorrect_configuration": True}),
    (1 << 12, {"no_partition_assigned": False}),
    (2 << 14, {"fabric_manager_disconnected": True}),
]


@pytest.mark.parametrize(("mask", "expected"), MASKS)
def test_in_the_health_mask_one_is_the_bad_state(mask, expected):
    assert dict(findings(mask)) == expected


@given(st.integers(0, 2**32 - 1))
def test_any_mask_names_each_finding_at_most_once(mask):
    words = [word for word, _ in findings(mask)]
    assert len(words) == len(set(words))


def test_an_older_driver_fills_the_older_structure(nv, reader):
    def version_2(reference):
        if reference._obj.version != pynvml.nvmlGpuFabricInfo_v2:
            raise pynvml.NVMLError(25)
        reference._obj.state = 3

    nv.gpus[0].answers["nvmlDeviceGetGpuFabricInfoV"] = version_2
    for _ in range(3):
        fabric = fabrics(reader.read("fabric", frozenset()))[0]
        assert (fabric.uuid, fabric.state, fabric.summary) == ("GPU-0", "completed", None)
    assert nv.called["nvmlDeviceGetGpuFabricInfoV"] == 4 + 3


def test_a_gpu_that_knows_no_fabric_has_no_fabric_reading(nv, reader):
    nv.gpus[0].answers["nvmlDeviceGetGpuFabricInfoV"] = pynvml.NVMLError(3)
    batch = reader.read("fabric", frozenset())
    assert ([fabric.uuid for fabric in fabrics(batch)], batch.faults) == (["GPU-1"], ())


def test_every_ordered_pair_has_its_status_in_words(nv, reader):
    nv.gpus[0].answers["nvmlDeviceGetP2PStatus"] = lambda other, index: {2: 5, 0: 4, 1: pynvml.NVMLError(3)}[index]
    found = peers(reader.read("fabric", frozenset()))
    assert [(peer.uuid, peer.peer_uuid, peer.nvlink, peer.read, peer.write) for peer in found] == [
        ("GPU-0", "GPU-1", "not_supported", "disabled", None),
        ("GPU-1", "GPU-0", "ok", "ok", "ok"),
    ]


def test_pairs_are_asked_at_every_other_reading_or_when_something_changed(nv, reader, clock):
    def asked():
        clock.seconds += 1
        nv.called.clear()
        found = peers(reader.read("fabric", frozenset()))
        return nv.called["nvmlDeviceGetP2PStatus"], clock.seconds - found[0].at

    assert asked() == (6, 0)
    assert [asked() for _ in range(3)] == [(0, 1), (0, 2), (0, 3)]
    clock.seconds += 20
    assert [asked() for _ in range(2)] == [(0, 24), (6, 0)]
    nv.gpus[0].fabric["state"] = 1
    assert asked() == (6, 0)
    reader.read("links", frozenset())
    assert asked() == (6, 0)
    nv.gpus[0].answers["nvmlDeviceGetNvLinkState"] = lambda link: int(link != 5)
    reader.read("links", frozenset())
    assert asked() == (6, 0)
    assert asked() == (0, 1)


def test_a_pair_with_a_lost_gpu_blames_neither(nv, reader):
    nv.gpus[0].answers["nvmlDeviceGetP2PStatus"] = pynvml.NVMLError(15)
    batch = reader.read("fabric", frozenset())
    assert [(peer.uuid, peer.peer_uuid) for peer in peers(batch)] == [("GPU-1", "GPU-0")]
    assert batch.faults == ()
