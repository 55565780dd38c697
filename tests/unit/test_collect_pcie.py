"""The pcie collector: NVML's word first, sysfs where it has none, each GPU's failure its own."""

from __future__ import annotations

import math

import pytest
from support.gpus import NOW, FakeNvml, gpu, host_of, lost, of, poll, reading, uuids

from gpuhost_exporter.collectors.pcie import PcieCollector
from gpuhost_exporter.errors import Unavailable
from gpuhost_exporter.sources.nvml.readings import Batch, Health


def health(index=0, at=NOW, **told):
    return reading(Health, uuid=f"GPU-{index}", at=at, **told)


def collector_of(root, *readings, gpus=None):
    return PcieCollector(host_of(FakeNvml(*(gpus or [gpu()]), health=readings), root))


def plug(root, index=0, slot_speed="16.0 GT/s PCIe", **files):
    """A GPU that could do generation 5 x16, runs at 4 x8, below a port."""
    bdf = f"0000:1{index}:00.0"
    port = root / "sys/devices/pci0000:00" / f"0000:00:0{index}.0"
    told = {
        "current_link_speed": "16.0 GT/s PCIe",
        "current_link_width": "8",
        "max_link_speed": "32.0 GT/s PCIe",
        "max_link_width": "16",
        "numa_node": "0",
        "aer_dev_correctable": "TOTAL_ERR_COR 4",
        "aer_dev_nonfatal": "TOTAL_ERR_NONFATAL 0",
        "aer_dev_fatal": "TOTAL_ERR_FATAL 0",
        **files,
    }
    for folder, contents in ((port, {"max_link_speed": slot_speed, "max_link_width": "16"}), (port / bdf, told)):
        folder.mkdir(parents=True)
        for name, text in contents.items():
            (folder / name).write_text(text)
    devices = root / "sys/bus/pci/devices"
    devices.mkdir(parents=True, exist_ok=True)
    (devices / bdf).symlink_to(port / bdf)


def test_a_slot_slower_than_its_gpu_shows(tmp_path):
    plug(tmp_path)
    told = health(
        pcie_generation=4,
        pcie_width=8,
        pcie_generation_max=4,
        pcie_generation_device_max=5,
        pcie_width_max=16,
        pcie_replays=9,
    )
    gpu0 = ("0", "GPU-0")
    assert poll(collector_of(tmp_path, told)) == {
        "gpu_pcie_generation": {gpu0: 4},
        "gpu_pcie_width_lanes": {gpu0: 8},
        "gpu_pcie_generation_max": {(*gpu0, "device"): 5, (*gpu0, "slot"): 4, (*gpu0, "link"): 4},
        "gpu_pcie_width_max_lanes": {(*gpu0, "device"): 16, (*gpu0, "slot"): 16, (*gpu0, "link"): 16},
        "gpu_pcie_replays_total": {gpu0: 9},
        "gpu_pcie_aer_errors_total": {(*gpu0, "correctable"): 4, (*gpu0, "nonfatal"): 0, (*gpu0, "fatal"): 0},
        "gpu_pcie_info": {(*gpu0, "0000:10:00.0", "0000:00:00.0", "0"): 1},
    }


def test_what_nvml_does_not_tell_comes_from_sysfs(tmp_path):
    plug(tmp_path)
    found = poll(collector_of(tmp_path, health()))
    assert of(found, "gpu_pcie_generation") == 4
    assert of(found, "gpu_pcie_width_lanes") == 8
    assert of(found, "gpu_pcie_generation_max", "device") == 5
    assert of(found, "gpu_pcie_generation_max", "link") == 4
    assert "gpu_pcie_replays_total" not in found


def test_without_sysfs_nvmls_word_stays_and_nothing_is_made_up(tmp_path):
    collector = collector_of(tmp_path, health(pcie_generation=1, pcie_generation_max=5))
    gpu0 = ("0", "GPU-0")
    assert poll(collector) == {
        "gpu_pcie_generation": {gpu0: 1},
        "gpu_pcie_generation_max": {(*gpu0, "link"): 5},
    }
    assert collector.errors == {"absent": 1}


def test_garbage_in_one_gpus_files_costs_only_what_they_tell(tmp_path):
    plug(tmp_path, 0, aer_dev_fatal="garbage")
    plug(tmp_path, 1)
    told = [health(index, pcie_replays=index) for index in (0, 1)]
    collector = collector_of(tmp_path, *told, gpus=(gpu(0), gpu(1)))
    found = poll(collector)
    assert found["gpu_pcie_replays_total"] == {("0", "GPU-0"): 0, ("1", "GPU-1"): 1}
    assert uuids({"aer": found["gpu_pcie_aer_errors_total"]}) == {"GPU-1"}
    assert collector.errors == {"malformed": 1}


def test_a_lost_gpu_has_no_series_even_while_sysfs_still_shows_it(tmp_path):
    plug(tmp_path, 0)
    plug(tmp_path, 1)
    answer = Batch(NOW, (health(1, pcie_replays=0),), (lost("GPU-0"),))
    nvml = FakeNvml(gpu(0), gpu(1), health=answer)
    assert uuids(poll(PcieCollector(host_of(nvml, tmp_path)))) == {"GPU-1"}


def test_what_the_health_collector_has_just_posted_is_not_asked_for_again(tmp_path):
    collector = collector_of(tmp_path)
    collector.host.board.post("health", (health(pcie_replays=1),), until=math.inf)
    assert of(poll(collector, now=NOW + 19), "gpu_pcie_replays_total") == 1
    assert collector.host.nvml.asked == []
    collector.host.nvml.answers["health"] = [health(pcie_replays=2, at=NOW + 20)]
    assert of(poll(collector, now=NOW + 20), "gpu_pcie_replays_total") == 2
    assert collector.host.nvml.asked == ["health"]


def test_a_gpu_lost_since_the_reading_was_posted_has_no_series(tmp_path):
    collector = collector_of(tmp_path)
    collector.host.board.post("health", (health(pcie_replays=1),), until=math.inf)
    collector.host.nvml.states["GPU-0"] = "lost"
    assert poll(collector) == {}


def test_a_driver_that_is_down_is_the_collectors_failure(tmp_path):
    collector = collector_of(tmp_path)
    collector.host.nvml.answers["health"] = Unavailable("no driver")
    with pytest.raises(Unavailable):
        poll(collector)
