"""md arrays on real NVMe drives, held against mdadm, /proc/mdstat and /proc/diskstats of the same moment."""

from __future__ import annotations

import json
import re
import time

import pytest
from support.daemon import select, value
from vm.machine import GuestError

FIO = "fio --name=load --ioengine=libaio --direct=1 --time_based --output-format=json"
MIB = 1 << 20


def create(machine, level, members, *options):
    """Make md0 of these Drives."""
    paths = " ".join(drive.path for drive in members)
    command = f"mdadm --create /dev/md0 --run --level={level} --raid-devices={len(members)} {' '.join(options)} {paths}"
    machine.run(f"{command} && udevadm settle")


def mounted(machine, device="/dev/md0"):
    machine.run(f"mkfs.ext4 -q {device} && mkdir -p /mnt/test && mount {device} /mnt/test")


def detail(machine):
    """mdadm --detail's "Name : value" lines and the word at the end of each member's."""
    text = machine.run("mdadm --detail /dev/md0; true")
    return dict(re.findall(r"^ *([A-Z][A-Za-z ]+) : (.+?) *$", text, re.MULTILINE)), text


def members(series, device="md0"):
    """How many are in each state, those at 0 left out."""
    found = select(series, "gpuhost_array_members", device=device)
    return {dict(labels)["state"]: count for labels, count in found.items() if count}


def limited(series):
    return {
        by: value(series, "gpuhost_storage_limited_seconds_total", device="md0", by=by)
        for by in ("array", "member", "submitter")
    }


def under_load(machine, seconds, flags):
    """What the series rose by while fio ran, and fio's own bytes a second."""
    machine.wait_until(lambda series: limited(series)["array"] is not None, 25)
    before = machine.series()
    report = machine.start(f"{FIO} --runtime={seconds} {flags}")
    output = report.result(seconds + 40)
    job = json.loads(output[output.index("{") :])["jobs"][0]
    time.sleep(2.5)  # one poll more
    after = machine.series()
    rise = {key: figure - before.get(key, 0) for key, figure in after.items() if key[0].endswith("_total")}
    return rise, job["read"]["bw_bytes"] + job["write"]["bw_bytes"]


def delivered(rise, direction):
    moved, seconds = (
        value(rise, f"gpuhost_storage_saturated_{what}_total", device="md0", direction=direction)
        for what in ("bytes", "seconds")
    )
    return moved / seconds


@pytest.fixture
def stripe(machine, drives):
    """A RAID0 of three drives of 20 MiB/s each."""
    trio = [drives(name) for name in ("slow0", "slow1", "slow2")]
    for drive in trio:
        machine.throttle(drive.name, 20 * MIB)
    create(machine, 0, trio)
    return trio


def test_a_raid0_is_told_as_mdadm_tells_it(machine, stripe):
    series = machine.wait_until(lambda found: value(found, "gpuhost_array_up", device="md0") == 1, 10)
    said, _ = detail(machine)
    assert said["Raid Level"] == "raid0"
    (info,) = map(dict, select(series, "gpuhost_array_info", device="md0"))
    assert info["uuid"].replace("-", "") == said["UUID"].replace(":", "")
    assert (info["level"], info["metadata"]) == (said["Raid Level"], said["Version"])
    assert members(series) == {"active": int(said["Active Devices"])} == {"active": 3}
    assert value(series, "gpuhost_array_members_expected", device="md0") == int(said["Raid Devices"])
    assert not select(series, "gpuhost_array_degraded_members", device="md0")


def test_an_array_that_is_slow_as_a_whole_is_array_limited_and_delivers_what_fio_got(machine, stripe):
    rise, got = under_load(machine, 12, "--filename=/dev/md0 --rw=read --bs=3M --iodepth=16")
    by = limited(rise)
    assert by["array"] > 6
    assert by["member"] <= 2
    assert by["submitter"] == 0
    assert delivered(rise, "read") == pytest.approx(got, rel=0.2)
    assert got == pytest.approx(60 * MIB, rel=0.25)


