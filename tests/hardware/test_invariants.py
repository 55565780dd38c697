"""What holds on any GPU host in whatever state, read through the exporter's own reader."""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
from hardware.record import HurriedClock
from support.daemon import select, value

from gpuhost_exporter.clock import SystemClock
from gpuhost_exporter.sources.nvml.readings import Activity, GpmState

RATIOS = tuple(item.name for item in fields(Activity) if item.name.endswith("_ratio"))
BY_GPM = (*(name for name in RATIOS if name not in ("utilization_ratio", "memory_busy_ratio")),
          "pcie_tx_bytes_per_second", "pcie_rx_bytes_per_second")  # fmt: skip
COUNTERS = ("energy_joules", "nvlink_tx_bytes", "nvlink_rx_bytes", "pcie_tx_bytes", "pcie_rx_bytes")
P50_SECONDS = 0.2


def activities(taken):
    return [reading for readings in taken.readings("activity").values() for reading in readings]


def test_the_reader_opens_every_gpu(taken):
    inventory = taken.inventory
    assert inventory.faults == ()
    assert [gpu.index for gpu in inventory.gpus] == list(range(len(inventory.gpus)))
    assert re.fullmatch(r"\d+\.\d+(\.\d+)?", inventory.driver.driver_version)
    assert set(taken.readings("activity")) == set(taken.readings("health")) == {gpu.uuid for gpu in inventory.gpus}


def test_no_call_fails_but_for_lack_of_permission(taken):
    assert [fault for fault in taken.faults() if fault.kind != "denied"] == []


def test_ratios_are_within_0_and_1(taken):
    told = [ratio for reading in activities(taken) for name in RATIOS if (ratio := getattr(reading, name)) is not None]
    assert told
    assert all(0.0 <= ratio <= 1.0 for ratio in told)


def test_gpm_measures_or_says_why_not(taken):
    health = taken.readings("health")
    explained = {fault.uuid for fault in taken.faults() if fault.call == "GPM"}
    architectures = {gpu.uuid: gpu.architecture for gpu in taken.inventory.gpus}
    for uuid, readings in taken.readings("activity").items():
        last = readings[-1]
        assert last.gpm in set(get_args(GpmState)) - {"warming_up"}
        assert any(getattr(last, name) is not None for name in BY_GPM) == (last.gpm == "ok")
        assert (last.gpm in ("permission", "error")) <= (uuid in explained)
        assert (last.gpm == "mig") <= (health[uuid][-1].mig_enabled is True)
        assert (last.gpm == "unsupported") <= (architectures[uuid] not in ("hopper", "blackwell"))


def test_counters_never_go_back_and_energy_goes_on(taken):
    for readings in taken.readings("activity").values():
        for name in COUNTERS:
            counts = [getattr(reading, name) for reading in readings]
            assert None in counts or counts == sorted(counts), name
        for reason, seconds in readings[0].throttled_seconds:
            assert seconds <= dict(readings[-1].throttled_seconds)[reason]
        assert readings[0].energy_joules < readings[-1].energy_joules


def test_link_counters_never_go_back(taken):
    for readings in taken.readings("links").values():
        for before, after in zip(readings[0].links, readings[-1].links, strict=True):
            assert before.index == after.index
            if before.active and after.active:
                assert before.tx_bytes <= after.tx_bytes
                assert before.rx_bytes <= after.rx_bytes
                assert all(count <= dict(after.errors)[kind] for kind, count in before.errors)


def test_every_gpu_is_an_nvidia_device_of_sysfs(machine, taken):
    for gpu in taken.inventory.gpus:
        assert (machine.sysfs / "bus/pci/devices" / gpu.bdf / "vendor").read_text().strip() == "0x10de"


def test_memory_adds_up(taken):
    for reading in activities(taken):
        parts = (reading.memory_used_bytes, reading.memory_free_bytes, reading.memory_reserved_bytes)
        assert reading.memory_total_bytes > 1 << 30
        assert sum(part or 0 for part in parts) == pytest.approx(reading.memory_total_bytes, rel=0.01)


def test_power_is_drawn_and_stays_below_the_limit(taken):
    health = taken.readings("health")
    for uuid, readings in taken.readings("activity").items():
        limit = health[uuid][-1].power_limit_watts
        assert all(0 < reading.power_watts < 1.3 * limit for reading in readings)


def test_temperatures_are_those_of_a_running_gpu(taken):
    for reading in activities(taken):
        assert 10 <= reading.core_celsius <= 110
        assert reading.memory_celsius is None or 10 <= reading.memory_celsius <= 120


def test_a_gpu_keeps_its_uuid(machine, taken):
    reader = machine.reader(SystemClock())
    again = {gpu.bdf: gpu.uuid for gpu in reader.open().gpus}
    reader.close()
    assert again == {gpu.bdf: gpu.uuid for gpu in taken.inventory.gpus}
    assert len(set(again.values())) == len(again)


def test_activity_of_all_gpus_is_read_within_a_fifth_of_a_second(machine):
    clock = HurriedClock()
    reader = machine.reader(clock)
    reader.open()
    took = []
    for _ in range(9):
        clock.hurry()
        begin = time.perf_counter()
        reader.read("activity", frozenset())
        took.append(time.perf_counter() - begin)
        time.sleep(0.15)
    reader.close()
    assert sorted(took)[4] < P50_SECONDS, took


def up(series):
    return {dict(key)["gpu"] for key, state in select(series, "gpuhost_gpu_up").items() if state == 1}


def holders(daemon):
    """pid -> name of those of the exporter's processes that hold a device node of NVIDIA's."""
    found = {}
    for pid, name in {daemon.process.pid: "gpuhost-exporter", **daemon.descendants()}.items():
        with contextlib.suppress(FileNotFoundError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if os.readlink(descriptor).startswith("/dev/nvidia"):
                        found[pid] = name
    return found


def test_the_exporter_serves_every_gpu_and_lets_go_of_them_when_asked(daemon):
    exporter, gpus, simulated = daemon
    exporter.wait_until(lambda series: up(series) == gpus, 30)
    # A simulated library opens no device.
    assert sorted(holders(exporter).values()) == ([] if simulated else ["gpuhost-nvml"])
    assert exporter.command("release", "--for=1m").returncode == 0
    series = exporter.wait_until(lambda series: value(series, "gpuhost_nvml_state", state="released") == 1, 15)
    assert holders(exporter) == {}
    assert "gpuhost-nvml" not in exporter.descendants().values()
    assert value(series, "gpuhost_nvml_state", state="ok") == 0
    assert exporter.command("resume").returncode == 0
    exporter.wait_until(lambda series: up(series) == gpus, 30)
    assert sorted(holders(exporter).values()) == ([] if simulated else ["gpuhost-nvml"])
