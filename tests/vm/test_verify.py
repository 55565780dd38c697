"""`verify` on an array of real NVMe drives: fio for real, its files gone afterwards, and the slow member found."""

from __future__ import annotations

import json

import pytest
from vm.machine import EXPORTER

MIB = 1 << 20
ROOM = 1024  # MiB


@pytest.fixture
def array(machine, drives):
    """A mounted RAID0 of three drives of 40 MiB/s each."""
    trio = [drives(name, ROOM) for name in ("verify0", "verify1", "verify2")]
    for drive in trio:
        machine.throttle(drive.name, 40 * MIB)
    paths = " ".join(drive.path for drive in trio)
    machine.run(f"mdadm --create /dev/md0 --run --level=0 --raid-devices=3 {paths}")
    machine.run("mkfs.ext4 -q /dev/md0 && mkdir -p /mnt/test && mount /dev/md0 /mnt/test")
    return trio


def storage(machine):
    """The results of fio, by check."""
    command = f"{EXPORTER} verify --json --directory=/mnt/test --storage.path=/var/lib/verify 2>/dev/null; true"
    report = json.loads(machine.run(command, 150))
    return {result["check"]: result for result in report["results"] if result["check"].startswith("storage")}


def test_fio_finds_the_throttled_member_and_what_the_host_did_before(machine, array):
    before = storage(machine)
    assert {result["device"] for result in before.values()} == {"md0"}
    for result in before.values():
        assert result["value"] == pytest.approx(120 * MIB, rel=0.3)
        assert "waits for" not in result.get("why", "")
    machine.throttle("verify1", 8 * MIB)
    after = storage(machine)
    for check, result in after.items():
        assert result["value"] < before[check]["value"] / 2
        assert (result["verdict"], result["why"]) == ("warn", f"waits for {array[1].namespace}")
        assert result["baseline"] == before[check]["value"]
    assert machine.run("ls -A /mnt/test").split() == ["lost+found"]
