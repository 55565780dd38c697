"""The driver collector: what is known of driver and GPUs, always there, without touching hardware."""

from __future__ import annotations

import pytest
from support.gpus import NOW, FakeNvml, gpu, host_of, of, poll

from gpuhost_exporter.collectors.driver import DriverCollector
from gpuhost_exporter.sources.nvml.book import GPU_STATES
from gpuhost_exporter.sources.nvml.client import RESTART_REASONS, STATES


def collector_of(*gpus, states=None, driver_state="ok", versions=True):
    nvml = FakeNvml(*gpus)
    nvml.states.update(states or {})
    nvml.driver_state = driver_state
    if not versions:
        nvml.versions = None
    return DriverCollector(host_of(nvml))


def current(series):
    return [labels[-1] for labels, value in series.items() if value]


@pytest.mark.parametrize("state", GPU_STATES)
def test_a_gpu_is_up_only_while_it_answers_and_says_which_other_state_it_is_in(state):
    found = poll(collector_of(gpu(0), gpu(1), states={"GPU-0": state}))
    assert of(found, "gpu_up", index=0) == (state == "ok")
    assert of(found, "gpu_up", index=1) == 1
    of_gpu0 = {labels: value for labels, value in found["gpu_state"].items() if labels[1] == "GPU-0"}
    assert current(of_gpu0) == [state]
    assert len(of_gpu0) == len(GPU_STATES)


@pytest.mark.parametrize("state", STATES)
def test_the_driver_is_in_one_state(state):
    found = poll(collector_of(driver_state=state))
    assert current(found["nvml_state"]) == [state]
    assert len(found["nvml_state"]) == len(STATES)


def test_a_release_says_when_it_ends_and_is_not_told_otherwise():
    collector = collector_of(driver_state="released")
    collector.host.nvml.until = NOW + 90
    ends = poll(collector)["nvml_release_end_timestamp_seconds"]
    assert ends == {(): collector.host.clock.wall() + 90}
    assert "nvml_release_end_timestamp_seconds" not in poll(collector_of())


def test_a_lost_gpu_keeps_its_identity():
    device = gpu(3, serial="165", vbios="96.00", architecture="hopper", compute_capability="9.0")
    found = poll(collector_of(device, states={"GPU-3": "lost"}))
    assert found["gpu_info"] == {
        ("3", "GPU-3", device.name, device.bdf, "165", "96.00", "hopper", "9.0", ""): 1,
    }


def test_a_gpu_that_no_state_is_known_of_is_unknown_and_not_up():
    collector = collector_of(gpu())
    collector.host.nvml.states.clear()
    found = poll(collector)
    assert of(found, "gpu_up") == 0
    assert current(found["gpu_state"]) == ["unknown"]


def test_a_gpu_that_was_broken_before_the_start_shows_by_its_index():
    collector = collector_of(gpu(0))
    collector.host.nvml.broken = {3: "lost"}
    found = poll(collector)
    assert found["gpu_up"]["3", ""] == 0
    assert found["gpu_state"]["3", "", "lost"] == 1
    assert ("3", "") not in {labels[:2] for labels in found["gpu_info"]}


def test_on_a_host_without_driver_there_are_no_gpus_and_no_versions():
    found = poll(collector_of(driver_state="no_library", versions=False))
    assert not {"gpu_up", "gpu_state", "gpu_info", "driver_info"} & set(found)
    assert current(found["nvml_state"]) == ["no_library"]


def test_the_readers_own_life_is_told():
    found = poll(collector_of(), now=NOW + 7)
    restarts = {(reason,): float(reason == "hung") for reason in RESTART_REASONS}
    assert found["nvml_reader_restarts_total"] == restarts
    assert found["nvml_reader_stuck"] == {(): 0}
    assert found["nvml_in_flight_seconds"] == {(): 7}
    assert found["driver_info"] == {("580.95.05", "13.580.95.05", "13.0"): 1}


def test_it_asks_no_hardware_and_posts_who_is_there():
    collector = collector_of(gpu(0), gpu(1))
    poll(collector)
    assert collector.host.nvml.asked == []
    assert collector.host.board.last("gpus", tuple, collector.host.clock.now()) == (gpu(0), gpu(1))


def test_gpus_on_the_bus_are_counted_once_a_minute_whether_a_driver_has_them_or_not(tmp_path):
    collector = DriverCollector(host_of(FakeNvml(), tmp_path))
    assert "gpus_on_bus" not in poll(collector), "a machine without a PCI bus"
    assert not collector.errors
    device = tmp_path / "sys/bus/pci/devices/0000:1b:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030200\n")
    assert "gpus_on_bus" not in poll(collector, now=NOW + 59)
    assert poll(collector, now=NOW + 60)["gpus_on_bus"] == {(): 1}
    assert collector.host.nvml.arrived == [], "as far as it is known it was there before"


def on_the_bus(root, bdf):
    device = root / "sys/bus/pci/devices" / bdf
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030200\n")


def test_a_gpu_that_came_to_the_bus_unannounced_is_looked_for_once(tmp_path):
    collector = DriverCollector(host_of(FakeNvml(gpu(0)), tmp_path))
    on_the_bus(tmp_path, "0000:10:00.0")
    poll(collector)
    assert collector.host.nvml.arrived == []
    on_the_bus(tmp_path, "0000:11:00.0")
    for minute in range(1, 4):
        assert poll(collector, now=NOW + 60 * minute)["gpus_on_bus"] == {(): 2}
    assert collector.host.nvml.arrived == ["0000:11:00.0"]
