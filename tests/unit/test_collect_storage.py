"""Arrays and drives as volumes: who is measured, against what target, and as which samples."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
from test_source_raid import MD, array, member
from trees import Link, fail_opening, plant, values

from gpuhost_exporter.board import Board
from gpuhost_exporter.collectors.storage import StorageCollector
from gpuhost_exporter.config import CollectorSettings, Settings
from gpuhost_exporter.sources import pci, volumes
from gpuhost_exporter.sources.block import Field
from gpuhost_exporter.sources.pci import PciLink
from gpuhost_exporter.sources.volumes import Volume
from gpuhost_exporter.targets import Targets

KIB = 1024
GEN4 = 4 * 16e9 * 128 / 130 / 8 * 0.88


def nvme(number, *, generation="16.0 GT/s PCIe", width="4", link=True):
    """A drive with its controller, and the PCIe link of its device."""
    name = f"nvme{number}n1"
    address = f"0000:4{number}:00.0"
    files = {
        f"sys/block/{name}/size": "8",
        f"sys/block/{name}/queue/max_sectors_kb": "256",
        f"sys/class/nvme/nvme{number}/state": "live",
        f"sys/class/nvme/nvme{number}/transport": "pcie",
        f"sys/class/nvme/nvme{number}/address": address,
        f"sys/class/nvme/nvme{number}/{name}/nsid": "1",
    }
    if link:
        folder = f"sys/bus/pci/devices/{address}"
        files |= {f"{folder}/max_link_speed": generation, f"{folder}/max_link_width": width}
        files |= {f"{folder}/current_link_speed": "2.5 GT/s PCIe", f"{folder}/current_link_width": "1"}
    return files


def members(count, state="in_sync"):
    files = {}
    for number in range(count):
        name = f"nvme{number}n1"
        files |= {path: text for path, text in member(name, str(number), state).items() if "size" not in path}
        files[f"sys/block/md0/slaves/{name}"] = Link(f"../../{name}")
    return files


def raid0(count=2, **named):
    files = array("raid0", str(count), chunk_size="524288")
    for number in range(count):
        files |= nvme(number, **named)
    return files | {"sys/block/md0/size": "8"} | members(count)


def found(tmp_path, files):
    return volumes.read(plant(tmp_path, {"proc/stat": ""} | files))[0]


def test_an_array_is_a_volume_and_its_members_are_none_of_their_own(tmp_path):
    assert found(tmp_path, raid0() | nvme(5)) == (
        Volume("md0", "raid0", ("nvme0n1", "nvme1n1"), ("nvme0n1", "nvme1n1"), 256 * KIB, False, width=2),
        Volume("nvme5n1", "", ("nvme5n1",), ("nvme5n1",), 256 * KIB, False),
    )


def test_what_holds_no_data_of_its_own_is_no_volume(tmp_path):
    files = nvme(0) | {f"sys/block/{name}/size": "8" for name in ("loop0", "dm-0", "zram0", "nvme0c0n1")}
    assert [volume.name for volume in found(tmp_path, files | {"sys/block/nbd0/size": "0"})] == ["nvme0n1"]


def test_members_on_partitions_take_their_drives_with_them(tmp_path):
    files = array("raid1", "2", sync_action="idle")
    for number in (0, 1):
        disk, name = f"nvme{number}n1", f"nvme{number}n1p2"
        files |= nvme(number) | {f"sys/block/{disk}/{name}/partition": "2"}
        files |= {f"{MD}/dev-{name}/{file}": text for file, text in (("state", "in_sync"), ("slot", str(number)))}
        files |= {f"{MD}/dev-{name}/block": Link(f"../../../{disk}/{name}")}
        files |= {f"sys/block/md0/slaves/{name}": Link(f"../../{disk}/{name}")}
    (volume,) = found(tmp_path, files)
    assert volume.members == ("nvme0n1p2", "nvme1n1p2")
    assert volume.drives == ("nvme0n1", "nvme1n1")
    assert (volume.copies, volume.striped) == (2, False)


@pytest.mark.parametrize(("action", "busy"), [("idle", False), ("frozen", False), ("check", True), ("recover", True)])
def test_an_array_that_rebuilds_is_synchronizing(tmp_path, action, busy):
    files = array("raid1", "2", sync_action=action, sync_completed="none", sync_speed="none") | members(2)
    assert found(tmp_path, files | nvme(0) | nvme(1))[0].synchronizing is busy


def volume(level, count, **named):
    drives = tuple(f"nvme{number}n1" for number in range(count))
    return Volume("md0", level, drives, drives, None, False, **{"width": count} | named)


@pytest.mark.parametrize(
    ("made_of", "reading", "writing"),
    [
        (volume("raid0", 4), 4, 4),
        (volume("raid5", 4, parity=1), 4, 3),
        (volume("raid6", 8, parity=2), 8, 6),
        (volume("raid10", 4, copies=2), 4, 2),
        (volume("raid5", 3, parity=1, width=4), 4, 3),
    ],
    ids=["raid0", "raid5", "raid6", "raid10", "a raid5 that lost a member keeps its target"],
)
def test_what_the_drives_could_do_together(made_of, reading, writing):
    rates = {f"nvme{number}n1": 7e9 for number in range(8)}
    assert volumes.deliverable(made_of, rates) == (reading * 7e9, writing * 7e9)
    assert volumes.deliverable(made_of, {"nvme0n1": 7e9}) is None, "one drive is not known"


def test_a_stripe_is_as_fast_as_its_slowest_member():
    assert volumes.deliverable(volume("raid0", 2), {"nvme0n1": 7e9, "nvme1n1": 3.5e9}) == (7e9, 7e9)


def pci_device(link, slot=None):
    return pci.PciDevice("0000:41:00.0", link, "0000:40:01.0" if slot else None, slot, None, ())


@pytest.mark.parametrize(
    ("device", "rate"),
    [
        (pci_device(PciLink(4, 4, 4, 4)), GEN4),
        (pci_device(PciLink(1, 1, 4, 4)), GEN4),
        (pci_device(PciLink(3, 4, 4, 4), PciLink(3, 4, 3, 16)), GEN4 / 2),
        (pci_device(PciLink(4, 4, None, 4)), None),
    ],
    ids=["full", "a link that came up slow keeps its target", "a slot of generation 3", "not told"],
)
def test_a_links_rate_is_what_both_ends_can_do(device, rate):
    told = volumes.link_rate(device)
    assert told == (None if rate is None else pytest.approx(rate, rel=0.001))


class Bench:
    """A collector over a tree whose diskstats the test rewrites each second."""

    def __init__(self, folder, files, *, settings=None, targets=None):
        self.now = 1000.0
        base = {"proc/diskstats": "", "proc/vmstat": ""}
        self.host = SimpleNamespace(
            root=plant(folder, base | files),
            board=Board(),
            settings=settings or Settings(),
            targets=Targets.load(targets or {}),
            clock=SimpleNamespace(now=lambda: self.now),
        )
        self.folder = folder
        self.counters = {}
        self.collector = StorageCollector(self.host)

    def go(self, seconds, written=None, **rates):
        """Each device's (bytes/s read, queue, busy); requests of 256 KiB. `written`: when the file says it was."""
        got = {}
        for _ in range(seconds):
            for name, (read, queue, busy) in rates.items():
                fields = self.counters.setdefault(name, [0] * 17)
                for field, change in (
                    (Field.READS, read / (256 * KIB)),
                    (Field.READ_SECTORS, read / 512),
                    (Field.READ_MILLISECONDS, 1000 * queue),
                    (Field.WEIGHTED_MILLISECONDS, 1000 * queue),
                    (Field.BUSY_MILLISECONDS, 1000 * busy),
                ):
                    fields[field] += round(change)
            lines = [f"259 0 {name} {' '.join(map(str, fields))}\n" for name, fields in self.counters.items()]
            (self.folder / "proc/diskstats").write_text("".join(lines))
            if written is not None:
                os.utime(self.folder / "proc/diskstats", (written, written))
            self.now += 1
            got = values(self.collector.poll(self.now))
        return got


