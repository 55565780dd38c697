"""A drive with two controllers (native NVMe multipath), whole, on kernels before and after heads count for themselves.

The old kernel's tree and numbers are those of Linux 6.1 in tests/vm; newer kernels add counters at the head and links
to the paths below /sys/block/nvme1n1/multipath.
"""

from __future__ import annotations

import pytest
from trees import Link, host_at, plant, values

from gpuhost_exporter.collectors.block import BlockCollector
from gpuhost_exporter.collectors.nvme import NvmeCollector
from gpuhost_exporter.sources import volumes

ZERO = " ".join(["0"] * 17)
# 48 reads of 2,088 sectors and 16 writes of 32,768 on the one path, 8 of 64 on the other.
FIRST = "48 0 2088 71 16 0 32768 30 0 60 101 0 0 0 0 0 0"
SECOND = "8 0 64 2 0 0 0 0 0 2 2 0 0 0 0 0 0"
BOTH = "56 0 2152 73 16 0 32768 30 0 62 103 0 0 0 0 0 0"


def tree(head):
    files = {"sys/devices/virtual/nvme-subsystem/nvme-subsys1/nvme1n1/size": "131072"}
    files["sys/block/nvme1n1"] = Link("../devices/virtual/nvme-subsystem/nvme-subsys1/nvme1n1")
    for number, address in ((0, "0000:0b:00.0"), (1, "0000:0c:00.0")):
        controller = f"sys/devices/pci0000:00/{address}/nvme/nvme{number}"
        path = f"nvme1c{number}n1"
        identity = {"state": "live", "serial": "twice", "transport": "pcie", "address": address}
        files |= {f"{controller}/{name}": text for name, text in identity.items()}
        files |= {
            f"{controller}/{path}/size": "131072",
            f"sys/block/{path}": Link(f"../devices/pci0000:00/{address}/nvme/nvme{number}/{path}"),
            f"sys/class/nvme/nvme{number}": Link(f"../../devices/pci0000:00/{address}/nvme/nvme{number}"),
            f"sys/bus/pci/devices/{address}/max_link_speed": "16.0 GT/s PCIe",
            f"sys/bus/pci/devices/{address}/max_link_width": "4",
            f"sys/bus/pci/devices/{address}/current_link_speed": "16.0 GT/s PCIe",
            f"sys/bus/pci/devices/{address}/current_link_width": "4",
        }
        if head != ZERO:
            below = "sys/devices/virtual/nvme-subsystem/nvme-subsys1/nvme1n1/multipath"
            files[f"{below}/{path}"] = Link(f"../../../../../pci0000:00/{address}/nvme/nvme{number}/{path}")
    stats = (("0", "nvme1c0n1", FIRST), ("1", "nvme1n1", head), ("2", "nvme1c1n1", SECOND))
    return files | {"proc/diskstats": "\n".join(f" 259 {minor} {name} {fields}" for minor, name, fields in stats)}


KERNELS = pytest.mark.parametrize("head", [ZERO, BOTH], ids=["before heads count", "since heads count"])


@KERNELS
def test_its_bytes_and_operations_count_once_under_the_name_that_has_a_node(tmp_path, head):
    got = values(BlockCollector(host_at(tmp_path, tree(head))).poll(0.0))
    assert got["block_read_bytes_total", "nvme1n1"] == 2152 * 512
    assert got["block_written_bytes_total", "nvme1n1"] == 32768 * 512
    assert got["block_reads_completed_total", "nvme1n1"] == 56
    assert {device for _, device, *_ in got} == {"nvme1n1"}


@KERNELS
def test_both_its_controllers_are_told_with_the_one_namespace_behind_them(tmp_path, head):
    got = values(NvmeCollector(host_at(tmp_path, tree(head))).poll(0.0))
    assert {key[1:] for key in got if key[0] == "nvme_namespace_info"} == {
        ("nvme0", "nvme1n1"),
        ("nvme1", "nvme1n1"),
    }
    assert got["nvme_up", "nvme0"] == got["nvme_up", "nvme1"] == 1


@KERNELS
def test_it_is_one_volume_with_the_link_of_one_path(tmp_path, head):
    root = plant(tmp_path, tree(head))
    found, paths, faults = volumes.read(root)
    assert [volume.name for volume in found] == ["nvme1n1"]
    assert paths == {"nvme1n1": ("nvme1c0n1", "nvme1c1n1")}
    assert faults == {}
    rates = volumes.link_rates(root)
    assert set(rates) == {"nvme1n1"}
    reading, _ = volumes.deliverable(found[0], rates)
    assert reading == pytest.approx(6.93e9, rel=0.01), "PCIe 4 x4 once, though there are two"