def test_a_throttled_member_is_named_with_what_the_array_delivers(machine, stripe):
    machine.throttle("slow0", 0)
    machine.throttle("slow2", 0)
    mounted(machine)
    rise, got = under_load(
        machine, 15, "--directory=/mnt/test --size=300M --rw=write --bs=3M --iodepth=8 --fallocate=none"
    )
    by = limited(rise)
    assert by["member"] > 6
    assert by["array"] <= 2
    blamed = select(rise, "gpuhost_storage_member_limited_seconds_total", device="md0")
    assert {dict(labels)["member"] for labels, seconds in blamed.items() if seconds > 2} == {stripe[1].namespace}
    assert delivered(rise, "write") == pytest.approx(got, rel=0.3)
    assert f"waits for {stripe[1].namespace}" in machine.get("/")[1]


def test_small_random_reads_on_the_same_slow_drives_are_never_called_slow(machine, stripe):
    rise, got = under_load(machine, 10, "--filename=/dev/md0 --rw=randread --bs=4k --iodepth=32")
    assert got > 100_000, "the load was there"
    assert limited(rise) == {"array": 0, "member": 0, "submitter": 0}


def test_a_mounted_raid0_that_lost_a_member_is_down_and_names_it(machine, stripe):
    mounted(machine)
    machine.wait_until(lambda series: select(series, "gpuhost_filesystem_info", mountpoint="/mnt/test"), 20)
    began = time.monotonic()
    machine.unplug("slow1")
    series = machine.wait_until(
        lambda found: (
            value(found, "gpuhost_array_up", device="md0") == 0
            and not select(found, "gpuhost_nvme_up", device=stripe[1].controller)
        ),
        10,
    )
    assert time.monotonic() - began < 5 * machine.slowness
    assert members(series) == {"active": 2, "missing": 1}
    assert value(series, "gpuhost_array_member_up", device="md0", member=stripe[1].namespace) == 0
    said, text = detail(machine)
    assert "FAILED" in said["State"]
    assert re.search(r"1\s+active sync\s+missing", text)
    with pytest.raises(GuestError, match="Input/output error"):
        machine.run("dd if=/dev/zero of=/mnt/test/x bs=1M count=8 oflag=direct")
    assert value(machine.series(), "gpuhost_array_up", device="md0") == 0
    assert machine.run("cat /sys/block/md0/md/array_state").strip() == "broken"


def test_an_array_that_disappears_with_its_member_is_absent_and_comes_back(machine, stripe):
    machine.wait_until(lambda series: value(series, "gpuhost_inventory_expected", kind="arrays"), 20)
    machine.unplug("slow1")
    # udev's rules of mdadm stop an array that nothing holds.
    machine.run("until test ! -e /sys/block/md0; do sleep 0.1; done", 30)
    series = machine.wait_until(
        lambda found: (
            value(found, "gpuhost_inventory_missing", kind="arrays", device="md0") == 1
            and value(found, "gpuhost_array_up", device="md0") == 0
        ),
        15,
    )
    assert not select(series, "gpuhost_array_members", device="md0")
    machine.plug("slow1", "nvme", drive="slow1", serial="slow1")
    again = machine.find_drive("slow1")
    machine.run(f"mdadm --assemble /dev/md0 {stripe[0].path} {again.path} {stripe[2].path}")
    series = machine.wait_until(lambda found: value(found, "gpuhost_array_up", device="md0") == 1, 10)
    machine.wait_until(lambda found: not select(found, "gpuhost_inventory_missing", kind="arrays"), 10)
    assert members(series) == {"active": 3}


@pytest.fixture
def mirror(machine, drives):
    return [drives(name, 64) for name in ("left", "right")]