def test_the_member_that_an_array_waits_for_is_named_with_what_the_array_delivered(tmp_path):
    bench = Bench(tmp_path, raid0(2))
    got = bench.go(12, nvme0n1=(1.5e9, 0.5, 0.3), nvme1n1=(1.5e9, 31, 1.0))
    seconds = got["storage_saturated_seconds_total", "md0", "read"]
    assert seconds == pytest.approx(10, abs=1.1)
    assert got["storage_saturated_bytes_total", "md0", "read"] / seconds == pytest.approx(3e9, rel=0.001)
    assert got["storage_limited_seconds_total", "md0", "member"] == seconds
    assert got["storage_limited_seconds_total", "md0", "array"] == 0
    assert got["storage_member_limited_seconds_total", "md0", "nvme1n1"] == seconds
    assert got["storage_member_limited_seconds_total", "md0", "nvme0n1"] == 0
    assert ("storage_limited_seconds_total", "nvme0n1", "array") not in got


def test_a_simulator_that_writes_late_changes_no_rate(tmp_path):
    """Its file was true when it was written: each window here is 1 s of the simulation, and 0.7 or 1.3 s of ours."""
    bench = Bench(tmp_path, nvme(0))
    bench.host.root = replace(bench.host.root, stamped=True)
    for number in range(12):
        bench.now = 1000 + number + 0.3 * (number % 2)
        got = bench.go(1, written=1000.0 + number, nvme0n1=(5e9, 20, 1.0))
    seconds = got["storage_saturated_seconds_total", "nvme0n1", "read"]
    assert seconds == pytest.approx(10, abs=1.1)
    assert got["storage_saturated_bytes_total", "nvme0n1", "read"] / seconds == pytest.approx(5e9, rel=0.001)


