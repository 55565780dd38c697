"""PCI devices from a tree that stands for /sys, and the parsers on text."""

from __future__ import annotations

import contextlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuhost_exporter.errors import Absent, Malformed
from gpuhost_exporter.sources.files import Root
from gpuhost_exporter.sources.pci import (
    PciDevice,
    PciLink,
    bridges,
    bytes_per_second,
    count_nvswitches,
    gpus,
    parse_aer_total,
    parse_generation,
    read_device,
)

BDF = "0000:18:00.0"
GPU_FILES = {
    "current_link_speed": "16.0 GT/s PCIe",
    "current_link_width": "8",
    "max_link_speed": "32.0 GT/s PCIe",
    "max_link_width": "16",
    "numa_node": "1",
    "aer_dev_correctable": "RxErr 3\nBadTLP 1\nTOTAL_ERR_COR 4",
    "aer_dev_nonfatal": "Undefined 0\nTOTAL_ERR_NONFATAL 0",
    "aer_dev_fatal": "Undefined 0\nTOTAL_ERR_FATAL 2",
}
SLOT_FILES = {
    "current_link_speed": "16.0 GT/s PCIe",
    "current_link_width": "8",
    "max_link_speed": "16.0 GT/s PCIe",
    "max_link_width": "16",
}


def tree(folder, files, slot=None):
    """A device below a port (`slot`: the port's files) or, without one, on the root bus."""
    place = folder / "sys/devices/pci0000:15"
    if slot is not None:
        place /= "0000:15:01.0"
    for where, contents in ((place, slot or {}), (place / BDF, files)):
        where.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            (where / name).write_text(text + "\n")
    devices = folder / "sys/bus/pci/devices"
    devices.mkdir(parents=True)
    os.symlink(place / BDF, devices / BDF)
    return Root.below(str(folder))


def test_a_gpu_in_a_slot_of_an_older_generation(tmp_path):
    assert read_device(tree(tmp_path, GPU_FILES, SLOT_FILES), BDF) == PciDevice(
        bdf=BDF,
        link=PciLink(4, 8, 5, 16),
        slot_bdf="0000:15:01.0",
        slot=PciLink(4, 8, 4, 16),
        numa_node=1,
        aer=(("correctable", 4), ("nonfatal", 0), ("fatal", 2)),
    )


def test_a_device_on_a_root_bus_has_no_slot_and_a_kernel_without_aer_counts_nothing(tmp_path):
    files = {name: text for name, text in GPU_FILES.items() if not name.startswith("aer")} | {"numa_node": "-1"}
    device = read_device(tree(tmp_path, files), BDF)
    assert device == PciDevice(BDF, PciLink(4, 8, 5, 16), None, None, None, ())


def test_a_device_that_no_longer_answers_has_no_link(tmp_path):
    files = {"current_link_speed": "Unknown", "current_link_width": "63", "max_link_speed": "Unknown"}
    assert read_device(tree(tmp_path, files, {}), BDF).link == PciLink(None, None, None, None)


def test_a_device_that_is_not_there_is_absent(tmp_path):
    with pytest.raises(Absent):
        read_device(Root.below(str(tmp_path)), BDF)


def put_on_bus(root, bdf, vendor, pci_class, **links):
    device = root / "sys/bus/pci/devices" / bdf
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{pci_class}\n")
    for name, target in links.items():
        (device / name).symlink_to(target)


@pytest.mark.parametrize(
    ("vendor", "pci_class", "links", "counted"),
    [
        ("0x10de", "0x030200", {}, 1),
        ("0x10de", "0x030000", {"driver": "../../../../bus/pci/drivers/nouveau"}, 1),
        ("0x10de", "0x030200", {"driver": "../../../../bus/pci/drivers/nvidia"}, 1),
        ("0x10de", "0x030200", {"driver": "../../../../bus/pci/drivers/vfio-pci"}, 0),
        ("0x10de", "0x030200", {"physfn": "../0000:17:00.0"}, 0),
        ("0x10de", "0x068000", {}, 0),
        ("0x10de", "0x040300", {}, 0),
        ("0x1a03", "0x030000", {}, 0),
        ("garbage", "0x030200", {}, 0),
    ],
    ids=["3D", "display", "bound", "of a guest", "virtual", "NVSwitch", "audio", "the board's", "garbage"],
)
def test_nvidia_gpus_of_this_host_are_counted_and_nothing_else(tmp_path, vendor, pci_class, links, counted):
    put_on_bus(tmp_path, "0000:18:00.0", "0x10de", "0x030200")
    put_on_bus(tmp_path, "0000:1b:00.0", vendor, pci_class, **links)
    assert len(gpus(Root.below(str(tmp_path)))) == 1 + counted


