"""The host at a glance: what is told is shown, what is not told is None, and the headline says the gravest thing."""

from __future__ import annotations

import pytest

from gpuhost_exporter import figures
from gpuhost_exporter.collectors import (
    block,
    driver,
    gpu,
    inventory,
    mig,
    nvlink,
    nvme,
    raid,
    rdma,
    storage,
    targets,
    xid,
)
from gpuhost_exporter.exposition import BUILD, SIMULATED
from gpuhost_exporter.latest import Latest, Rates
from gpuhost_exporter.runner import AGE, ERRORS, IN_FLIGHT, UP
from gpuhost_exporter.status import GpuRow, build


def gpus(count, state="ok"):
    for index in map(str, range(count)):
        yield driver.GPU_UP(index, f"GPU-{index}", value=state == "ok")
        yield driver.GPU_STATE(index, f"GPU-{index}", state)


@pytest.mark.parametrize(
    ("samples", "verdict", "headline"),
    [
        ([], "unknown", "Nothing is known of the GPUs yet"),
        ([*gpus(8)], "good", "All 8 GPUs deliver"),
        ([*gpus(1)], "good", "The GPU delivers"),
        ([*gpus(2), rdma.UP("mlx5_0", "1", value=0)], "good", "All 2 GPUs deliver"),
        ([*gpus(2, "lost")], "critical", "GPUs 0-1: lost: it fell off the bus"),
        ([*gpus(2), inventory.STATE_WRITABLE(value=0)], "warning", "State directory: cannot be written"),
        ([driver.NVML_STATE("released"), *gpus(2, "unknown")], "info", "Driver: NVML is released by request"),
        ([driver.NVML_STATE("no_library")], "info", "No GPU is expected on this host"),
        (
            [driver.NVML_STATE("no_library"), driver.GPUS_ON_BUS(value=8)],
            "critical",
            "8 NVIDIA GPUs on the PCI bus and no driver",
        ),
        ([driver.NVML_STATE("starting"), *gpus(2, "unknown")], "unknown", "Nothing is known of the GPUs yet"),
    ],
    ids=["nothing", "eight", "one", "note", "lost", "warning", "released", "no gpu", "no driver", "starting"],
)
def test_the_headline_is_the_gravest_finding_or_good_news(samples, verdict, headline):
    status = build(samples)
    assert (status.verdict, status.headline) == (verdict, headline)


def test_what_a_gpu_does_not_tell_is_none_and_never_zero():
    (row,) = build(gpus(1)).gpus
    told = {"index", "uuid", "name", "state", "links", "xid_severity"}
    assert all(getattr(row, name) is None for name in GpuRow.__slots__ if name not in told)


def test_what_a_gpu_tells_is_shown():
    labels = ("0", "GPU-0")
    samples = [
        *gpus(1),
        gpu.UTILIZATION(*labels, value=0.95),
        gpu.TEMPERATURE(*labels, "core", value=64),
        gpu.TEMPERATURE(*labels, "memory", value=74),
        gpu.THROTTLE_ACTIVE(*labels, "hw_thermal", value=1),
        gpu.THROTTLE_ACTIVE(*labels, "hw_slowdown", value=0),
        nvlink.UP(*labels, "10", value=1),
        nvlink.UP(*labels, "2", value=0),
        xid.EVENTS(*labels, "critical", value=1),
        xid.EVENTS(*labels, "warning", value=2),
        xid.EVENTS(*labels, "application", value=40),
        targets.MEMORY_BANDWIDTH(*labels, value=3.35e12),
    ]
    (row,) = build(samples).gpus
    assert (row.utilization, row.temperature, row.memory_temperature) == (0.95, 64, 74)
    assert row.throttling == ("hw_thermal",)
    assert row.links == ((2, False), (10, True))
    assert row.xids == 3
    assert row.memory_bandwidth_target == 3.35e12
    assert row.memory_bandwidth is None


