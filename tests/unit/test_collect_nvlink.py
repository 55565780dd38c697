"""The nvlink collector: nominal and usable capacity, fallen back pairs, errors that neither hide nor jump."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from support.gpus import NOW, FakeNvml, gpu, host_of, lost, of, poll, reading, uuids

from gpuhost_exporter.collectors.fabric import FabricCollector
from gpuhost_exporter.collectors.nvlink import NvlinkCollector
from gpuhost_exporter.config import CollectorSettings
from gpuhost_exporter.errors import Unavailable
from gpuhost_exporter.sources.nvml.readings import Activity, Batch, Fabric, Health, Link, Links, Peer

BRIDGED = "NVIDIA H100 NVL"


def link(index, active=True, remote="switch", **told):
    return reading(Link, index=index, active=active, remote=remote, version="4.0", **told)


def links(index, count=18, down=(), **told):
    return Links(f"GPU-{index}", NOW, tuple(link(number, number not in down, **told) for number in range(count)))


def fabric(index, state="completed", status=0, at=NOW):
    return reading(Fabric, uuid=f"GPU-{index}", at=at, state=state, status_code=status)


def peer(one, other, nvlink="ok", at=NOW):
    return Peer(f"GPU-{one}", f"GPU-{other}", at, nvlink, "ok", "ok")


def collector_of(*gpus, told=None, around=(), health=(), targets=None):
    """A host whose links are up, with what the fabric and the health collector have posted."""
    devices = gpus or (gpu(0), gpu(1))
    answer = told if told is not None else [links(device.index) for device in devices]
    host = host_of(FakeNvml(*devices, links=answer), targets=targets)
    host.board.post("fabric", tuple(around), until=math.inf)
    host.board.post("health", tuple(health), until=math.inf)
    return NvlinkCollector(host)


READY = (fabric(0), fabric(1), peer(0, 1), peer(1, 0))


def test_a_whole_h100_has_900_gigabytes_a_second_nominal_and_usable():
    found = poll(collector_of(around=READY))
    for index in (0, 1):
        assert of(found, "nvlink_links_active", index=index) == 18
        assert of(found, "nvlink_links_expected", index=index) == 18
        assert of(found, "nvlink_capacity_bytes_per_second", index=index) == 900e9
        assert of(found, "nvlink_usable_bytes_per_second", index=index) == 900e9
        assert of(found, "nvlink_fallback_peers", index=index) == 0
    assert "nvlink_pair_fallback" not in found


def test_one_dead_link_of_18_leaves_850_and_is_the_only_one_down():
    found = poll(collector_of(told=[links(0, down={7}), links(1)], around=READY))
    assert of(found, "nvlink_capacity_bytes_per_second") == 850e9
    assert of(found, "nvlink_usable_bytes_per_second") == 850e9
    assert of(found, "nvlink_links_active") == 17
    assert of(found, "nvlink_links_expected") == 18
    assert [labels for labels, up in found["nvlink_up"].items() if not up] == [("0", "GPU-0", "7")]
    assert of(found, "nvlink_capacity_bytes_per_second", index=1) == 900e9


@pytest.mark.parametrize(
    ("around", "usable"),
    [
        (READY, 900e9),
        ((fabric(0, "in_progress", None), *READY[1:]), 0),
        ((fabric(0, "not_started", None), *READY[1:]), 0),
        ((fabric(0, status=999), *READY[1:]), 0),
        ((fabric(0, "not_supported", None), *READY[1:]), 900e9),
        ((*READY[:2], peer(0, 1, "disabled")), 0),
        ((fabric(0, "in_progress", None),), 0),
        ((fabric(0, status=None), *READY[1:]), None),
        ((fabric(0, state=None, status=None), *READY[1:]), None),
        (READY[1:], None),
        (READY[:2], None),
        ((*READY[:2], peer(0, 1, None)), None),
        ((*READY[:2], peer(0, 1, "unknown")), None),
        ((), None),
    ],
    ids=[
        "ready",
        "registering",
        "not started",
        "completed with an error",
        "no fabric",
        "peer not over NVLink",
        "registering and peers not told",
        "status not told",
        "state not told",
        "no fabric reading",
        "no peers told",
        "peer not told",
        "peer unknown",
        "nothing told",
    ],
)
def test_active_links_are_usable_only_with_fabric_and_peers_and_unknown_is_not_guessed(around, usable):
    found = poll(collector_of(around=around))
    assert of(found, "nvlink_usable_bytes_per_second") == usable
    assert of(found, "nvlink_capacity_bytes_per_second") == 900e9, "nominal does not depend on it"


@pytest.mark.parametrize(
    ("interval", "age", "usable"), [(None, 45, 900e9), (None, 45.5, None), (60.0, 180, 900e9), (60.0, 180.5, None)]
)
def test_what_the_fabric_said_holds_for_three_of_its_collectors_intervals(interval, age, usable):
    collector = collector_of()
    host = collector.host
    host.settings = replace(host.settings, collectors={"fabric": CollectorSettings(interval=interval)})
    host.nvml.answers["fabric"] = READY
    poll(FabricCollector(host))
    found = poll(collector, now=NOW + age)
    assert of(found, "nvlink_usable_bytes_per_second") == usable
    assert of(found, "nvlink_fallback_peers") == (None if usable is None else 0)


def test_a_gpu_from_before_hopper_does_not_register_so_its_peers_decide():
    devices = [gpu(index, "NVIDIA A100-SXM4-80GB", architecture="ampere") for index in (0, 1)]
    told = [links(index, count=12) for index in (0, 1)]
    found = poll(collector_of(*devices, told=told, around=(peer(0, 1), peer(1, 0, "disabled"))))
    assert of(found, "nvlink_usable_bytes_per_second", index=0) == 600e9
    assert of(found, "nvlink_usable_bytes_per_second", index=1) == 0


def test_a_pair_that_falls_back_is_named_and_counted_and_the_others_are_not():
    devices = [gpu(index) for index in range(3)]
    pairs = [peer(one, other) for one in range(3) for other in range(3) if one != other and {one, other} != {0, 2}]
    around = [*map(fabric, range(3)), *pairs, peer(0, 2, "not_supported"), peer(2, 0, "not_supported")]
    found = poll(collector_of(*devices, around=around))
    assert found["nvlink_pair_fallback"] == {("0", "GPU-0", "2"): 1, ("2", "GPU-2", "0"): 1}
    assert [of(found, "nvlink_fallback_peers", index=index) for index in range(3)] == [1, 0, 1]
    assert [of(found, "nvlink_usable_bytes_per_second", index=index) for index in range(3)] == [0, 900e9, 0]


def test_bridged_cards_are_peers_only_of_what_is_at_the_other_end():
    devices = [gpu(index, BRIDGED) for index in range(4)]
    told = [links(index, count=12, remote="gpu", remote_bdf=devices[index ^ 1].bdf) for index in range(4)]
    pairs = [
        peer(one, other, "ok" if one ^ 1 == other else "topology_not_supported")
        for one in range(4)
        for other in range(4)
        if one != other
    ]
    around = [*pairs, *(fabric(index, "not_supported", None) for index in range(4))]
    found = poll(collector_of(*devices, told=told, around=around))
    assert "nvlink_pair_fallback" not in found
    assert set(found["nvlink_usable_bytes_per_second"].values()) == {600e9}


def test_a_bridge_that_is_taken_off_is_a_pair_fallen_back():
    devices = [gpu(index, BRIDGED) for index in (0, 1)]
    told = [links(index, count=12, remote="gpu", remote_bdf=devices[index ^ 1].bdf) for index in (0, 1)]
    around = [fabric(index, "not_supported", None) for index in (0, 1)]
    collector = collector_of(*devices, told=told, around=[*around, peer(0, 1), peer(1, 0)])
    poll(collector)
    collector.host.nvml.answers["links"] = [links(index, 12, down=range(12), remote=None) for index in (0, 1)]
    told = (*around, peer(0, 1, "not_supported"), peer(1, 0, "not_supported"))
    collector.host.board.post("fabric", told, until=math.inf)
    found = poll(collector)
    assert of(found, "nvlink_pair_fallback", "1") == 1
    assert of(found, "nvlink_capacity_bytes_per_second") == 0
    assert of(found, "nvlink_links_expected") == 12, "as many as were there"


def test_cards_that_never_had_a_bridge_have_not_fallen_back():
    devices = [gpu(index, BRIDGED) for index in (0, 1)]
    told = [links(index, 12, down=range(12), remote=None) for index in (0, 1)]
    around = [fabric(0, "not_supported", None), fabric(1, "not_supported", None), peer(0, 1, "not_supported")]
    found = poll(collector_of(*devices, told=told, around=around))
    assert of(found, "nvlink_links_expected") == 0
    assert of(found, "nvlink_fallback_peers") == 0
    assert "nvlink_pair_fallback" not in found
    assert "nvlink_fallback_slowdown" not in found


def test_partitioned_gpus_are_neither_judged_nor_peers():
    health = [reading(Health, uuid="GPU-0", at=NOW, mig_enabled=True)]
    around = [fabric(0), fabric(1), peer(0, 1, "not_supported"), peer(1, 0, "not_supported")]
    found = poll(collector_of(around=around, health=health))
    assert of(found, "nvlink_usable_bytes_per_second", index=0) is None
    assert of(found, "nvlink_fallback_peers", index=0) is None
    assert of(found, "nvlink_usable_bytes_per_second", index=1) == 900e9
    assert "nvlink_pair_fallback" not in found


@pytest.mark.parametrize(
    ("generation", "width", "slowdown"),
    [(5, 16, 7.14), (4, 16, 14.3), (3, 16, 28.6), (5, 8, 14.3), (None, 16, None), (5, None, None)],
)
def test_what_a_fallback_costs_follows_from_the_pcie_link_found(generation, width, slowdown):
    health = [reading(Health, uuid="GPU-0", at=NOW, pcie_generation_max=generation, pcie_width=width)]
    found = poll(collector_of(health=health))
    assert of(found, "nvlink_fallback_slowdown") == (slowdown and pytest.approx(slowdown, rel=0.01))
    assert of(found, "nvlink_fallback_slowdown", index=1) is None


@pytest.mark.parametrize(
    ("told", "slowdown"),
    [
        ({"graphics_ratio": 0.9}, 28.6),
        ({"utilization_ratio": 0.9}, 28.6),
        ({"graphics_ratio": 0.0, "utilization_ratio": 0.9}, 7.14),
        ({"graphics_ratio": 0.5}, 7.14),
        ({}, 7.14),
    ],
    ids=["under load", "without GPM", "GPM wins", "idle", "not told"],
)
def test_a_link_that_trained_low_costs_more_and_only_load_shows_that(told, slowdown):
    health = [
        reading(Health, uuid=f"GPU-{index}", at=NOW, pcie_generation=3, pcie_generation_max=5, pcie_width=16)
        for index in (0, 1)
    ]
    collector = collector_of(health=health)
    assert of(poll(collector), "nvlink_fallback_slowdown") == pytest.approx(7.14, rel=0.01)
    activity = reading(Activity, uuid="GPU-0", at=NOW, since=NOW - 1, gpm="ok", **told)
    collector.host.board.post("activity", (activity,), until=math.inf)
    found = poll(collector)
    assert of(found, "nvlink_fallback_slowdown") == pytest.approx(slowdown, rel=0.01)
    assert of(found, "nvlink_fallback_slowdown", index=1) == pytest.approx(7.14, rel=0.01)


def test_the_generation_that_an_idle_link_had_is_not_taken_for_its_generation_under_load():
    idle = reading(Health, uuid="GPU-0", at=NOW - 1, pcie_generation=1, pcie_generation_max=5, pcie_width=16)
    collector = collector_of(health=[idle])
    for second, slowdown in [(0, 7.14), (5, 7.14), (10, 14.3)]:
        if second == 10:
            loaded = replace(idle, at=NOW + 9, pcie_generation=4)
            collector.host.board.post("health", (loaded,), until=math.inf)
        told = reading(Activity, uuid="GPU-0", at=NOW + second, since=NOW, gpm="ok", graphics_ratio=0.9)
        collector.host.board.post("activity", (told,), until=math.inf)
        assert of(poll(collector), "nvlink_fallback_slowdown") == pytest.approx(slowdown, rel=0.01)


@pytest.mark.parametrize(
    ("name", "version", "count", "targets", "capacity", "expected"),
    [
        ("NVIDIA X1", "4.0", 18, None, 900e9, 18),
        ("NVIDIA X1", "5.0", 18, None, 1800e9, 18),
        ("NVIDIA X1", "6.0", 18, None, None, 18),
        ("NVIDIA X1", "4.0", 6, {"nvlink_bandwidth_bytes_per_second": 600e9}, 300e9, 12),
        ("NVIDIA B200", "5.0", 17, None, 1700e9, 18),
    ],
    ids=["unknown product, NVLink 4", "NVLink 5", "a version not known", "the site's figure", "B200"],
)
def test_capacity_uses_the_payload_rate_never_the_signalling_rate(name, version, count, targets, capacity, expected):
    told = Links("GPU-0", NOW, tuple(
        reading(Link, index=number, active=True, version=version, rate_bytes_per_second=26.562e9)
        for number in range(count)
    ))  # fmt: skip
    found = poll(collector_of(gpu(0, name), told=[told], targets=targets))
    assert of(found, "nvlink_capacity_bytes_per_second") == capacity
    assert of(found, "nvlink_links_expected") == expected


def test_an_unknown_product_is_held_to_the_most_links_of_its_like():
    devices = [gpu(index, "NVIDIA X1") for index in (0, 1)]
    found = poll(collector_of(*devices, told=[links(0, 18), links(1, 18, down={3, 4})]))
    assert of(found, "nvlink_links_expected", index=1) == 18
    assert of(found, "nvlink_links_active", index=1) == 16


def test_a_product_with_nvlink_that_reports_none_has_none_of_its_links():
    told = [Links("GPU-0", NOW, ()), links(1)]
    found = poll(collector_of(told=told, around=(*READY[:2], peer(0, 1, "disabled"), peer(1, 0, "disabled"))))
    assert of(found, "nvlink_links_active") == 0
    assert of(found, "nvlink_links_expected") == 18
    assert of(found, "nvlink_capacity_bytes_per_second") == 0
    assert of(found, "nvlink_pair_fallback", "0", index=1) == 1
    assert uuids({"up": found["nvlink_up"]}) == {"GPU-1"}


def test_a_product_without_nvlink_has_no_series():
    assert poll(collector_of(gpu(0, "NVIDIA L40S"), told=[Links("GPU-0", NOW, ())])) == {}


def test_a_product_whose_links_could_not_be_counted_is_not_said_to_have_none():
    found = poll(collector_of(told=[links(1)], around=READY))
    assert uuids(found) == {"GPU-1"}
    assert of(found, "nvlink_links_active", index=1) == 18


def test_with_a_link_unread_its_gpus_capacity_is_not_known_and_the_others_is():
    unread = Links("GPU-0", NOW, (*links(0).links[:17], link(17, active=None, rate_bytes_per_second=26.562e9)))
    collector = collector_of(around=READY)
    poll(collector)
    collector.host.nvml.answers["links"] = [unread, links(1)]
    found = poll(collector)
    for name in ("links_active", "capacity_bytes_per_second", "usable_bytes_per_second"):
        assert of(found, f"nvlink_{name}") is None, name
    assert of(found, "nvlink_up", "17") is None
    assert of(found, "nvlink_up", "16") == 1
    assert of(found, "nvlink_links_expected") == 18
    assert of(found, "nvlink_fallback_peers") == 0
    assert ("0", "GPU-0", "17", "4.0", "switch", "", "26562000000") in found["nvlink_info"]
    assert of(found, "nvlink_usable_bytes_per_second", index=1) == 900e9
    collector.host.nvml.answers["links"] = [links(0), links(1)]
    assert of(poll(collector), "nvlink_capacity_bytes_per_second") == 900e9


def test_bytes_by_link_and_direction():
    told = Links("GPU-0", NOW, (link(3, tx_bytes=10, rx_bytes=0), link(4, tx_bytes=5)))
    found = poll(collector_of(gpu(0), told=[told]))
    assert found["nvlink_bytes_total"] == {
        ("0", "GPU-0", "3", "tx"): 10,
        ("0", "GPU-0", "3", "rx"): 0,
        ("0", "GPU-0", "4", "tx"): 5,
    }


def test_errors_are_shown_by_link_where_there_are_any_and_by_gpu_always():
    told = Links("GPU-0", NOW, (
        link(0, errors=(("replay", 0), ("crc", 2))),
        link(1, errors=(("replay", 0), ("crc", 3))),
    ))  # fmt: skip
    found = poll(collector_of(gpu(0), told=[told]))
    assert found["nvlink_errors_total"] == {("0", "GPU-0", "0", "crc"): 2, ("0", "GPU-0", "1", "crc"): 3}
    assert found["gpu_nvlink_errors_total"] == {("0", "GPU-0", "replay"): 0, ("0", "GPU-0", "crc"): 5}


def test_a_link_that_goes_down_does_not_pull_the_gpus_error_total_back():
    up = Links("GPU-0", NOW, (link(0, errors=(("crc", 7),)), link(1, errors=(("crc", 1),))))
    down = Links("GPU-0", NOW, (link(0, active=False), link(1, errors=(("crc", 2),))))
    collector = collector_of(gpu(0), told=[up])
    totals = []
    for told in (up, down, up):
        collector.host.nvml.answers["links"] = [told]
        totals.append(of(poll(collector), "gpu_nvlink_errors_total", "crc"))
    assert totals == [8, 9, 8]


def test_static_facts_are_in_one_info():
    told = Links("GPU-0", NOW, (link(0, rate_bytes_per_second=26.562e9), link(1, False, None)))
    assert poll(collector_of(gpu(0), told=[told]))["nvlink_info"] == {
        ("0", "GPU-0", "0", "4.0", "switch", "", "26562000000"): 1,
        ("0", "GPU-0", "1", "4.0", "", "", ""): 1,
    }


def test_a_lost_gpu_has_no_capacity_and_leaves_its_siblings_theirs():
    collector = collector_of(told=Batch(NOW, (links(1),), (lost("GPU-0"),)), around=(fabric(1),))
    collector.host.nvml.states["GPU-0"] = "lost"
    found = poll(collector)
    assert uuids(found) == {"GPU-1"}
    assert of(found, "nvlink_usable_bytes_per_second", index=1) == 900e9
    assert of(found, "nvlink_fallback_peers", index=1) == 0


def test_a_driver_that_is_down_is_the_collectors_failure():
    collector = collector_of()
    collector.host.nvml.answers["links"] = Unavailable("starting")
    with pytest.raises(Unavailable):
        poll(collector)
