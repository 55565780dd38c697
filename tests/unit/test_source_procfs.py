"""Files of one process, control groups and host counters: what is read of them, and that nothing else breaks it."""

from __future__ import annotations

import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuhost_exporter.errors import Malformed, SourceError
from gpuhost_exporter.sources import cgroups, procfs, writeback
from gpuhost_exporter.sources.evidence import CgroupIo, MountIo
from gpuhost_exporter.sources.files import Root
from gpuhost_exporter.sources.procfs import Io, Mount, Stat

STAT = (
    "4711 (py) thon (3)) D 4700 4700 4700 0 -1 4194304 9120331 7 412 0 5120 568 90 9 20 0 187 0 502125 "
    "184467440737 10307528 18446744073709551615 1 1 0 0 0 0 0 16781312 16386 0 0 0 17 3 0 0 42 0 0 0 0 0 0 0 0 0 0"
)


def test_a_name_may_hold_spaces_and_parentheses():
    assert procfs.parse_stat(STAT) == Stat("py) thon (3)", "D", 4700, 9120338, 7, 5688, 187, 502125, 42, session=4700)


def test_a_process_that_leaves_a_core_is_told_by_its_flags():
    assert not procfs.parse_stat(STAT).dumping
    assert procfs.parse_stat(STAT.replace(" 4194304 ", f" {0x400640} ")).dumping


def test_io_counters_by_their_names():
    text = "rchar: 300\nwchar: 20\nsyscr: 2\nsyscw: 1\nread_bytes: 4\nwrite_bytes: 4096\ncancelled_write_bytes: 9"
    assert procfs.parse_io(text) == Io(300, 20, 4, 4096, 9)


def test_pids_of_another_namespace_are_left_out():
    assert procfs.parse_pids("12 0 13\n") == [12, 13]
    assert procfs.parse_pids("") == []


def test_mounts_have_their_own_names_back_and_no_kernel_file_systems():
    text = (
        "29 1 9:0 / /mnt/my\\040data rw,relatime shared:1 - ext4 /dev/md0 rw\n"
        "30 1 0:5 / /proc rw - proc proc rw\n"
        "31 1 0:44 / /scratch rw shared:3 master:1 - nfs4 server:/x rw"
    )
    assert procfs.parse_mounts(text) == {29: Mount("/mnt/my data", "ext4"), 31: Mount("/scratch", "nfs4")}


def test_the_mount_is_that_of_the_largest_file_open_for_writing(tmp_path):
    root = Root.below(str(tmp_path))
    folder = tmp_path / "proc/9"
    (folder / "fd").mkdir(parents=True)
    (folder / "fdinfo").mkdir()
    files = {
        3: ("/scratch/shard.bin", 900, "0100000", 31),  # read
        4: ("/mnt/data/model.pt", 500, "0100001", 29),
        5: ("/var/log/train.log", 20, "0102001", 28),
        6: ("socket:[99]", 10_000, "02", 9),
        7: ("/dev/nvidia0", 10_000, "0100002", 30),
    }
    for number, (target, position, flags, mount) in files.items():
        (folder / f"fd/{number}").symlink_to(target)
        (folder / f"fdinfo/{number}").write_text(f"pos:\t{position}\nflags:\t{flags}\nmnt_id:\t{mount}\nino:\t5\n")
    (folder / "mountinfo").write_text(
        "28 1 8:1 / / rw - ext4 /dev/sda1 rw\n29 28 9:0 / /mnt/data rw - xfs /dev/md0 rw\n"
        "31 28 0:44 / /scratch rw - nfs4 server:/x rw\n"
    )
    assert procfs.written_mount(root, 9) == Mount("/mnt/data", "xfs")
    (folder / "fd/4").unlink()
    assert procfs.written_mount(root, 9) == Mount("/", "ext4")
    (folder / "fd/5").unlink()
    assert procfs.written_mount(root, 9) is None
    assert procfs.written_mount(root, 10) is None


