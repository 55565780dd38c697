"""Disk counters as the kernel gives them."""

from __future__ import annotations

import contextlib
import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import fail_opening, plant

from gpuhost_exporter.errors import Absent, Denied, Malformed
from gpuhost_exporter.sources import block
from gpuhost_exporter.sources.block import Disk, Field

ZERO = (0,) * 17
BUSY = (5, 0, 80, 3, 7, 0, 160, 4, 1, 6, 7, 0, 0, 0, 0, 2, 1)


def line(name: str, fields: tuple[int, ...]) -> str:
    return f" 259       0 {name} {' '.join(map(str, fields))}\n"


def tree(**devices: tuple[int, ...]) -> dict[str, str]:
    files = {"proc/diskstats": "".join(line(name, fields) for name, fields in devices.items())}
    return files | {f"sys/block/{name}/size": "2048\n" for name in devices}


@pytest.mark.parametrize("length", [11, 15, 17])
def test_each_kernels_number_of_fields_is_read_whole(length):
    assert block.parse_fields([str(number) for number in range(length)]) == tuple(range(length))


@pytest.mark.parametrize(("length", "known"), [(18, 17), (16, 15), (12, 11)])
def test_fields_that_are_not_known_are_left_out(length, known):
    assert len(block.parse_fields(["1"] * length)) == known


@pytest.mark.parametrize(
    "words",
    [[], ["1"] * 10, ["x"] * 11, ["1"] * 10 + ["-1"], ["1.5"] * 17],
    ids=["none", "cut short", "letters", "negative", "fractions"],
)
def test_what_is_no_line_of_counters_is_malformed(words):
    with pytest.raises(Malformed, match="expected 11, 15 or 17 counters"):
        block.parse_fields(words)


@given(st.text())
def test_any_text_is_counters_or_malformed(text):
    for words in block.split_diskstats(text).values():
        with contextlib.suppress(Malformed):
            assert min(block.parse_fields(words)) >= 0


@given(st.text())
def test_any_text_is_a_scheduler_or_none(text):
    name = block.parse_scheduler(text)
    assert name is None or name in text


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("[none] mq-deadline kyber", "none"),
        ("none [mq-deadline]", "mq-deadline"),
        ("none", "none"),
        ("two words", None),
    ],
)
def test_the_scheduler_in_brackets_is_the_one_in_use(text, name):
    assert block.parse_scheduler(text) == name


def test_disks_arrays_and_mapped_devices_are_read_and_nothing_else(tmp_path):
    names = ("nvme0n1", "md0", "dm-0", "sda", "vda", "loop0", "ram0", "zram0", "sr0", "fd0")
    files = tree(**dict.fromkeys(names, BUSY))
    files["proc/diskstats"] += line("nvme0n1p1", BUSY)  # a partition is in diskstats but no folder of /sys/block
    disks, faults = block.read(plant(tmp_path, files))
    assert {disk.name for disk in disks} == {"nvme0n1", "md0", "dm-0", "sda", "vda"}
    assert faults == {}


MULTIPATH = [
    pytest.param(BUSY, {"nvme0n1": BUSY}, id="the head counts: never its paths as well"),
    pytest.param(ZERO, {"nvme0c1n1": BUSY, "nvme0c2n1": BUSY}, id="the head does not count: its paths do"),
    pytest.param(
        (*ZERO[:8], 3, *ZERO[9:]), {"nvme0c1n1": BUSY, "nvme0c2n1": BUSY}, id="in flight alone decides nothing"
    ),
]


@pytest.mark.parametrize(("head", "counting"), MULTIPATH)
def test_a_multipath_namespace_counts_once(tmp_path, head, counting):
    files = tree(nvme0n1=head, nvme0c1n1=BUSY, nvme0c2n1=BUSY, nvme0n2=BUSY, nvme1n1=BUSY)
    disks, _ = block.read(plant(tmp_path, files))
    assert [disk.name for disk in disks] == ["nvme0n1", "nvme0n2", "nvme1n1"]
    assert disks[0].counting() == counting
    assert disks[1].paths == disks[2].paths == ()


def test_an_idle_disk_without_paths_counts_for_itself():
    assert Disk("sda", ZERO, ()).counting() == {"sda": ZERO}


@pytest.mark.parametrize(
    "spoiled",
    [
        line("nvme1n1", BUSY[:5]),
        " 259 0 nvme1n1 garbage\n",
        " 259 0\n",
        "",
        "\x00\xff",
    ],
    ids=["torn", "garbage", "nameless", "no line", "binary"],
)
def test_a_spoiled_line_costs_that_disk_only(tmp_path, spoiled):
    files = tree(nvme0n1=BUSY, nvme1n1=BUSY)
    files["proc/diskstats"] = line("nvme0n1", BUSY) + spoiled
    disks, faults = block.read(plant(tmp_path, files))
    assert [disk.name for disk in disks] == ["nvme0n1"]
    assert list(faults) == ["nvme1n1"]
    assert isinstance(faults["nvme1n1"], Malformed)


@pytest.mark.parametrize("missing", ["proc/diskstats", "sys/block/nvme0n1/size"])
def test_without_either_tree_the_whole_subject_is_absent(tmp_path, missing):
    files = tree(nvme0n1=BUSY)
    del files[missing]
    with pytest.raises(Absent):
        block.read(plant(tmp_path, files))


def test_an_unreadable_diskstats_is_denied(tmp_path, monkeypatch):
    root = plant(tmp_path, tree(nvme0n1=BUSY))
    fail_opening(monkeypatch, "/proc/diskstats", errno.EACCES)
    with pytest.raises(Denied):
        block.read(root)


def test_size_is_in_sectors_of_512_bytes_also_on_drives_with_larger_ones(tmp_path):
    root = plant(
        tmp_path,
        {
            "sys/block/nvme0n1/size": "7501476528\n",
            "sys/block/nvme0n1/queue/logical_block_size": "4096\n",
            "sys/block/nvme0n1/queue/rotational": "0\n",
            "sys/block/nvme0n1/queue/scheduler": "[none] mq-deadline\n",
            "sys/block/nvme0n1/device/model": "SAMSUNG MZQL23T8HCLS-00A07              \n",
        },
    )
    device = block.describe(root, "nvme0n1")
    assert device == block.BlockDevice(
        "nvme0n1", 3840755982336, "SAMSUNG MZQL23T8HCLS-00A07", "none", rotational=False, mapping=None
    )


def test_a_mapped_device_has_its_name_and_what_is_not_told_is_none(tmp_path):
    root = plant(tmp_path, {"sys/block/dm-0/size": "8\n", "sys/block/dm-0/dm/name": "vg-root\n"})
    assert block.describe(root, "dm-0") == block.BlockDevice("dm-0", 4096, None, None, None, "vg-root")


def test_a_disk_that_vanished_cannot_be_described(tmp_path):
    with pytest.raises(Absent):
        block.describe(plant(tmp_path, {}), "nvme0n1")


def test_fields_are_numbered_as_the_kernel_documents_them():
    assert [field.name for field in Field][:3] == ["READS", "READ_MERGES", "READ_SECTORS"]
    assert (Field.WRITTEN_SECTORS, Field.IN_FLIGHT, Field.DISCARDED_SECTORS, Field.FLUSHES) == (6, 8, 13, 15)
