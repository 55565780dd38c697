"""Mounts traced to their drives, and file systems that do not answer."""

from __future__ import annotations

import errno
import os
import threading
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import Link, fail_opening, plant

from gpuhost_exporter.errors import Absent, Denied, Hung, Malformed
from gpuhost_exporter.sources import layers, mounts
from gpuhost_exporter.sources.layers import Stack
from gpuhost_exporter.sources.mounts import Capacities, Capacity, Mount

DATA = "36 27 9:0 / /data rw,noatime shared:1 - xfs /dev/md0 rw,attr2"


@pytest.mark.parametrize(
    ("line", "mount"),
    [
        (DATA, Mount("9:0", "/", "/data", "xfs", "/dev/md0", "36", "27")),
        (
            "29 1 0:26 /sub /a\\040b\\134c rw - btrfs /dev/sda1 rw,ssd",
            Mount("0:26", "/sub", "/a b\\c", "btrfs", "/dev/sda1", "29", "1"),
        ),
        (
            "41 27 0:52 / /home rw shared:41 master:3 - nfs4 filer:/home rw",
            Mount("0:52", "/", "/home", "nfs4", "filer:/home", "41", "27"),
        ),
        ("42 27 0:53 / /mnt rw - fuse.s3fs  rw", Mount("0:53", "/", "/mnt", "fuse.s3fs", "", "42", "27")),
    ],
    ids=["no tag is needed", "escaped", "two tags", "no source"],
)
def test_a_mount_is_read_from_its_line(line, mount):
    assert mounts.parse_mountinfo(f"{DATA}\n{line}\n")[1] == mount


@pytest.mark.parametrize("line", ["", "36 27 9:0 / /data rw xfs /dev/md0 rw", "36 27 - xfs /dev/md0 rw", f"{DATA}\n?"])
def test_what_is_no_mount_is_malformed(line):
    with pytest.raises(Malformed, match="expected 'ID PARENT"):
        mounts.parse_mountinfo(line or "\n")


@given(st.text() | st.lists(st.sampled_from(DATA.split(" ")), max_size=14).map(" ".join))
def test_any_text_is_mounts_or_malformed(text):
    try:
        found = mounts.parse_mountinfo(text)
    except Malformed:
        return
    assert all(isinstance(mount, Mount) for mount in found)


def test_the_malformed_file_is_named(tmp_path):
    with pytest.raises(Malformed, match="self/mountinfo: expected"):
        mounts.read(plant(tmp_path, {"proc/self/mountinfo": "?"}))


def disk(name, number, *slaves, **files):
    """A device below sys/devices with the links that lead to it."""
    folder = f"sys/devices/{name}"
    tree = {f"{folder}/size": "8", f"{folder}/dev": number, f"sys/block/{name}": Link(f"../devices/{name}"), **files}
    tree[f"sys/class/block/{name}"] = Link(f"../../devices/{name}")
    tree[f"sys/dev/block/{number}"] = Link(f"../../devices/{name}")
    return tree | {f"{folder}/slaves/{slave.rpartition('/')[2]}": Link(f"../../{slave}") for slave in slaves}


def partition(disk_name, name, number):
    folder = f"sys/devices/{disk_name}/{name}"
    shown = {f"{folder}/dev": number, f"sys/class/block/{name}": Link(f"../../devices/{disk_name}/{name}")}
    return shown | {f"{folder}/partition": "2", f"sys/dev/block/{number}": Link(f"../../devices/{disk_name}/{name}")}


LVM_ON_RAID = {
    **disk("nvme0n1", "259:0"),
    **partition("nvme0n1", "nvme0n1p2", "259:2"),
    **disk("nvme1n1", "259:4"),
    **partition("nvme1n1", "nvme1n1p2", "259:6"),
    **disk("md0", "9:0", "nvme0n1/nvme0n1p2", "nvme1n1/nvme1n1p2"),
    "sys/devices/md0/md/level": "raid0",
    **disk("dm-0", "253:0", "md0"),
    **disk("dm-1", "253:1", "dm-0"),
}


@pytest.mark.parametrize(
    ("number", "stack"),
    [
        ("259:0", Stack("nvme0n1", (), ("nvme0n1",))),
        ("259:6", Stack("nvme1n1p2", (), ("nvme1n1",))),
        ("9:0", Stack("md0", ("md0",), ("nvme0n1", "nvme1n1"))),
        ("253:1", Stack("dm-1", ("md0",), ("nvme0n1", "nvme1n1"))),
        ("8:0", None),
    ],
    ids=["drive", "partition", "array of partitions", "encrypted LVM on an array", "no such device"],
)
def test_a_device_is_traced_to_its_drives(tmp_path, number, stack):
    assert layers.stack(plant(tmp_path, LVM_ON_RAID), number) == stack