@pytest.mark.parametrize(
    ("files", "mount"),
    [
        pytest.param([("/mnt/data/a.pt", 29)], "/mnt/data", id="one that is mapped"),
        pytest.param([("/mnt/data/a.pt", 29), ("/mnt/data/b.pt", 29)], "/mnt/data", id="two on one mount"),
        pytest.param([("/mnt/data/a.pt", 29), ("/tmp/b", 28)], None, id="which of two mounts is not told"),
        pytest.param(
            [("/mnt/data/a.pt", 29), ("/dev/infiniband/uverbs0", 24), ("/dev/shm/torch_1 (deleted)", 28)],
            "/mnt/data",
            id="devices and shared memory are no files",
        ),
    ],
)
def test_a_file_without_a_position_tells_where_it_is_the_only_hint(tmp_path, files, mount):
    folder = tmp_path / "proc/9"
    (folder / "fd").mkdir(parents=True)
    (folder / "fdinfo").mkdir()
    for number, (target, id_) in enumerate(files):
        (folder / f"fd/{number}").symlink_to(target)
        (folder / f"fdinfo/{number}").write_text(f"pos:\t0\nflags:\t0100002\nmnt_id:\t{id_}\n")
    (folder / "mountinfo").write_text(
        "28 1 8:1 / / rw - ext4 /dev/sda1 rw\n29 28 9:0 / /mnt/data rw - xfs /dev/md0 rw\n"
    )
    found = procfs.written_mount(Root.below(str(tmp_path)), 9)
    assert (found.point if found else None) == mount


def test_this_process_threads_are_listed():
    assert os.getpid() in procfs.threads(Root(), os.getpid())


@pytest.mark.parametrize("parse", [procfs.parse_stat, procfs.parse_io, writeback.parse_vmstat])
def test_a_wrong_text_is_named(parse):
    with pytest.raises(Malformed, match="expected"):
        parse("nonsense")


@given(st.text())
def test_no_text_raises_anything_else(text):
    for parse in (
        procfs.parse_stat,
        procfs.parse_io,
        procfs.parse_pids,
        procfs.parse_mounts,
        writeback.parse_vmstat,
        lambda each: writeback.parse_drives(each, frozenset(each.split()[2:3])),
        cgroups.parse_io_stat,
        lambda each: cgroups.parse_number(each, each.partition(" ")[0]),
    ):
        try:
            parse(text)
        except SourceError:
            continue


# The host


def host(folder, dirtied=0, written=0, wrote=0):
    for name, number in (("nvme0n1", "259:0"), ("md0", "9:0"), ("loop1", "7:1")):
        (folder / f"sys/block/{name}").mkdir(parents=True, exist_ok=True)
        (folder / f"sys/block/{name}/dev").write_text(f"{number}\n")
    (folder / "proc").mkdir(exist_ok=True)
    (folder / "proc/vmstat").write_text(f"nr_free_pages 5\nnr_dirtied {dirtied}\nnr_written {written}\n")
    rows = (
        f"{major} {minor} {name} 1 0 8 1 1 0 {wrote // 512} 1 0 1 1"
        for major, minor, name in ((259, 0, "nvme0n1"), (259, 1, "nvme0n1p1"), (9, 0, "md0"), (7, 1, "loop1"))
    )
    (folder / "proc/diskstats").write_text("\n".join(rows))


def test_what_the_host_wrote_is_counted_at_the_drives_once(tmp_path):
    host(tmp_path, 100, 50)
    counters = writeback.HostCounters(Root.below(str(tmp_path)))
    counters.refresh()
    first = counters.look()
    assert (first.dirtied_bytes, first.written_bytes, first.devices) == (None, None, None)
    host(tmp_path, 110, 53, 5120)
    told = counters.look()
    assert (told.dirtied_bytes, told.written_bytes) == (10 * writeback.PAGE_BYTES, 3 * writeback.PAGE_BYTES)
    assert [(device.name, device.read_bytes, device.write_bytes) for device in told.devices] == [("nvme0n1", 0, 5120)]


@pytest.mark.parametrize(("level", "counted"), [("raid1", 4 * 512), ("raid0", 7 * 512)])
def test_a_mirrors_copies_are_no_bytes_of_the_job(tmp_path, level, counted):
    """md1 mirrors a partition of either disk and was given 3 sectors; 1 sector went to another partition."""

    def told(array, members, disks):
        rows = {"md1": array, "sda1": members, "sdb1": members, "sda": disks[0], "sdb": disks[1]}
        text = "".join(f"8 0 {name} 1 0 8 1 1 0 {sectors} 1 0 1 1\n" for name, sectors in rows.items())
        (tmp_path / "proc").mkdir(exist_ok=True)
        (tmp_path / "proc/diskstats").write_text(text)

    for disk in ("sda", "sdb"):
        (tmp_path / f"sys/block/{disk}/{disk}1").mkdir(parents=True)
        (tmp_path / f"sys/block/{disk}/{disk}1/partition").write_text("1\n")
    (tmp_path / "sys/block/md1/md").mkdir(parents=True)
    (tmp_path / "sys/block/md1/md/level").write_text(f"{level}\n")
    (tmp_path / "sys/block/md1/slaves").mkdir()
    for disk in ("sda", "sdb"):
        (tmp_path / f"sys/block/md1/slaves/{disk}1").symlink_to(f"../../{disk}/{disk}1")
    told(0, 0, (0, 0))
    counters = writeback.HostCounters(Root.below(str(tmp_path)))
    counters.refresh()
    counters.look()
    told(3, 3, (4, 3))
    assert sum(device.write_bytes for device in counters.look().devices) == counted
    told(3, 103, (104, 103))
    resync = sum(device.write_bytes for device in counters.look().devices)
    assert resync == (0 if level == "raid1" else 200 * 512), "a resync writes for nobody"