def test_a_host_without_a_pci_bus_counts_nothing_rather_than_none(tmp_path):
    with pytest.raises(Absent):
        gpus(Root.below(str(tmp_path)))


@pytest.mark.parametrize("file", ["current_link_speed", "aer_dev_fatal"])
def test_garbage_is_said_to_be_garbage(tmp_path, file):
    with pytest.raises(Malformed, match="expected"):
        read_device(tree(tmp_path, GPU_FILES | {file: "\x00\x01"}, SLOT_FILES), BDF)


@pytest.mark.parametrize(
    ("text", "generation"),
    [
        ("2.5 GT/s PCIe", 1),
        ("5.0 GT/s PCIe", 2),
        ("8.0 GT/s PCIe", 3),
        ("8 GT/s", 3),
        ("16.0 GT/s PCIe", 4),
        ("32.0 GT/s PCIe", 5),
        ("64.0 GT/s PCIe", 6),
        ("Unknown", None),
        ("Unknown speed", None),
    ],
)
def test_speeds_are_generations(text, generation):
    assert parse_generation(text) == generation


@pytest.mark.parametrize("text", ["", "7.0 GT/s PCIe", "32.0", "32.0 GB/s", "GT/s"])
def test_other_texts_are_no_speed(text):
    with pytest.raises(Malformed, match="expected a PCIe speed"):
        parse_generation(text)


@pytest.mark.parametrize(
    ("generation", "gigabytes"), [(1, 4.0), (2, 8.0), (3, 15.75), (4, 31.5), (5, 63.0), (6, 121.0)]
)
def test_sixteen_lanes_carry_in_one_direction(generation, gigabytes):
    assert bytes_per_second(generation, 16) == pytest.approx(gigabytes * 1e9, rel=1e-3)


def test_a_generation_that_is_not_known_has_no_bandwidth():
    assert bytes_per_second(7, 16) is None


@given(st.text())
def test_any_text_is_a_speed_or_malformed(text):
    with contextlib.suppress(Malformed):
        assert parse_generation(text) in {None, 1, 2, 3, 4, 5, 6}


@given(st.text() | st.from_regex(r"TOTAL_ERR_COR [0-9]{1,40}"))
def test_any_text_is_a_total_or_malformed(text):
    with contextlib.suppress(Malformed):
        assert parse_aer_total(text, "TOTAL_ERR_COR") >= 0


def test_nvswitches_are_counted_apart_from_gpus(tmp_path):
    put_on_bus(tmp_path, "0000:07:00.0", "0x10de", "0x068000")
    put_on_bus(tmp_path, "0000:18:00.0", "0x10de", "0x030200")
    put_on_bus(tmp_path, "0000:19:00.0", "0x8086", "0x068000")
    assert count_nvswitches(Root.below(str(tmp_path))) == 1
    assert count_nvswitches(Root.below(str(tmp_path / "none"))) == 0


def test_the_bridges_above_a_device_come_from_the_root_port_down(tmp_path):
    folder = tmp_path / "sys/devices/pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:01.0/0000:1b:00.0"
    folder.mkdir(parents=True)
    link = tmp_path / "sys/bus/pci/devices/0000:1b:00.0"
    link.parent.mkdir(parents=True)
    link.symlink_to(folder)
    assert bridges(Root.below(str(tmp_path)), "0000:1b:00.0") == ("0000:15:01.0", "0000:16:00.0", "0000:17:01.0")