def test_a_file_that_was_not_written_meanwhile_is_no_idle_second(tmp_path):
    bench = Bench(tmp_path, nvme(0))
    bench.host.root = replace(bench.host.root, stamped=True)
    for number in range(12):
        got = bench.go(1, written=1000.0 + number, nvme0n1=(5e9, 20, 1.0))
        bench.now += 0.6
        got = values(bench.collector.poll(bench.now))
        bench.now -= 0.6
    assert got["storage_limited_seconds_total", "nvme0n1", "array"] == pytest.approx(10, abs=1.1)


def test_a_drive_alone_has_no_members(tmp_path):
    got = Bench(tmp_path, nvme(0)).go(12, nvme0n1=(5e9, 20, 1.0))
    assert got["storage_limited_seconds_total", "nvme0n1", "array"] == pytest.approx(10, abs=1.1)
    assert not [key for key in got if key[0].startswith("storage_member")]


def test_an_array_that_rebuilds_books_nothing(tmp_path):
    files = array("raid5", "2", sync_action="check", sync_completed="1 / 9", sync_speed="5") | members(2)
    bench = Bench(tmp_path, files | nvme(0) | nvme(1) | {"sys/block/md0/size": "8"})
    got = bench.go(12, md0=(1e9, 0, 0), nvme0n1=(3e9, 20, 1.0), nvme1n1=(3e9, 20, 1.0))
    assert got["storage_saturated_seconds_total", "md0", "read"] == 0


