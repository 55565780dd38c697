"""NVMe drives as samples."""

from __future__ import annotations

import errno

import pytest
from trees import Link, fail_opening, host_at, values

from gpuhost_exporter.collectors.nvme import NvmeCollector

PORT = "sys/devices/pci0000:40/0000:40:01.1"


def drive(number: int, *, state: str = "live", generation: str = "16.0 GT/s PCIe", width: str = "4") -> dict[str, str]:
    bdf = f"0000:4{number + 1}:00.0"
    pci = f"{PORT}/{bdf}"
    folder = f"sys/class/nvme/nvme{number}"
    return {
        f"{folder}/state": f"{state}\n",
        f"{folder}/model": "SAMSUNG MZQL23T8HCLS-00A07   \n",
        f"{folder}/serial": f"S6CKNE0W50012{number}   \n",
        f"{folder}/firmware_rev": "GDC5902Q\n",
        f"{folder}/transport": "pcie\n",
        f"{folder}/address": f"{bdf}\n",
        f"{folder}/numa_node": "1\n",
        f"{folder}/nvme{number}n1/nsid": "1\n",
        f"{folder}/hwmon{number}/name": "nvme\n",
        f"{folder}/hwmon{number}/temp1_input": f"4{number}850\n",
        f"sys/bus/pci/devices/{bdf}": Link(f"../../../../{pci}"),
        f"{pci}/current_link_speed": f"{generation}\n",
        f"{pci}/current_link_width": f"{width}\n",
        f"{pci}/max_link_speed": "32.0 GT/s PCIe\n",
        f"{pci}/max_link_width": "4\n",
    }


SLOT = {f"{PORT}/max_link_speed": "16.0 GT/s PCIe\n", f"{PORT}/max_link_width": "8\n"}


def test_a_drive_has_identity_state_temperature_and_link(tmp_path):
    host = host_at(tmp_path, drive(0) | SLOT)
    assert values(NvmeCollector(host).poll(0.0)) == {
        ("nvme_up", "nvme0"): 1,
        (
            "nvme_info",
            "nvme0",
            "SAMSUNG MZQL23T8HCLS-00A07",
            "S6CKNE0W500120",
            "GDC5902Q",
            "pcie",
            "0000:41:00.0",
            "1",
        ): 1,
        ("nvme_namespace_info", "nvme0", "nvme0n1"): 1,
        ("nvme_temperature_celsius", "nvme0", "composite"): 40.85,
        ("nvme_pcie_generation", "nvme0"): 4,
        ("nvme_pcie_generation_max", "nvme0"): 4,
        ("nvme_pcie_width", "nvme0"): 4,
        ("nvme_pcie_width_max", "nvme0"): 4,
    }
    (posted,) = host.board.last("drives", tuple)
    assert (posted.name, posted.serial) == ("nvme0", "S6CKNE0W500120")


@pytest.mark.parametrize("state", ["new", "resetting", "connecting", "deleting", "dead"])
def test_a_controller_that_takes_no_io_is_not_up(tmp_path, state):
    assert values(NvmeCollector(host_at(tmp_path, drive(0, state=state))).poll(0.0))["nvme_up", "nvme0"] == 0


def test_a_link_that_is_down_has_no_generation_now_and_keeps_its_maximum(tmp_path):
    got = values(NvmeCollector(host_at(tmp_path, drive(0, generation="Unknown", width="0") | SLOT)).poll(0.0))
    assert ("nvme_pcie_generation", "nvme0") not in got
    assert ("nvme_pcie_width", "nvme0") not in got
    assert got["nvme_pcie_generation_max", "nvme0"] == 4


FAULTS = [
    pytest.param("nvme0/state", errno.EACCES, "denied", "", id="no permission: the whole drive"),
    pytest.param("nvme0/state", errno.ENODEV, "gone", "", id="gone: the whole drive"),
    pytest.param("temp1_input", errno.EIO, "transient", "nvme_temperature_celsius", id="sensor: its temperature"),
]


@pytest.mark.parametrize(("suffix", "number", "kind", "lost"), FAULTS)
def test_a_fault_costs_what_it_concerns(tmp_path, monkeypatch, suffix, number, kind, lost):
    collector = NvmeCollector(host_at(tmp_path, drive(0) | SLOT))
    whole = values(collector.poll(0.0))
    fail_opening(monkeypatch, suffix, number)
    got = values(collector.poll(15.0))
    assert whole.keys() - got.keys() == {key for key in whole if key[0].startswith(lost)}
    assert collector.errors == {kind: 1}


def test_one_drives_fault_leaves_its_siblings_whole(tmp_path, monkeypatch):
    collector = NvmeCollector(host_at(tmp_path, drive(0) | drive(1) | SLOT))
    fail_opening(monkeypatch, "nvme0/state", errno.ENODEV)
    got = values(collector.poll(0.0))
    assert not [key for key in got if "nvme0" in key]
    assert got["nvme_up", "nvme1"] == 1
    assert got["nvme_temperature_celsius", "nvme1", "composite"] == 41.85


def test_a_garbled_link_speed_costs_the_link_only(tmp_path):
    collector = NvmeCollector(host_at(tmp_path, drive(0, generation="very fast") | SLOT))
    got = values(collector.poll(0.0))
    assert not [key for key in got if key[0].startswith("nvme_pcie")]
    assert got["nvme_up", "nvme0"] == 1
    assert collector.errors == {"malformed": 1}


def test_a_host_without_nvme_has_no_samples_no_errors_and_says_so_on_the_board(tmp_path):
    host = host_at(tmp_path, {})
    collector = NvmeCollector(host)
    assert list(collector.poll(0.0)) == []
    assert collector.errors == {}
    assert host.board.last("drives", tuple) == ()


def test_a_drive_over_a_network_has_no_pcie_link(tmp_path):
    files = {"sys/class/nvme/nvme0/state": "live", "sys/class/nvme/nvme0/transport": "tcp"}
    files["sys/class/nvme/nvme0/address"] = "traddr=10.0.0.1,trsvcid=4420"
    collector = NvmeCollector(host_at(tmp_path, files))
    assert {key[0] for key in values(collector.poll(0.0))} == {"nvme_up", "nvme_info"}
    assert collector.errors == {}