@pytest.mark.parametrize(
    ("counted", "shown"), [(0, 2), (1, 2), (5, 5)], ids=["not in the counter yet", "one of two", "other codes too"]
)
def test_an_xid_counts_from_the_moment_it_is_seen(counted, shown):
    labels = ("0", "GPU-0")
    samples = [
        *gpus(1),
        xid.EVENTS(*labels, "critical", value=counted),
        xid.LAST(*labels, "79", value=1000),
        xid.LAST(*labels, "119", value=1000),
        xid.LAST(*labels, "13", value=1000),
        *(xid.INFO(code, "", "critical", "") for code in ("79", "119")),
        xid.INFO("13", "", "application", ""),
    ]
    (row,) = build(samples, now=1010).gpus
    assert (row.xids, row.xid_severity) == (shown, "critical")
    (row,) = build(samples, now=1010 + 86400).gpus
    assert (row.xids, row.xid_severity) == (shown, "")


def test_a_mig_instance_has_figures_of_its_own():
    labels = ("0", "GPU-0", "1", "2")
    samples = [
        *gpus(1),
        mig.MIG_INFO(*labels, "MIG-1", "3g.40gb"),
        mig.MIG_INFO("0", "GPU-0", "2", "0", "MIG-2", ""),
        mig.UTILIZATION(*labels, value=0.5),
        mig.MEMORY_USED(*labels, value=10e9),
    ]
    first, second = build(samples).instances
    assert (first.gpu, first.gpu_instance, first.compute_instance) == ("0", "1", "2")
    assert (first.uuid, first.profile, first.utilization, first.memory_used) == ("MIG-1", "3g.40gb", 0.5, 10e9)
    assert (second.uuid, second.utilization, second.memory_used) == ("MIG-2", None, None)


def test_gpus_are_ordered_by_number_and_the_unknown_comes_last():
    samples = [driver.GPU_UP(index, "") for index in ("10", "unknown", "2")]
    assert [row.index for row in build(samples).gpus] == ["2", "10", "unknown"]


def test_storage_and_ports_take_rates_from_their_counters():
    samples = [
        raid.UP("md0"),
        nvme.UP("nvme0"),
        nvme.NAMESPACE_INFO("nvme0", "nvme0n1"),
        nvme.NAMESPACE_INFO("nvme0", "nvme0n2"),
        block.SIZE("nvme0n1", value=4e12),
        rdma.UP("mlx5_0", "1"),
        storage.TARGET("md0", "read", "good", value=20e9),
        storage.TARGET("md0", "read", "poor", value=10e9),
    ]
    rates = {
        (block.READ_BYTES, ("md0",)): 2e9,
        (block.WRITTEN_BYTES, ("nvme0n1",)): 1e9,
        (block.WRITTEN_BYTES, ("nvme0n2",)): 2e9,
        (rdma.BYTES, ("mlx5_0", "1", "tx")): 5e9,
    }
    status = build(samples, rates)
    assert (status.arrays[0].read, status.arrays[0].written) == (2e9, None)
    assert (status.arrays[0].read_target, status.arrays[0].written_target) == (20e9, None)
    assert (status.drives[0].read, status.drives[0].written, status.drives[0].size) == (None, 3e9, 4e12)
    assert (status.ports[0].received, status.ports[0].sent) == (None, 5e9)


@pytest.mark.parametrize(
    ("up", "errors", "state"),
    [
        (1, ("transient",), "ok"),
        (0, (), "waiting"),
        (0, ("absent",), "not here"),
        (0, ("denied",), "denied"),
        (0, ("malformed", "absent"), "failing"),
    ],
)
def test_a_collector_is_shown_by_what_ails_it(up, errors, state):
    samples = [UP("raid", value=up), AGE("raid", value=3), IN_FLIGHT("raid", value=0)]
    (row,) = build([*samples, *(ERRORS("raid", kind, value=1) for kind in errors)]).collectors
    told = [] if state == "not here" else list(errors)
    assert (row.state, row.age, [kind for kind, _ in row.errors]) == (state, 3, told)


