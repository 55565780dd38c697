"""Health, fabric and peers."""

from __future__ import annotations

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuhost_exporter.sources.nvml.fabric import findings
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
    assert (health.encoder_ratio, health.decoder_ratio) == (0.25, 0.5)
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
    ("nvmlDeviceGetEncoderUtilization", {"encoder_ratio": None}),
    ("nvmlDeviceGetDecoderUtilization", {"decoder_ratio": None}),
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