def mount(folder, data):
    """md0 at `data`, a partition at the root."""
    (folder / "proc/self").mkdir(parents=True, exist_ok=True)
    (folder / "proc/self/mountinfo").write_text(
        f"36 1 9:0 / {data} rw - xfs /dev/md0 rw\n37 1 259:1 / / rw - ext4 /dev/nvme0n1p1 rw"
    )
    (folder / "sys/dev/block").mkdir(parents=True, exist_ok=True)
    (folder / "sys/block/nvme0n1/nvme0n1p1").mkdir(exist_ok=True)
    for number, path in (("9:0", "md0"), ("259:1", "nvme0n1/nvme0n1p1")):
        link = folder / f"sys/dev/block/{number}"
        if not link.is_symlink():
            link.symlink_to(f"../../block/{path}")


def test_the_mount_whose_device_was_written_most_is_told_and_follows_a_device_that_is_mounted_elsewhere(tmp_path):
    host(tmp_path)
    mount(tmp_path, "/data")
    counters = writeback.HostCounters(Root.below(str(tmp_path)))
    counters.refresh()
    assert counters.look().most_written is None
    rows = (tmp_path / "proc/diskstats").read_text()
    (tmp_path / "proc/diskstats").write_text(rows.replace("md0 1 0 8 1 1 0 0", "md0 1 0 8 1 1 0 20"))
    told = counters.look()
    assert told.most_written == MountIo("/data", 10240)
    assert [device.name for device in told.devices] == ["nvme0n1"], "arrays and partitions count for mounts only"
    mount(tmp_path, "/scratch")
    counters.refresh()
    (tmp_path / "proc/diskstats").write_text(rows.replace("md0 1 0 8 1 1 0 0", "md0 1 0 8 1 1 0 30"))
    assert counters.look().most_written == MountIo("/scratch", 5120)


def test_a_host_that_does_not_tell_is_not_taken_for_idle(tmp_path):
    host(tmp_path)
    counters = writeback.HostCounters(Root.below(str(tmp_path)))
    counters.refresh()
    counters.look()
    (tmp_path / "proc/vmstat").write_text("nr_free_pages 5\n")
    (tmp_path / "proc/diskstats").unlink()
    told = counters.look()
    assert (told.dirtied_bytes, told.written_bytes, told.devices) == (None, None, ())


def test_this_hosts_counters_only_grow():
    counters = writeback.HostCounters(Root())
    counters.refresh()
    counters.look()
    told = counters.look()
    assert told.dirtied_bytes >= 0
    assert all(device.write_bytes >= 0 for device in told.devices or ())


# Control groups

JOB = "/system.slice/slurmstepd.scope/job_7/step_0/user/task_0"


class Groups:
    def __init__(self, folder):
        self.base = folder / "sys/fs/cgroup"
        self.base.mkdir(parents=True)
        (self.base / "cgroup.controllers").write_text("io memory\n")
        host(folder)
        self.groups = cgroups.Groups(Root.below(str(folder)))
        self.groups.refresh()

    def put(self, path, wrote=0, dirty=0, read=0, stalled=0, used=0):
        folder = self.base / path[1:]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "io.stat").write_text(
            f"259:0 rbytes={read} wbytes={wrote} rios=1 wios=1 dbytes=0 dios=0\n"
            f"9:0 rbytes={read} wbytes={wrote} rios=1 wios=1 dbytes=0 dios=0\n253:1\n"
        )
        (folder / "memory.stat").write_text(f"anon 1\nfile_dirty {dirty}\nfile_writeback 77\n")
        (folder / "io.pressure").write_text(
            f"some avg10=0.00 avg60=0.00 avg300=0.00 total={stalled}\n"
            f"full avg10=0.00 avg60=0.00 avg300=0.00 total={stalled // 2}\n"
        )
        (folder / "cpu.stat").write_text(f"usage_usec {used}\nuser_usec 1\n")
        (folder / "cgroup.procs").write_text("7\n8\n")


@pytest.fixture
def groups(tmp_path):
    return Groups(tmp_path)