@pytest.mark.parametrize(
    ("driver_state", "state"),
    [
        ("no_library", "not here"),
        ("no_gpus", "not here"),
        ("ok", "waiting"),
        ("released", "waiting"),
        ("hung", "failing"),
        ("mismatch", "failing"),
    ],
)
def test_a_collector_of_nvml_without_anybody_to_ask_is_what_the_driver_is(driver_state, state):
    rows = build([driver.NVML_STATE(driver_state), UP("gpu", value=0), UP("raid", value=0)]).collectors
    assert [(row.name, row.state, row.errors) for row in rows] == [("gpu", state, ()), ("raid", "waiting", ())]
    assert {row.age for row in rows} == {None}, "they have never read"


def test_simulation_and_version_are_told():
    status = build([SIMULATED("h100x8:steady"), BUILD("1.2.3", "3.11")])
    assert (status.simulated, status.version) == ("h100x8:steady", "1.2.3")
    assert build([SIMULATED("", value=0)]).simulated == ""


def rates_of(*readings):
    """The last look of several at one counter, as (at, value)."""
    rates = Rates([rdma.BYTES], window=60)
    for at, value in readings:
        latest = rates.look([(at, [rdma.BYTES("mlx5_0", "1", "rx", value=value), rdma.UP("mlx5_0", "1")])])
    return list(latest.values())


@pytest.mark.parametrize(
    ("readings", "expected"),
    [
        ([(10, 100)], []),
        ([(10, 100), (10, 100)], []),
        ([(10, 100), (15, 600)], [100.0]),
        ([(10, 100), (15, 600), (15, 600)], [100.0]),
        ([(10, 100), (15, 600), (20, 5)], []),
        ([(10, 100), (15, 600), (20, 5), (25, 55)], [10.0]),
        ([(0, 0), (10, 1000), (20, 1100), (30, 1200), (40, 1300)], [10.0]),
        ([(0, 0), (3600, 1000)], []),
        ([(10, 100), (15, 100)], [0.0]),
    ],
    ids=["first", "same twice", "two", "unchanged snapshot", "reset", "after reset", "last four", "long ago", "idle"],
)
def test_a_rate_needs_two_readings_of_the_same_run_within_the_window(readings, expected):
    assert rates_of(*readings) == expected


def test_a_counter_that_is_gone_is_forgotten():
    rates = Rates([rdma.BYTES])
    rates.look([(1, [rdma.BYTES("mlx5_0", "1", "rx", value=1)])])
    rates.look([])
    assert rates.look([(2, [rdma.BYTES("mlx5_0", "1", "rx", value=2)])]) == {}


def test_lookups_of_what_is_not_there_are_empty():
    latest = Latest([driver.NVML_STATE("ok", value=0)])
    assert latest.value(driver.GPU_UP, "0", "GPU-0") is None
    assert latest.state(driver.NVML_STATE) is None
    assert latest.facts(driver.GPU_INFO, "0", "GPU-0") == {}
    assert dict(latest.rows(driver.GPU_UP)) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (figures.percent(None), "\N{EN DASH}"),
        (figures.percent(0.956), "96 %"),
        (figures.rate(0.0), "0 B/s"),
        (figures.rate(3.35e12), "3.35 TB/s"),
        (figures.rate(999.6e9), "1.00 TB/s"),
        (figures.rate(1.8e12), "1.80 TB/s"),
        (figures.size(960197124096), "960 GB"),
        (figures.size(512), "512 B"),
        (figures.bits(50e9), "400 Gb/s"),
        (figures.bits(None), "\N{EN DASH}"),
        (figures.seconds(0.42), "0.4 s"),
        (figures.seconds(95), "95 s"),
        (figures.seconds(200), "3 min"),
        (figures.seconds(3 * 86400), "3 d"),
        (figures.ago(95), "95 s ago"),
        (figures.ago(None), "never"),
        (figures.of("850 GB/s", "900 GB/s"), "850 / 900 GB/s"),
        (figures.of("10.0 GB/s", "3.35 TB/s"), "10.0 GB/s / 3.35 TB/s"),
        (figures.of("0 B/s", "900 GB/s"), "0 / 900 GB/s"),
        (figures.of("17", "18"), "17 / 18"),
        (figures.of("17", "\N{EN DASH}"), "17"),
        (figures.of("\N{EN DASH}", "18"), "\N{EN DASH} / 18"),
    ],
)
def test_figures_are_short_with_a_unit(text, expected):
    assert text == expected