def test_an_array_that_left_takes_its_series_along_and_its_drives_have_their_own(tmp_path):
    bench = Bench(tmp_path, raid0(2))
    load = {"nvme0n1": (5e9, 20, 1.0), "nvme1n1": (5e9, 20, 1.0)}
    assert ("storage_limited_seconds_total", "md0", "array") in bench.go(3, **load)
    (tmp_path / "sys/block/md0").rename(tmp_path / "away")
    got = bench.go(20, **load)
    assert not [key for key in got if key[1] == "md0"]
    assert got["storage_limited_seconds_total", "nvme0n1", "array"] > 0


def test_an_array_that_cannot_be_read_for_a_while_goes_on_as_it_was(tmp_path, monkeypatch):
    bench = Bench(tmp_path, raid0(2))
    load = {"nvme0n1": (5e9, 20, 1.0), "nvme1n1": (5e9, 20, 1.0)}
    bench.go(2, **load)
    fail_opening(monkeypatch, "md0/md/level", errno.EIO)
    got = bench.go(20, **load)
    assert got["storage_limited_seconds_total", "md0", "array"] == pytest.approx(20, abs=2.1)
    assert bench.collector.errors["transient"] >= 1


def test_a_torn_line_costs_the_array_a_second_and_its_sibling_nothing(tmp_path):
    bench = Bench(tmp_path, raid0(2) | nvme(5))
    load = {"nvme0n1": (5e9, 20, 1.0), "nvme1n1": (5e9, 20, 1.0), "nvme5n1": (5e9, 20, 1.0)}
    bench.go(3, **load)
    whole, bench.counters["nvme1n1"] = bench.counters["nvme1n1"], ["torn"]
    before = bench.go(1, nvme0n1=load["nvme0n1"], nvme5n1=load["nvme5n1"])
    bench.counters["nvme1n1"] = whole
    after = bench.go(2, **load)
    alone = ("storage_limited_seconds_total", "nvme5n1", "array")
    assert after[alone] == pytest.approx(before[alone] + 2)
    assert after["storage_limited_seconds_total", "md0", "array"] > 0


def test_an_interval_of_five_seconds_is_no_gap(tmp_path):
    settings = Settings(collectors={"storage": CollectorSettings(interval=5.0)})
    bench = Bench(tmp_path, nvme(0), settings=settings)
    for _ in range(4):
        bench.now += 4
        got = bench.go(1, nvme0n1=(25e9, 100, 5.0))
    assert got["storage_limited_seconds_total", "nvme0n1", "array"] == pytest.approx(15)


def targets(got):
    return {key[1:]: value for key, value in got.items() if key[0] == "storage_target_bytes_per_second"}


def test_an_array_of_enough_drives_is_held_to_the_guides_figures(tmp_path):
    assert targets(Bench(tmp_path, raid0(4)).go(1)) == {
        ("md0", direction, band): rate
        for direction in ("read", "write")
        for band, rate in (("good", 20e9), ("poor", 10e9))
    }


def test_a_smaller_array_is_held_to_what_its_links_let_through(tmp_path):
    got = targets(Bench(tmp_path, raid0(2, generation="8.0 GT/s PCIe")).go(1))
    assert got["md0", "read", "good"] == pytest.approx(GEN4, rel=0.001)
    assert got["md0", "write", "poor"] == pytest.approx(GEN4 / 2, rel=0.001)


def test_the_site_may_ask_for_more(tmp_path):
    got = targets(Bench(tmp_path, raid0(4), targets={"storage_good_bytes_per_second": 25e9}).go(1))
    assert got["md0", "read", "good"] == 25e9


def test_where_no_link_is_told_the_sites_figures_hold_as_they_are_and_the_guides_do_not(tmp_path):
    files = raid0(4, link=False) | {"sys/block/sda/size": "8"}
    site = {"storage_good_bytes_per_second": 1.5e9, "storage_poor_bytes_per_second": 0.5e9}
    assert targets(Bench(tmp_path / "guide", files).go(1)) == {}
    assert targets(Bench(tmp_path / "site", files, targets=site).go(1)) == {
        (name, direction, band): site[f"storage_{band}_bytes_per_second"]
        for name in ("md0", "sda")
        for direction in ("read", "write")
        for band in ("good", "poor")
    }
    got = targets(Bench(tmp_path / "half", files, targets={"storage_good_bytes_per_second": 1.5e9}).go(1))
    assert {band for _, _, band in got} == {"good"}, "the guide's other figure was never meant for such drives"


