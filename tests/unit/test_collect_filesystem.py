"""File systems, the page cache and NFS as samples."""

from __future__ import annotations

import errno

import pytest
from test_source_bypass import STATS, device
from test_source_mounts import LVM_ON_RAID, Dead, room
from test_source_nfs import NFS
from test_source_pagecache import VMSTAT
from trees import fail_opening, host_at, values

from gpuhost_exporter.collectors import filesystem, nfs
from gpuhost_exporter.collectors.filesystem import FilesystemCollector
from gpuhost_exporter.collectors.nfs import NfsCollector
from gpuhost_exporter.collectors.pagecache import PageCacheCollector
from gpuhost_exporter.errors import Absent
from gpuhost_exporter.sources.mounts import Capacities

MOUNTS = """1 0 253:1 / /data rw - xfs /dev/mapper/vg-data rw
2 0 259:0 / / rw - ext4 /dev/nvme0n1 rw
3 0 0:52 / /home rw - nfs4 filer:/home rw
4 0 0:53 / /s3 rw - fuse.s3fs s3fs rw
"""


def collector(folder, files, statvfs=room):
    host = host_at(folder, LVM_ON_RAID | {"proc/self/mountinfo": MOUNTS} | files)
    host.capacities = Capacities(statvfs, patience=0.05)
    return FilesystemCollector(host)


def test_a_file_system_is_traced_to_its_drives_and_tells_its_room(tmp_path):
    assert values(collector(tmp_path, {}).poll(0.0)) == {
        ("filesystem_info", "/", "nvme0n1", "ext4", ""): 1,
        ("filesystem_info", "/data", "dm-1", "xfs", "md0"): 1,
        ("filesystem_drive_info", "/", "nvme0n1"): 1,
        ("filesystem_drive_info", "/data", "nvme0n1"): 1,
        ("filesystem_drive_info", "/data", "nvme1n1"): 1,
        **{("filesystem_size_bytes", point): 409600 for point in ("/", "/data")},
        **{("filesystem_free_bytes", point): 102400 for point in ("/", "/data")},
        ("storage_bypass_info", "fuse", "/s3", "fuse.s3fs"): 1,
    }


def test_of_a_container_the_hosts_mounts_are_told_and_the_room_of_those_that_it_sees(tmp_path):
    own = "9 8 0:71 / / rw - overlay overlay rw\n10 9 253:1 / /mnt rw - xfs /dev/mapper/vg-data rw"
    asked = Dead()
    got = values(collector(tmp_path, {"proc/1/mountinfo": MOUNTS, "proc/self/mountinfo": own}, asked).poll(0.0))
    assert got["filesystem_info", "/data", "dm-1", "xfs", "md0"] == 1
    assert got["filesystem_info", "/", "nvme0n1", "ext4", ""] == 1
    assert {key for key in got if key[0] == "filesystem_free_bytes"} == {("filesystem_free_bytes", "/data")}
    assert asked.asked == ["/mnt"], "neither the container's own / nor its /data"


def test_the_room_of_what_covers_a_file_system_is_not_told_as_its_own(tmp_path):
    """As ProtectHome= of systemd covers /home."""
    cover = "9 1 0:24 /systemd/inaccessible/dir /data rw - tmpfs tmpfs rw\n"
    asked = Dead()
    got = values(collector(tmp_path, {"proc/self/mountinfo": MOUNTS + cover}, asked).poll(0.0))
    assert got["filesystem_drive_info", "/data", "nvme0n1"] == 1
    assert {key for key in got if key[0] == "filesystem_size_bytes"} == {("filesystem_size_bytes", "/")}
    assert asked.asked == ["/"]


def test_a_dead_file_system_loses_its_room_and_its_siblings_keep_theirs(tmp_path):
    dead = Dead("/data")
    subject = collector(tmp_path, {}, dead)
    got = values(subject.poll(0.0))
    assert got["filesystem_free_bytes", "/"] == 102400
    assert ("filesystem_free_bytes", "/data") not in got
    assert ("filesystem_size_bytes", "/data") not in got
    assert ("filesystem_drive_info", "/data", "nvme1n1") in got
    assert subject.errors == {"hung": 1}
    assert subject.remarks() == ("/data: hung",)
    dead.back.set()


def test_a_file_system_on_a_network_is_never_asked_for_its_room(tmp_path):
    asked = Dead()
    values(collector(tmp_path, {}, asked).poll(0.0))
    assert sorted(asked.asked) == ["/", "/data"]


def test_what_bypasses_the_counters_is_told(tmp_path):
    files = device("0000:41:00.0", "0x010802", "vfio-pci") | {"proc/driver/nvidia-fs/stats": STATS.format("Disabled")}
    got = values(collector(tmp_path, files).poll(0.0))
    assert {key[1:] for key in got if key[0] == "storage_bypass_info"} == {
        ("gpudirect", "nvidia-fs", "statistics disabled"),
        ("userspace_driver", "0000:41:00.0", "vfio-pci"),
        ("fuse", "/s3", "fuse.s3fs"),
    }


