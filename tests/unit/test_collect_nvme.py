"""NVMe drives as samples."""

from __future__ import annotations

import errno
import os

import pytest
from support.drives import page
from trees import Link, fail_opening, host_at, values, vanish_opening

from gpuhost_exporter.board import Listed
from gpuhost_exporter.collectors.nvme import NvmeCollector
from gpuhost_exporter.errors import Transient
from gpuhost_exporter.sources.nvme_health import Report, parse

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
        ("nvme_pcie_drive_generation_max", "nvme0"): 5,
        ("nvme_pcie_drive_width_max", "nvme0"): 4,
    }
    (posted,) = host.board.last("drives", tuple, host.clock.now())
    assert (posted.name, posted.serial) == ("nvme0", "S6CKNE0W500120")
    assert host.board.last("listed drives", tuple, host.clock.now()) == (Listed("nvme0", "S6CKNE0W500120"),)


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


def test_a_drive_that_cannot_be_read_for_a_poll_stays_listed_by_its_serial(tmp_path, monkeypatch):
    host = host_at(tmp_path, drive(0) | drive(1) | SLOT)
    collector = NvmeCollector(host)
    list(collector.poll(0.0))
    fail_opening(monkeypatch, "nvme0/state", errno.EIO)
    list(collector.poll(15.0))
    listed = (Listed("nvme0", "S6CKNE0W500120"), Listed("nvme1", "S6CKNE0W500121"))
    assert host.board.last("listed drives", tuple, host.clock.now()) == listed
    assert [found.name for found in host.board.last("drives", tuple, host.clock.now())] == ["nvme1"]


def test_a_drive_that_never_could_be_read_is_listed_without_a_serial(tmp_path, monkeypatch):
    host = host_at(tmp_path, drive(0) | SLOT)
    fail_opening(monkeypatch, "nvme0/state", errno.EIO)
    list(NvmeCollector(host).poll(0.0))
    assert host.board.last("listed drives", tuple, host.clock.now()) == (Listed("nvme0", None),)


def test_while_drives_cannot_be_listed_no_list_is_on_the_board(tmp_path, monkeypatch):
    host = host_at(tmp_path, drive(0) | SLOT)
    collector = NvmeCollector(host)
    list(collector.poll(0.0))
    monkeypatch.setattr(os, "listdir", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))
    with pytest.raises(Transient):
        list(collector.poll(15.0))
    assert host.board.last("listed drives", tuple, host.clock.now()) is None


def test_a_drive_that_vanishes_while_it_is_read_costs_itself_only(tmp_path, monkeypatch):
    host = host_at(tmp_path, drive(0) | drive(1) | SLOT)
    collector = NvmeCollector(host)
    vanish_opening(monkeypatch, "nvme0/model", tmp_path / "sys/class/nvme/nvme0")
    got = values(collector.poll(0.0))
    assert not [key for key in got if "nvme0" in key]
    assert got["nvme_up", "nvme1"] == 1
    assert collector.errors == {"gone": 1}
    list(collector.poll(15.0))
    assert host.board.last("listed drives", tuple, host.clock.now()) == (Listed("nvme1", "S6CKNE0W500121"),)


def without_monitor(number):
    return {path: text for path, text in drive(number).items() if "hwmon" not in path}


def test_temperatures_come_from_the_health_log_where_the_kernel_has_no_monitor(tmp_path):
    host = host_at(tmp_path, without_monitor(0) | drive(1) | SLOT)
    collector = NvmeCollector(host)
    assert not [key for key in values(collector.poll(0.0)) if key[:2] == ("nvme_temperature_celsius", "nvme0")]
    health = parse(page(kelvin=320, sensors=(320, 333)))
    host.drive_health.put([Report(name, 10.0, 10.0, health) for name in ("nvme0", "nvme1")])
    got = values(collector.poll(15.0))
    assert {key[1:]: value for key, value in got.items() if key[0] == "nvme_temperature_celsius"} == {
        ("nvme0", "composite"): 46.85,
        ("nvme0", "1"): 46.85,
        ("nvme0", "2"): 59.85,
        ("nvme1", "composite"): 41.85,
    }, "one source for each drive"
    assert ("nvme_temperature_celsius", "nvme0", "composite") not in values(collector.poll(200.0)), "read long ago"


@pytest.mark.parametrize(
    "entry", ["nvme1n1", "nvme1c0n1"], ids=["without multipath or before 4.15", "a path of a multipath subsystem"]
)
def test_a_namespace_is_told_under_the_controller_whose_folder_it_is_in(tmp_path, entry):
    files = {path.replace("nvme0/nvme0n1", f"nvme0/{entry}"): text for path, text in drive(0).items()}
    got = values(NvmeCollector(host_at(tmp_path, files | SLOT)).poll(0.0))
    assert ("nvme_namespace_info", "nvme0", "nvme1n1") in got


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
    assert host.board.last("drives", tuple, host.clock.now()) == ()


def test_a_drive_over_a_network_has_no_pcie_link(tmp_path):
    files = {"sys/class/nvme/nvme0/state": "live", "sys/class/nvme/nvme0/transport": "tcp"}
    files["sys/class/nvme/nvme0/address"] = "traddr=10.0.0.1,trsvcid=4420"
    collector = NvmeCollector(host_at(tmp_path, files))
    assert {key[0] for key in values(collector.poll(0.0))} == {"nvme_up", "nvme_info"}
    assert collector.errors == {}
    assert collector.host.board.last("listed drives", tuple, collector.host.clock.now()) == (), (
        "it is not one of the host's own"
    )
