"""What moves data past the kernel's counters."""

from __future__ import annotations

import contextlib
import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import Link, fail_opening, plant

from gpuhost_exporter.errors import Malformed
from gpuhost_exporter.sources import bypass
from gpuhost_exporter.sources.bypass import Bypass
from gpuhost_exporter.sources.mounts import Mount

STATS = """GDS Version: 1.13.1.3
NVFS statistics(ver: 4.0)
NVFS Driver(version: 2.24.2)
Mellanox PeerDirect Supported: True
IO stats: {}, peer IO stats: Disabled
Logging level: info
"""


@pytest.mark.parametrize("word", ["Enabled", "Disabled"])
def test_gpudirect_says_whether_it_counts(tmp_path, word):
    root = plant(tmp_path, {"proc/driver/nvidia-fs/stats": STATS.format(word)})
    assert bypass.gpudirect(root) == Bypass("gpudirect", "nvidia-fs", f"statistics {word.lower()}")


def test_without_the_module_there_is_no_gpudirect(tmp_path):
    assert bypass.gpudirect(plant(tmp_path, {"proc/stat": ""})) is None


def test_statistics_that_may_not_be_read_still_say_that_the_module_is_there(tmp_path, monkeypatch):
    root = plant(tmp_path, {"proc/driver/nvidia-fs/stats": STATS})
    fail_opening(monkeypatch, "nvidia-fs/stats", errno.EACCES)
    assert bypass.gpudirect(root) == Bypass("gpudirect", "nvidia-fs", "statistics not readable")


def test_other_statistics_are_malformed_and_the_file_is_named(tmp_path):
    with pytest.raises(Malformed, match="nvidia-fs/stats: expected"):
        bypass.gpudirect(plant(tmp_path, {"proc/driver/nvidia-fs/stats": "NVFS"}))


@given(st.text())
def test_any_text_says_whether_or_is_malformed(text):
    with contextlib.suppress(Malformed):
        assert bypass.parse_io_stats(text) in ("statistics enabled", "statistics disabled")


def device(address, pci_class, driver):
    folder = f"sys/bus/pci/devices/{address}"
    return {f"{folder}/class": pci_class, f"{folder}/driver": Link(f"../../drivers/{driver}")}


def test_an_nvme_drive_that_a_program_drives_is_told_and_no_other_device(tmp_path):
    files = {
        **device("0000:41:00.0", "0x010802", "vfio-pci"),
        **device("0000:42:00.0", "0x010802", "uio_pci_generic"),
        **device("0000:43:00.0", "0x010802", "nvme"),
        **device("0000:44:00.0", "0x030200", "vfio-pci"),
        "sys/bus/pci/devices/0000:45:00.0/class": "0x010802",
    }
    assert list(bypass.userspace_drives(plant(tmp_path, files))) == [
        Bypass("userspace_driver", "0000:41:00.0", "vfio-pci"),
        Bypass("userspace_driver", "0000:42:00.0", "uio_pci_generic"),
    ]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("fuse.s3fs", "fuse"),
        ("fuseblk", "fuse"),
        ("lustre", "parallel"),
        ("wekafs", "parallel"),
        ("xfs", None),
        ("nfs4", None),
        ("fusectl", None),
        ("fuse.lxcfs", None),
    ],
)
def test_file_systems_that_count_for_themselves(kind, told):
    found = list(bypass.mounted([Mount("0:50", "/", "/mnt", kind, "x")]))
    assert found == ([Bypass(told, "/mnt", kind)] if told else [])