def test_broken_statistics_of_gpudirect_cost_nothing_else(tmp_path):
    subject = collector(tmp_path, {"proc/driver/nvidia-fs/stats": "?"})
    got = values(subject.poll(0.0))
    assert ("filesystem_free_bytes", "/data") in got
    assert ("storage_bypass_info", "fuse", "/s3", "fuse.s3fs") in got
    assert subject.errors == {"malformed": 1}


def test_hundreds_of_mounts_are_cut_off(tmp_path):
    lines = "".join(f"{number} 0 0:{number} / /m{number} rw - fuse.x x rw\n" for number in range(300))
    got = values(collector(tmp_path, {"proc/self/mountinfo": lines}).poll(0.0))
    assert len(got) == filesystem.MOST


def test_the_page_cache_tells_what_waits_and_its_thresholds(tmp_path):
    got = values(PageCacheCollector(host_at(tmp_path, {"proc/vmstat": VMSTAT})).poll(0.0))
    page = got["pagecache_dirty_bytes",] / 10
    assert got == {
        ("pagecache_dirty_bytes",): 10 * page,
        ("pagecache_writeback_bytes",): 2 * page,
        ("pagecache_dirtied_bytes_total",): 900 * page,
        ("pagecache_written_bytes_total",): 800 * page,
        ("pagecache_threshold_bytes",): 60 * page,
        ("pagecache_background_threshold_bytes",): 30 * page,
    }


def test_an_nfs_mount_tells_bytes_latency_and_retransmissions(tmp_path):
    got = values(NfsCollector(host_at(tmp_path, {"proc/self/mountstats": NFS})).poll(0.0))
    point = "/mnt/a b"
    assert got == {
        ("nfs_info", point, "filer:/export/a b"): 1,
        ("nfs_bytes_total", point, "read"): 5000,
        ("nfs_bytes_total", point, "write"): 6000,
        ("nfs_operations_total", point, "READ"): 1298,
        ("nfs_operations_total", point, "WRITE"): 10,
        ("nfs_operations_total", point, "other"): 51,
        ("nfs_operation_seconds_total", point, "READ"): 79.407,
        ("nfs_operation_seconds_total", point, "WRITE"): 0.005,
        ("nfs_operation_seconds_total", point, "other"): 0.5,
        ("nfs_retransmissions_total", point): 2,
        ("nfs_errors_total", point): 4,
    }


def test_where_errors_are_not_counted_there_is_no_sample_of_them(tmp_path):
    old = "\n".join(line.removesuffix(" 0").removesuffix(" 3").removesuffix(" 1") for line in NFS.splitlines()[:-3])
    host = host_at(tmp_path, {"proc/self/mountstats": old + "\n        READ: 5 5 0 1 2 3 4 500"})
    got = values(NfsCollector(host).poll(0.0))
    assert got["nfs_operations_total", "/mnt/a b", "READ"] == 5
    assert ("nfs_errors_total", "/mnt/a b") not in got


def test_mounts_of_the_host_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    listed = "41 27 0:52 / /home rw - nfs4 filer:/home rw"
    files = {
        "proc/1/mountinfo": listed,
        "proc/1/mountstats": NFS,
        "proc/self/mountstats": "device proc mounted on /proc",
    }
    fail_opening(monkeypatch, "/1/mountstats", errno.EACCES)
    subject = NfsCollector(host_at(tmp_path, files))
    assert values(subject.poll(0.0)) == {}
    assert subject.remarks() == ("/home: denied",)
    monkeypatch.undo()
    (tmp_path / "proc/1/mountstats").write_text(NFS.replace("/mnt/a\\040b", "/home"))
    assert ("nfs_info", "/home", "filer:/export/a b") in values(subject.poll(0.0))
    assert subject.remarks() == ()


def test_home_folders_that_are_mounted_one_by_one_are_cut_off(tmp_path):
    text = "".join(NFS.replace("/mnt/a\\040b", f"/home/{number}") for number in range(100))
    got = values(NfsCollector(host_at(tmp_path, {"proc/self/mountstats": text})).poll(0.0))
    assert len([key for key in got if key[0] == "nfs_info"]) == nfs.MOST


def test_a_host_without_nfs_tells_nothing_and_one_without_the_file_says_so(tmp_path):
    subject = NfsCollector(host_at(tmp_path, {"proc/self/mountstats": "device proc mounted on /proc with fstype proc"}))
    assert values(subject.poll(0.0)) == {}
    with pytest.raises(Absent):
        values(NfsCollector(host_at(tmp_path / "none", {})).poll(0.0))