def test_a_resync_tells_progress_and_speed_as_mdstat_and_is_not_called_slow(machine, mirror):
    machine.run("sysctl --quiet --write dev.raid.speed_limit_max=2000")
    create(machine, 1, mirror, "--metadata=1.2")
    machine.wait_until(lambda series: value(series, "gpuhost_array_sync_progress_ratio", device="md0") is not None, 15)

    def progress():
        found = re.search(r"resync = +([0-9.]+)%.*speed=([0-9]+)K", machine.run("cat /proc/mdstat"))
        assert found, "mdadm resyncs"
        return float(found[1]) / 100, int(found[2]) * 1024

    least, _ = progress()
    time.sleep(6)  # the array is read every five seconds
    series = machine.series()
    most, speed = progress()
    assert least <= value(series, "gpuhost_array_sync_progress_ratio", device="md0") <= most
    told = value(series, "gpuhost_array_sync_bytes_per_second", device="md0")
    assert told == pytest.approx(speed, rel=0.5)
    assert value(series, "gpuhost_array_sync_action", device="md0", action="resync") == 1
    assert "resyncing" in detail(machine)[0]["State"]
    assert members(series) == {"active": 2}
    series = machine.wait_until(lambda found: limited(found)["array"] is not None, 20)
    assert sum(limited(series).values()) == 0
    assert value(series, "gpuhost_array_sync_action", device="md0", action="resync") == 1, "still under way"
    machine.run("sysctl --quiet --write dev.raid.speed_limit_max=200000")
    series = machine.wait_until(
        lambda found: value(found, "gpuhost_array_sync_action", device="md0", action="idle") == 1, 40
    )
    assert not select(series, "gpuhost_array_sync_progress_ratio", device="md0")


def test_a_mirror_that_lost_and_regains_a_member_is_up_throughout(machine, mirror, drives):
    create(machine, 1, mirror, "--metadata=1.2", "--assume-clean")
    mounted(machine)
    machine.wait_until(lambda series: members(series) == {"active": 2}, 10)
    machine.unplug("right")
    machine.run("dd if=/dev/zero of=/mnt/test/x bs=1M count=4 oflag=direct")
    series = machine.wait_until(lambda found: members(found).get("active") == 1, 10)
    said, _ = detail(machine)
    assert value(series, "gpuhost_array_up", device="md0") == 1
    assert "degraded" in said["State"]
    assert value(series, "gpuhost_array_degraded_members", device="md0") == 1
    assert int(said["Active Devices"]) == 1
    spare = drives("spare", 64)
    machine.run("sysctl --quiet --write dev.raid.speed_limit_max=5000")
    machine.run(f"mdadm --manage /dev/md0 --remove detached; mdadm --manage /dev/md0 --add {spare.path}")
    series = machine.wait_until(lambda found: members(found).get("rebuilding") == 1, 10)
    assert value(series, "gpuhost_array_sync_action", device="md0", action="recover") == 1
    assert value(series, "gpuhost_array_member_up", device="md0", member=spare.namespace) == 0
    assert "recovering" in detail(machine)[0]["State"]
    machine.run("sysctl --quiet --write dev.raid.speed_limit_max=200000")
    machine.wait_until(lambda found: members(found) == {"active": 2}, 40)


def test_what_a_check_finds_to_differ_is_told_as_md_tells_it(machine, mirror):
    create(machine, 1, mirror, "--metadata=1.2", "--assume-clean")
    machine.wait_until(lambda series: value(series, "gpuhost_array_mismatched_bytes", device="md0") == 0, 10)
    machine.run(f"dd if=/dev/urandom of={mirror[0].path} bs=4k seek=4000 count=3 oflag=direct")  # behind md's back
    machine.run("echo check >/sys/block/md0/md/sync_action; mdadm --wait /dev/md0; true")
    machine.agree(
        lambda: int(machine.run("cat /sys/block/md0/md/mismatch_cnt")) * 512,
        lambda series: value(series, "gpuhost_array_mismatched_bytes", device="md0"),
    )
    assert value(machine.series(), "gpuhost_array_mismatched_bytes", device="md0") >= 3 * 4096


