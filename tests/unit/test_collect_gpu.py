"""The gpu collector: activity readings to samples, and the counters that it integrates."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.gpus import NOW, FakeNvml, gpu, host_of, lost, of, poll, reading, uuids

from gpuhost_exporter.collectors.gpu import Advance, GpuCollector, Integral
from gpuhost_exporter.errors import Unavailable
from gpuhost_exporter.sources.nvml.readings import Activity, Batch, Fault, Process


def activity(index=0, at=NOW, since=NOW - 1, gpm="ok", **told):
    return reading(Activity, uuid=f"GPU-{index}", at=at, since=since, gpm=gpm, **told)


def collector_of(*readings, gpus=None, root=None):
    nvml = FakeNvml(*(gpus or (gpu(),)), activity=readings)
    return GpuCollector(host_of(nvml, root))


@pytest.mark.parametrize(
    ("field", "told", "name", "labels"),
    [
        ("sm_active_ratio", 0.8, "gpu_sm_active_ratio", ()),
        ("sm_occupancy_ratio", 0.4, "gpu_sm_occupancy_ratio", ()),
        ("tensor_ratio", 0.45, "gpu_tensor_active_ratio", ()),
        ("fp64_ratio", 0.01, "gpu_fp64_active_ratio", ()),
        ("fp32_ratio", 0.02, "gpu_fp32_active_ratio", ()),
        ("fp16_ratio", 0.03, "gpu_fp16_active_ratio", ()),
        ("memory_bandwidth_ratio", 0.5, "gpu_memory_bandwidth_ratio", ()),
        ("memory_busy_ratio", 0.6, "gpu_memory_busy_ratio", ()),
        ("memory_total_bytes", 85e9, "gpu_memory_total_bytes", ()),
        ("memory_used_bytes", 60e9, "gpu_memory_used_bytes", ()),
        ("memory_free_bytes", 24e9, "gpu_memory_free_bytes", ()),
        ("memory_reserved_bytes", 1e9, "gpu_memory_reserved_bytes", ()),
        ("sm_clock_hertz", 1.98e9, "gpu_sm_clock_hertz", ()),
        ("memory_clock_hertz", 2.619e9, "gpu_memory_clock_hertz", ()),
        ("power_watts", 640.5, "gpu_power_watts", ()),
        ("energy_joules", 1e6, "gpu_energy_joules_total", ()),
        ("core_celsius", 61.0, "gpu_temperature_celsius", ("core",)),
        ("memory_celsius", 75.0, "gpu_temperature_celsius", ("memory",)),
        ("margin_celsius", -1.0, "gpu_temperature_margin_celsius", ()),
        ("nvlink_tx_bytes", 7, "gpu_nvlink_bytes_total", ("tx",)),
        ("nvlink_rx_bytes", 8, "gpu_nvlink_bytes_total", ("rx",)),
        ("pcie_tx_bytes_per_second", 1e9, "gpu_pcie_bytes_per_second", ("tx",)),
        ("pcie_rx_bytes_per_second", 2e9, "gpu_pcie_bytes_per_second", ("rx",)),
    ],
    ids=lambda value: value if isinstance(value, str) and not value.startswith("gpu_") else "",
)
def test_each_field_becomes_its_series_and_only_where_it_is_told(field, told, name, labels):
    with_it = poll(collector_of(activity(**{field: told})))
    without = poll(collector_of(activity()))
    assert of(with_it, name, *labels) == told
    assert of(without, name, *labels) is None


def test_a_zero_is_told_and_published():
    found = poll(collector_of(activity(graphics_ratio=0.0, power_watts=0.0)))
    assert of(found, "gpu_utilization_ratio") == 0
    assert of(found, "gpu_power_watts") == 0


@pytest.mark.parametrize(
    ("gpm", "graphics", "classic", "value", "source"),
    [
        ("ok", 0.97, 1.0, 0.97, "gpm"),
        ("ok", None, 0.9, 0.9, "nvml"),
        ("warming_up", None, 0.9, 0.9, "nvml"),
        ("permission", None, 0.0, 0.0, "nvml"),
        ("unsupported", None, 0.3, 0.3, "nvml"),
        ("mig", None, None, None, "none"),
    ],
)
def test_utilization_is_gpm_else_nvml_and_says_which_and_why(gpm, graphics, classic, value, source):
    found = poll(collector_of(activity(gpm=gpm, graphics_ratio=graphics, utilization_ratio=classic)))
    assert of(found, "gpu_utilization_ratio") == value
    assert found["gpu_utilization_source_info"] == {("0", "GPU-0", source, gpm): 1}


@pytest.mark.parametrize(
    ("device", "peak", "source"),
    [
        (gpu(), 3.35e12, "product"),
        (gpu(name="NVIDIA X1", memory_clock_max_hertz=2.619e9, memory_bus_bits=5120), 3.35232e12, "clock"),
        (gpu(name="NVIDIA X1", memory_clock_max_hertz=2.619e9), None, None),
    ],
    ids=["known product", "unknown product", "unknown product without bus width"],
)
def test_bandwidth_in_bytes_is_the_ratio_of_the_products_peak_else_of_the_clocks(device, peak, source):
    found = poll(collector_of(activity(memory_bandwidth_ratio=0.5), gpus=(device,)))
    assert of(found, "gpu_memory_bandwidth_ratio") == 0.5
    if peak is None:
        assert "gpu_memory_bandwidth_bytes_per_second" not in found
        assert "gpu_memory_bandwidth_bytes_total" not in found
        assert "gpu_memory_bandwidth_peak_bytes_per_second" not in found
    else:
        assert of(found, "gpu_memory_bandwidth_bytes_per_second") == pytest.approx(peak / 2)
        assert of(found, "gpu_memory_bandwidth_bytes_total") == pytest.approx(peak / 2)
        assert of(found, "gpu_memory_bandwidth_peak_bytes_per_second", source) == pytest.approx(peak)


@pytest.mark.parametrize(
    ("windows", "seconds"),
    [
        ([(1, 2), (2, 3)], 2),
        ([(1, 2), (1, 2), (1, 2)], 1),
        ([(1, 3), (2, 4)], 3),
        ([(1, 2), (60, 61)], 2),
        ([(5, 6), (2, 3)], 1),
        ([(1, 16)], 15),
    ],
    ids=["adjoining", "repeated", "overlapping", "gap", "older", "idle GPU"],
)
def test_each_second_of_bandwidth_is_counted_once_and_gaps_not_at_all(windows, seconds):
    collector = collector_of()
    for since, at in windows:
        collector.host.nvml.answers["activity"] = [activity(since=since, at=at, memory_bandwidth_ratio=1.0)]
        found = poll(collector, now=max(at, 6))
    assert of(found, "gpu_memory_bandwidth_bytes_total") == pytest.approx(seconds * 3.35e12)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 100)).map(lambda pair: (pair[0], pair[0] + pair[1]))))
def test_an_integral_never_goes_back_nor_counts_more_than_the_time_there_was(windows):
    integral = Integral()
    totals = [0.0]
    for since, at in windows:
        integral.add(1.0, since, at)
        totals.append(integral.total)
    assert totals == sorted(totals)
    assert integral.total <= max((at for _, at in windows), default=0) * (1 + 1e-9)


def test_the_bandwidth_counter_is_there_at_zero_before_gpm_has_its_first_window():
    collector = collector_of(activity(gpm="warming_up"))
    assert of(poll(collector), "gpu_memory_bandwidth_bytes_total") == 0


@pytest.mark.parametrize("gpm", ["unsupported", "permission", "mig", "error"])
def test_without_gpm_there_is_no_bandwidth_counter(gpm):
    assert "gpu_memory_bandwidth_bytes_total" not in poll(collector_of(activity(gpm=gpm)))


def test_the_bandwidth_counter_stands_still_while_gpm_fails_and_goes_on_afterwards():
    collector = collector_of()
    totals = []
    for at, gpm, ratio in ((1, "ok", 1.0), (2, "error", None), (3, "ok", 1.0)):
        told = activity(since=at - 1, at=at, gpm=gpm, memory_bandwidth_ratio=ratio)
        collector.host.nvml.answers["activity"] = [told]
        totals.append(of(poll(collector, now=3), "gpu_memory_bandwidth_bytes_total") / 3.35e12)
    assert totals == pytest.approx([1, 1, 2])


@pytest.mark.parametrize(
    ("values", "total"),
    [([100], 0), ([100, 150, 150, 170], 70), ([100, 2**32 - 1, 50], 2**32 - 101 + 50), ([100, 120, None, 130], 30)],
    ids=["first", "moves", "wraps", "not told once"],
)
def test_pcie_bytes_start_at_zero_and_survive_the_hardware_counter_starting_over(values, total):
    collector = collector_of()
    for value in values:
        collector.host.nvml.answers["activity"] = [activity(pcie_tx_bytes=value)]
        found = poll(collector)
    assert found["gpu_pcie_bytes_total"] == {("0", "GPU-0", "tx"): total}


@given(st.integers(0, 2**64), st.lists(st.integers(0, 2**64)))
def test_an_advance_never_goes_back(first, values):
    advance = Advance(first)
    totals = [0]
    for value in values:
        advance.add(value)
        totals.append(advance.total)
    assert totals == sorted(totals)


@pytest.mark.parametrize(
    ("mask", "active"),
    [
        (0x1 | 0x4, set()),
        (0x8 | 0x40, {"hw_slowdown", "hw_thermal"}),
        (0x20, {"sw_thermal"}),
        (0x80, {"hw_power_brake"}),
    ],
    ids=["idle and power cap are no fault", "hardware", "thermal", "brake"],
)
def test_throttling_shows_the_reasons_that_need_somebody(mask, active):
    found = poll(collector_of(activity(clock_event_reasons=mask)))["gpu_throttle_active"]
    assert {labels[2] for labels in found} == {"hw_slowdown", "sw_thermal", "hw_thermal", "hw_power_brake"}
    assert {labels[2] for labels, value in found.items() if value} == active


def test_throttled_seconds_are_by_reason():
    found = poll(collector_of(activity(throttled_seconds=(("power", 12.5), ("thermal", 0.0)))))
    assert found["gpu_throttled_seconds_total"] == {("0", "GPU-0", "power"): 12.5, ("0", "GPU-0", "thermal"): 0}


def test_seconds_that_only_the_hardware_throttles_are_counted_between_scrapes():
    collector = collector_of(activity(since=0, at=0, clock_event_reasons=0x4))
    told = []
    for at, mask in [(0, 0x4), (1, 0x88), (2, 0x88), (2, 0x88), (3, 0x4), (4, None), (5, 0x48)]:
        collector.host.nvml.answers["activity"] = [activity(since=max(0, at - 1), at=at, clock_event_reasons=mask)]
        told.append(poll(collector, now=at)["gpu_throttled_seconds_total"])
    seconds = [{labels[2]: value for labels, value in series.items()} for series in told]
    assert seconds[0] == {"hw_slowdown": 0, "hw_thermal": 0, "hw_power_brake": 0}, "born at 0"
    assert [each["hw_power_brake"] for each in seconds] == [0, 1, 2, 2, 2, 2, 2]
    assert [each["hw_slowdown"] for each in seconds] == [0, 1, 2, 2, 2, 2, 3]
    assert [each["hw_thermal"] for each in seconds] == [0, 0, 0, 0, 0, 0, 1]


def test_what_the_gpu_counts_itself_is_not_counted_here_too():
    masked = activity(since=0, at=1, clock_event_reasons=0x4 | 0x20, throttled_seconds=(("thermal", 7.0),))
    found = poll(collector_of(masked), now=1)["gpu_throttled_seconds_total"]
    assert {labels[2]: value for labels, value in found.items() if value} == {"thermal": 7.0}


def test_throttling_of_a_gpu_that_does_not_tell_its_reasons_is_not_said_to_be_none():
    assert "gpu_throttled_seconds_total" not in poll(collector_of(activity()))


def test_clock_limits_are_the_gpus_own():
    device = gpu(sm_clock_max_hertz=1.98e9, memory_clock_max_hertz=2.619e9)
    found = poll(collector_of(activity(), gpus=(device,)))
    assert of(found, "gpu_sm_clock_max_hertz") == 1.98e9
    assert of(found, "gpu_memory_clock_max_hertz") == 2.619e9


@pytest.mark.parametrize(
    ("pids", "processes", "users"),
    [(None, None, None), ((), 0, 0), ((11, 12), 2, 1), ((11, 12, 99), 3, 1), ((98, 99), 2, None)],
    ids=["not told", "none", "one user's", "one has ended", "none can be seen"],
)
def test_processes_and_their_users(tmp_path, pids, processes, users):
    for pid in (11, 12):
        os.makedirs(tmp_path / "proc" / str(pid))
    told = None if pids is None else tuple(Process(pid, 1) for pid in pids)
    found = poll(collector_of(activity(processes=told), root=tmp_path))
    assert of(found, "gpu_processes") == processes
    assert of(found, "gpu_users") == users


def test_a_reading_that_is_repeated_is_published_until_it_is_45_s_old_and_no_longer():
    collector = collector_of(
        activity(0, at=NOW - 45, power_watts=70), activity(1, power_watts=600), gpus=(gpu(0), gpu(1))
    )
    found = poll(collector)
    assert of(found, "gpu_power_watts", index=0) == 70
    assert of(found, "gpu_activity_age_seconds", index=0) == 45
    assert uuids(poll(collector, now=NOW + 0.5)) == {"GPU-1"}


def test_a_lost_gpu_takes_all_its_series_along_and_none_of_its_siblings(caplog):
    both = [activity(index, memory_bandwidth_ratio=1.0, power_watts=100) for index in (0, 1)]
    collector = collector_of(*both, gpus=(gpu(0), gpu(1)))
    assert uuids(poll(collector)) == {"GPU-0", "GPU-1"}
    collector.host.nvml.answers["activity"] = Batch(NOW, (both[1],), (lost("GPU-0"),))
    for _ in range(3):
        assert uuids(poll(collector)) == {"GPU-1"}
    assert collector.errors == {"lost": 3}
    assert not caplog.records, "the driver's client says so, once for all subjects"


def test_a_gpu_that_comes_back_goes_on_counting_where_it_was(caplog):
    collector = collector_of(activity(since=0, at=1, memory_bandwidth_ratio=1.0))
    poll(collector, now=1)
    collector.host.nvml.answers["activity"] = Batch(2, (), (lost("GPU-0"),))
    assert poll(collector, now=2) == {}
    assert collector.remarks() == ("GPU 0 (GPU-0): lost",)
    collector.host.nvml.answers["activity"] = [activity(since=29, at=30, memory_bandwidth_ratio=1.0)]
    assert of(poll(collector, now=30), "gpu_memory_bandwidth_bytes_total") == pytest.approx(2 * 3.35e12)
    assert collector.remarks() == ()


def test_two_calls_that_fail_differently_are_not_logged_again_and_again(caplog):
    collector = collector_of()
    faults = (Fault("GPU-0", "a", "transient", 999, "?"), Fault("index:3", "b", "denied", 4, "no"))
    collector.host.nvml.answers["activity"] = Batch(NOW, (), faults)
    for _ in range(3):
        poll(collector)
    assert collector.remarks() == ("GPU 0 (GPU-0) a: transient", "index:3 b: denied")
    assert len(caplog.records) == 2


def test_a_privilege_that_is_missing_counts_and_is_logged_once_and_stays_among_the_remarks(caplog):
    caplog.set_level("INFO")
    collector = collector_of()
    denied = Fault("GPU-0", "GPM", "denied", 4, "nvmlGpmSampleGet: Insufficient Permissions")
    collector.host.nvml.answers["activity"] = Batch(NOW, (), (denied,))
    for _ in range(3):
        poll(collector)
    assert collector.errors == {"denied": 1}
    assert collector.remarks() == ("GPU 0 (GPU-0) GPM: denied",)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    collector.host.nvml.answers["activity"] = []
    poll(collector)
    assert collector.remarks() == ()
    assert caplog.records[-1].message == "gpu: GPU 0 (GPU-0) GPM: reads again"


def test_what_may_pass_counts_each_time_it_fails():
    collector = collector_of()
    collector.host.nvml.answers["activity"] = Batch(NOW, (), (Fault("GPU-0", "a", "transient", 999, "unknown"),))
    for _ in range(3):
        poll(collector)
    assert collector.errors == {"transient": 3}


def test_a_driver_that_is_down_is_the_collectors_failure_not_empty_good_news():
    collector = collector_of()
    collector.host.nvml.answers["activity"] = Unavailable("released")
    with pytest.raises(Unavailable):
        poll(collector)


def test_readings_are_posted_for_those_who_join_them():
    told = activity(power_watts=1)
    collector = collector_of(told)
    poll(collector)
    assert collector.host.board.last("activity", tuple, collector.host.clock.now()) == (told,)