NO_TARGET = {
    "a mirror": array("raid1", "2", sync_action="idle") | members(2) | nvme(0) | nvme(1),
    "an unknown link": raid0(2, link=False),
    "a disk that is not NVMe": {"sys/block/vda/size": "8"},
    "the array of the operating system": raid0(2)
    | {"proc/self/mountinfo": "1 0 9:0 / / rw - ext4 /dev/md0 rw", "sys/dev/block/9:0": Link("../../block/md0")},
    "the drive of the operating system": nvme(0)
    | {
        "proc/self/mountinfo": "1 0 259:0 / /boot rw - ext4 /dev/nvme0n1 rw",
        "sys/dev/block/259:0": Link("../../block/nvme0n1"),
    },
    "the host's, seen from a container": nvme(0)
    | {
        "proc/1/mountinfo": "1 0 259:0 / / rw - ext4 /dev/nvme0n1 rw",
        "proc/self/mountinfo": "9 8 0:71 / / rw - overlay overlay rw",
        "sys/dev/block/259:0": Link("../../block/nvme0n1"),
    },
    "btrfs on a partition": nvme(0)
    | {
        "proc/self/mountinfo": "1 0 0:47 /@ / rw - btrfs /dev/nvme0n1p2 rw",
        "sys/block/nvme0n1/nvme0n1p2/partition": "2",
        "sys/block/nvme0n1/nvme0n1p2/dev": "259:2",
        "sys/class/block/nvme0n1p2": Link("../../block/nvme0n1/nvme0n1p2"),
        "sys/dev/block/259:2": Link("../../block/nvme0n1/nvme0n1p2"),
    },
}


@pytest.mark.parametrize("files", NO_TARGET.values(), ids=NO_TARGET)
def test_no_target_is_set_for(tmp_path, files):
    got = Bench(tmp_path, {"sys/block/md0/size": "8"} | files).go(2)
    assert targets(got) == {}


def test_a_drive_and_an_array_that_come_have_series_at_once(tmp_path):
    """Though the layout is read every 15 s, and the array's files come a moment after its name."""
    bench = Bench(tmp_path, raid0(2))
    load = {"nvme0n1": (5e9, 20, 1.0), "nvme1n1": (5e9, 20, 1.0)}
    assert {key[1] for key in bench.go(8, **load)} == {"md0"}
    plant(tmp_path, nvme(7))
    got = bench.go(1, **load, nvme7n1=(0, 0, 0))
    assert ("storage_saturated_seconds_total", "nvme7n1", "read") in got
    bench.go(8, **load, nvme7n1=(0, 0, 0))
    bench.go(1, **load, nvme7n1=(0, 0, 0), md1=(0, 0, 0))
    plant(tmp_path, {"sys/block/md1/size": "8"} | array_of("md1", "nvme7n1"))
    got = bench.go(1, **load, nvme7n1=(5e9, 20, 1.0), md1=(0, 0, 0))
    assert ("storage_saturated_seconds_total", "md1", "read") in got
    assert not [key for key in got if key[1] == "nvme7n1"], "a member now, and no volume of its own"


def array_of(name, *drives):
    """A stripe of these drives, under another name than md0."""
    files = array("raid0", str(len(drives)), chunk_size="524288")
    for number, drive in enumerate(drives):
        files |= {path: text for path, text in member(drive, str(number), "in_sync").items() if "size" not in path}
        files[f"sys/block/md0/slaves/{drive}"] = Link(f"../../{drive}")
    return {path.replace("/md0/", f"/{name}/"): text for path, text in files.items()}