def test_a_group_tells_what_it_wrote_and_made_dirty_without_arrays_counted_twice(groups):
    groups.put(JOB)
    assert groups.groups.look({JOB: "slurm:7"}) == (CgroupIo(JOB, "slurm:7", None, None, None, None, None, None),)
    groups.put(JOB, wrote=4096, dirty=6000, read=512, stalled=2_000_000, used=1_500_000)
    (told,) = groups.groups.look({JOB: "slurm:7"})
    assert told == CgroupIo(JOB, "slurm:7", 512, 4096, 10_096, 2.0, 1.0, 1.5)
    assert groups.groups.members(JOB) == [7, 8]


def test_without_a_memory_controller_nothing_is_said_of_dirty_pages(groups):
    groups.put(JOB)
    groups.groups.look({JOB: None})
    groups.put(JOB, wrote=4096)
    (groups.base / JOB[1:] / "memory.stat").unlink()
    (told,) = groups.groups.look({JOB: None})
    assert (told.write_bytes, told.dirtied_bytes) == (4096, None)


def array(folder, level, disks, degraded=0, layout=0):
    md = folder / "sys/block/md0/md"
    md.mkdir(exist_ok=True)
    for name, value in (("level", level), ("raid_disks", disks), ("degraded", degraded), ("layout", layout)):
        (md / name).write_text(f"{value}\n")


@pytest.mark.parametrize(
    ("md", "members"),
    [
        pytest.param(("raid1", 2), (1.0, 1.0), id="RAID 1"),
        pytest.param(("raid1", 3, 1), (1.0, 1.0), id="RAID 1, a member of three missing"),
        pytest.param(("raid10", 4, 0, 0x102), (0.5, 0.5, 0.5, 0.5), id="RAID 10, two near copies"),
        pytest.param(("raid10", 3, 0, 0x201), (0.667, 0.667, 0.667), id="RAID 10, two far copies"),
        pytest.param(("raid0", 2), (0.5, 0.5), id="RAID 0"),
    ],
)
def test_what_a_group_wrote_to_a_mirror_counts_once(groups, tmp_path, md, members):
    """100 MB to the array, beside 7 MB to another partition of a member's disk."""
    array(tmp_path, *md)
    groups.groups.refresh()
    groups.put(JOB)
    groups.groups.look({JOB: None})
    given = {"9:0": 100, **{f"8:{16 * place}": 100 * share for place, share in enumerate(members)}}
    given["8:0"] += 7
    text = "".join(f"{number} rbytes=0 wbytes={round(1e6 * wrote)}\n" for number, wrote in given.items())
    (groups.base / JOB[1:] / "io.stat").write_text(text)
    (told,) = groups.groups.look({JOB: None})
    assert told.write_bytes / 1e6 == pytest.approx(107, abs=0.2)
    array(tmp_path, md[0], md[1], 1)
    groups.groups.refresh()
    (told,) = groups.groups.look({JOB: None})
    assert (told.write_bytes, told.dirtied_bytes) == (0, 0), "what was written before a member failed is no news"


def test_what_a_mirror_was_given_before_its_members_are_counted_is_not_less_than_nothing(groups, tmp_path):
    array(tmp_path, "raid1", 2)
    groups.groups.refresh()
    groups.put(JOB)
    groups.groups.look({JOB: None})
    (groups.base / JOB[1:] / "io.stat").write_text("9:0 rbytes=0 wbytes=4096\n8:0 rbytes=512 wbytes=0\n")
    (told,) = groups.groups.look({JOB: None})
    assert (told.read_bytes, told.write_bytes) == (512, 0)


def test_tasks_without_counters_of_their_own_are_told_as_their_step_once(groups):
    step = JOB.rpartition("/")[0]
    groups.put(step)
    (groups.base / JOB[1:]).mkdir()
    told = groups.groups.look({JOB: "slurm:7", f"{step}/task_1": "slurm:7"})
    assert [group.path for group in told] == [step]


@pytest.mark.parametrize("path", ["/user.slice/session-3.scope", "/", "/system.slice/slurmstepd.scope/job_9"])
def test_a_group_that_holds_others_too_is_not_taken_for_the_jobs(groups, path):
    groups.put("/user.slice")
    groups.put("/system.slice")
    groups.put("/system.slice/slurmstepd.scope")
    assert groups.groups.look({path: None}) == ()


def test_a_group_that_ends_is_left_out_and_its_siblings_stay(groups):
    other = JOB.replace("job_7", "job_8")
    groups.put(JOB)
    groups.put(other)
    groups.groups.look({JOB: None, other: None})
    shutil.rmtree(groups.base / JOB[1:])
    assert [group.path for group in groups.groups.look({JOB: None, other: None})] == [other]


def test_hosts_with_version_1_only_tell_nothing(tmp_path):
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    found = cgroups.Groups(Root.below(str(tmp_path)))
    found.refresh()
    assert found.look({JOB: None}) == ()
    assert found.members(JOB) == []
