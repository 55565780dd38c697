"""`verify` on real NVMe drives and RDMA ports: fio and perftest for real, and the slow member found."""

from __future__ import annotations

import json

import pytest
from vm.machine import EXPORTER

MIB = 1 << 20
ROOM = 1024  # MiB
FIO = (("storage write", "md0"), ("storage read", "md0"))
SENT = "cat /sys/class/infiniband/rxe0/ports/1/hw_counters/sent_pkts"


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


def verify(machine, *arguments):
    """Every result by check and device."""
    command = f"{EXPORTER} verify --json --storage.path=/var/lib/verify {' '.join(arguments)} 2>/dev/null; true"
    results = json.loads(machine.run(command, 150))["results"]
    return {(result["check"], result.get("device", "")): result for result in results}


def test_fio_finds_the_throttled_member_and_what_the_host_did_before(machine, array):
    before = verify(machine, "--directory=/mnt/test", "--new-baseline")
    for result in map(before.get, FIO):
        assert result["value"] == pytest.approx(120 * MIB, rel=0.3)
        assert (result["verdict"], result["target"]) == ("fail", 3 * 220e6), "three PCIe 1 x1 drives should do better"
        assert "waits for" not in result["why"]
    machine.throttle("verify1", 8 * MIB)
    after = verify(machine, "--directory=/mnt/test")
    for key, result in ((key, after[key]) for key in FIO):
        assert result["value"] < before[key]["value"] / 2
        assert result["why"].startswith(f"waits for {array[1].namespace}: ")
        assert (result["verdict"], result["baseline"]) == ("fail", before[key]["value"])
    assert machine.run("ls -A /mnt/test").split() == ["lost+found"]


def test_perftest_measures_the_wire_to_a_peer_that_goes_through_its_ports(wire):
    """Each port reaches the other one: 10 Gb/s by name, some ten megabytes a second in emulation, where 5 s are few."""
    peer = wire.start(
        "for program in ib_write_bw ib_write_lat; do for device in rxe1 rxe0; do timeout 150 $program -d $device; "
        "done; done; true"
    )
    sent = float(wire.run(SENT))
    found = verify(wire, "--full", "--peer=192.168.77.2")
    sent = float(wire.run(SENT)) - sent
    told = peer.result(30)
    for port in ("rxe0 port 1", "rxe1 port 1"):
        result = found["RDMA write", port]
        assert result.get("target") == pytest.approx(0.95 * 10e9 / 8), f"{result}\nThe peer said: {told}"
        assert result["verdict"] == "fail"
        assert 1e6 < result["value"] < result["target"]
    assert sent * 1024 > 18 * found["RDMA write", "rxe0 port 1"]["value"], "packets of 1024 bytes, for 18 s and more"
    assert told.count("RDMA_Write BW Test") == told.count("RDMA_Write Latency Test") == 2
    for port in ("rxe0 port 1", "rxe1 port 1"):
        latency = found["RDMA write latency", port]
        # In emulation perftest at times takes the processor's clock for standing still.
        assert 1e-6 < latency.get("value", 0) < 0.1 or "got 'inf'" in latency["why"]