def test_an_array_whose_drives_are_gone_rests_on_none(tmp_path):
    files = disk("md0", "9:0", "nvme0n1") | {"sys/devices/md0/md/level": "raid0"}
    assert layers.stack(plant(tmp_path, files), "9:0") == Stack("md0", ("md0",), ())


def test_devices_that_name_each_other_end_somewhere(tmp_path):
    files = disk("dm-0", "253:0", "dm-1") | disk("dm-1", "253:1", "dm-0")
    assert layers.stack(plant(tmp_path, files), "253:0") == Stack("dm-0", (), ())


def mounted(tmp_path, *lines, **more):
    root = plant(
        tmp_path, LVM_ON_RAID | disk("loop3", "7:3") | more | {"dev/mapper/vg-data": Link("../dm-0"), "dev/dm-0": ""}
    )
    text = "\n".join(f"{number} 999 {line} rw" for number, line in enumerate(lines))
    return {found.mount.point: found.stack for found in mounts.local(root, mounts.parse_mountinfo(text))}


def test_only_file_systems_on_local_drives_are_local(tmp_path):
    found = mounted(
        tmp_path,
        "9:0 / /data rw - xfs /dev/md0",
        "0:21 / /proc rw - proc proc",
        "0:30 / /run rw - tmpfs tmpfs",
        "0:52 / /home rw - nfs4 filer:/home",
        "7:3 / /snap/core rw - squashfs /dev/loop3",
        "8:99 / /gone rw - ext4 /dev/sdz",
    )
    assert found == {"/data": Stack("md0", ("md0",), ("nvme0n1", "nvme1n1"))}


def test_a_device_mounted_twice_is_told_once_at_its_shortest_path(tmp_path):
    found = mounted(
        tmp_path,
        "9:0 / /var/lib/kubelet/pods/1/data rw - xfs /dev/md0",
        "9:0 /sub /short rw - xfs /dev/md0",
        "9:0 / /data rw - xfs /dev/md0",
    )
    assert list(found) == ["/data"]


def test_btrfs_is_found_by_its_source_though_its_number_is_made_up(tmp_path):
    found = mounted(tmp_path, "0:47 /@data /data rw - btrfs /dev/mapper/vg-data")
    assert found == {"/data": Stack("dm-0", ("md0",), ("nvme0n1", "nvme1n1"))}


def test_btrfs_on_a_partition_is_found(tmp_path):
    found = mounted(tmp_path, "0:47 /@ / rw - btrfs /dev/nvme0n1p2")
    assert found == {"/": Stack("nvme0n1p2", (), ("nvme0n1",))}


def test_btrfs_on_several_devices_rests_on_all_of_them(tmp_path):
    devices = {f"sys/fs/btrfs/6b8b/devices/{name}": "" for name in ("nvme0n1p2", "nvme1n1p2")}
    others = {"sys/fs/btrfs/0aaa/devices/sda": "", "sys/fs/btrfs/features/raid56": "0"}
    found = mounted(tmp_path, "0:47 / /data rw - btrfs /dev/nvme1n1p2", **devices, **others)
    assert found == {"/data": Stack("nvme0n1p2", (), ("nvme0n1", "nvme1n1"))}


def test_a_zfs_data_set_is_told_without_drives(tmp_path):
    found = mounted(tmp_path, "0:60 / /tank rw - zfs tank/data", "0:61 / /tank/a rw - zfs tank/a")
    assert found == {"/tank": Stack("tank/data", (), ()), "/tank/a": Stack("tank/a", (), ())}


ROOT = "27 1 254:0 / / rw - ext4 /dev/vda1 rw"
HOME = "36 27 9:0 / /home rw - xfs /dev/md0 rw"


def path_of(point, own, theirs=""):
    """Where one with these mounts reaches what is mounted at a point of another's."""
    (mount,) = [each for each in mounts.parse_mountinfo(theirs or own) if each.point == point and each.kind != "tmpfs"]
    return mounts.View(mounts.parse_mountinfo(own)).path(mount)


COVERS = {
    "over it": f"{ROOT}\n{HOME}\n50 36 0:24 /empty /home rw - tmpfs tmpfs rw",
    "over the folder above": f"{ROOT}\n{HOME.replace('/home', '/home/data')}\n50 27 0:24 / /home rw - tmpfs tmpfs rw",
    "over all": f"{ROOT}\n{HOME}\n50 27 0:24 / / rw - tmpfs tmpfs rw",
}


@pytest.mark.parametrize("own", COVERS.values(), ids=COVERS)
def test_what_another_mount_covers_is_reached_nowhere(own):
    point = "/home/data" if "/home/data" in own else "/home"
    assert path_of(point, own) is None
    assert path_of(point, own.rpartition("\n")[0]) == point, "without the cover it is"