def test_a_bad_sector_of_a_mirror_is_told_as_mdadm_lists_it(machine, drives):
    pair = [drives("bad", 64, {"event": "none", "iotype": "read", "errno": 5, "sector": 65536}), drives("good", 64)]
    # The resync alone is to read it: md throws a member out for an error under anybody else's read, udev's too.
    machine.run("udevadm control --stop-exec-queue")
    try:
        machine.run(f"mdadm --create /dev/md0 --run --level=1 --raid-devices=2 {pair[0].path} {pair[1].path}")
        machine.run("mdadm --wait /dev/md0; true")
    finally:
        machine.run("udevadm control --start-exec-queue")

    def listed():
        told = {}
        for drive in pair:
            found = re.findall(r"for (\d+) sectors", machine.run(f"mdadm --examine-badblocks {drive.path}"))
            told[drive.namespace] = 512 * sum(map(int, found))
        return told

    machine.agree(
        listed,
        lambda series: {
            drive.namespace: value(series, "gpuhost_array_member_bad_bytes", device="md0", member=drive.namespace)
            for drive in pair
        },
    )
    assert listed() == {pair[0].namespace: 4096, pair[1].namespace: 0}
    said, _ = detail(machine)
    machine.wait_until(lambda series: members(series) == {"active": int(said["Active Devices"])} == {"active": 2}, 10)


def test_a_file_system_on_a_mapping_on_an_array_is_traced_to_its_drives_and_tells_its_room(machine, stripe):
    machine.run('dmsetup create data --table "0 $(blockdev --getsz /dev/md0) linear /dev/md0 0"')
    mounted(machine, "/dev/mapper/data")
    machine.wait_until(lambda series: select(series, "gpuhost_filesystem_info", mountpoint="/mnt/test"), 20)
    below = machine.run("lsblk --inverse --noheadings --list --output NAME,TYPE /dev/mapper/data")
    disks = {line.split()[0] for line in below.splitlines() if line.split()[1] == "disk"}
    assert disks == {drive.namespace for drive in stripe}
    machine.agree(
        lambda: int(machine.run("df --block-size=1 --output=avail /mnt/test | tail -1")),
        lambda series: value(series, "gpuhost_filesystem_free_bytes", mountpoint="/mnt/test"),
        40,
    )
    series = machine.series()
    traced = select(series, "gpuhost_filesystem_drive_info", mountpoint="/mnt/test")
    assert {dict(labels)["device"] for labels in traced} == disks
    (info,) = map(dict, select(series, "gpuhost_filesystem_info", mountpoint="/mnt/test"))
    assert (info["device"], info["array"], info["fstype"]) == ("dm-0", "md0", "ext4")


def test_an_nfs_mount_tells_the_bytes_that_its_client_counts(machine):
    machine.run(
        "mkdir -p /srv/test /mnt/nfs && systemctl start nfs-server && "
        "exportfs -o rw,no_root_squash,fsid=0,insecure,no_subtree_check 127.0.0.1:/srv/test && "
        "mount -t nfs4 127.0.0.1:/ /mnt/nfs && dd if=/dev/zero of=/mnt/nfs/x bs=1M count=8 conv=fsync",
        90,
    )
    try:

        def counted():
            lines = machine.run("grep -A99 ' /mnt/nfs ' /proc/self/mountstats").splitlines()
            words = next(line.split() for line in lines if line.strip().startswith("bytes:"))
            return int(words[6])

        machine.agree(
            counted, lambda series: value(series, "gpuhost_nfs_bytes_total", mountpoint="/mnt/nfs", direction="write")
        )
        assert counted() == 8 * MIB
    finally:
        machine.run("umount /mnt/nfs; exportfs -u -a")