def test_a_mount_inside_of_another_is_reached_through_it():
    own = f"{ROOT}\n{HOME}\n50 36 8:1 / /home/a rw - ext4 /dev/sda1 rw\n51 27 8:2 / /homely rw - ext4 /dev/sda2 rw"
    assert [path_of(point, own) for point in ("/", "/home", "/home/a", "/homely")] == [
        "/",
        "/home",
        "/home/a",
        "/homely",
    ]


CONTAINER = """611 590 0:71 / / rw - overlay overlay rw
612 611 0:72 / /proc rw - proc proc rw
620 611 254:0 /var/lib/kubelet/pods/1/etc-hosts /etc/hosts rw - ext4 /dev/vda1 rw"""


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ("", None),
        ("630 611 9:0 / /home ro - xfs /dev/md0 rw", "/home"),
        ("630 611 9:0 / /host/home ro - xfs /dev/md0 rw", "/host/home"),
        ("630 611 9:0 /a /mnt ro - xfs /dev/md0 rw", "/mnt"),
        ("630 611 9:1 / /home ro - xfs /dev/md1 rw", None),
    ],
    ids=["not mounted", "the same path", "another path", "a folder of it", "another file system at its path"],
)
def test_a_container_reaches_the_hosts_file_system_where_any_of_it_is_mounted(more, path):
    own = f"{CONTAINER}\n{more}".strip()
    assert path_of("/home", own, f"{ROOT}\n{HOME}") == path
    assert path_of("/", own, f"{ROOT}\n{HOME}") == "/etc/hosts"


def test_the_hosts_mounts_are_those_of_its_first_process(tmp_path, monkeypatch):
    root = plant(tmp_path, {"proc/1/mountinfo": HOME, "proc/self/mountinfo": CONTAINER})
    assert [mount.point for mount in mounts.read(root)] == ["/home"]
    fail_opening(monkeypatch, "/1/mountinfo", errno.EACCES)
    assert [mount.point for mount in mounts.read(root)] == ["/", "/proc", "/etc/hosts"]


def test_of_two_file_systems_at_one_place_the_one_on_top_is_told(tmp_path):
    found = mounted(tmp_path, "9:0 / /data rw - xfs /dev/md0", "259:0 / /data rw - ext4 /dev/nvme0n1")
    assert found == {"/data": Stack("nvme0n1", (), ("nvme0n1",))}


@given(st.lists(st.tuples(*[st.integers(0, 5)] * 2, st.sampled_from(["/", "/a", "/a/b", "/ab"])), max_size=9))
def test_mounts_that_name_each_other_as_parents_end_somewhere(lines):
    text = "\n".join(f"{own} {parent} 8:{own} / {point} rw - ext4 /dev/sda rw" for own, parent, point in lines)
    found = mounts.parse_mountinfo(text)
    view = mounts.View(found)
    assert all(view.path(mount) in (None, "/", "/a", "/a/b", "/ab") for mount in found)


def room(point):
    return SimpleNamespace(f_frsize=4096, f_blocks=100, f_bavail=25)


def test_room_is_in_bytes_and_what_an_ordinary_user_may_fill():
    assert Capacities(room).read("/data") == Capacity(409600, 102400)


@pytest.mark.parametrize(("number", "error"), [(errno.EACCES, Denied), (errno.ENOENT, Absent)])
def test_a_file_system_that_refuses_says_why(number, error):
    def refuse(point):
        raise OSError(number, os.strerror(number))

    with pytest.raises(error, match="/data"):
        Capacities(refuse).read("/data")


class Dead:
    """statvfs() that never returns for some points until they are let go."""

    def __init__(self, *points):
        self.points = set(points)
        self.back = threading.Event()
        self.asked = []

    def __call__(self, point):
        self.asked.append(point)
        if point in self.points:
            self.back.wait(20)
        return room(point)


def test_a_dead_file_system_costs_its_own_answer_and_is_asked_once():
    dead = Dead("/dead")
    capacities = Capacities(dead, patience=0.05)
    for _ in range(3):
        with pytest.raises(Hung, match="/dead: the file system does not answer"):
            capacities.read("/dead")
        assert capacities.read("/data").free_bytes == 102400
    assert dead.asked.count("/dead") == 1
    dead.points.clear()
    dead.back.set()
    until = time.monotonic() + 5
    while capacities.hanging() and time.monotonic() < until:
        time.sleep(0.01)
    assert capacities.read("/dead").free_bytes == 102400


def test_no_more_than_four_threads_are_left_behind():
    points = [f"/dead{number}" for number in range(9)]
    dead = Dead(*points)
    capacities = Capacities(dead, patience=0.02)
    before = threading.active_count()
    for point in [*points, "/data"]:
        with pytest.raises(Hung):
            capacities.read(point)
    assert threading.active_count() - before <= 4
    assert len(dead.asked) == 4
    dead.back.set()
