"""`verify` on real NVMe drives and RDMA ports: fio and perftest for real, and the slow member found."""

from __future__ import annotations

import json

import pytest
from vm.machine import EXPORTER

MIB = 1 << 20
ROOM = 1024  # MiB
FIO = (("storage write", "md0"), ("storage read", "md0"))
WIRE = ("RDMA write", "RDMA write latency")
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


def to_the_peer(machine):
    """What perftest measured on each port, by check and port, and the packets that the first one sent."""
    peer = machine.start(
        "for program in ib_write_bw ib_write_lat; do for device in rxe1 rxe0; do timeout 150 $program -F -d $device; "
        "done; done; true"
    )
    before = float(machine.run(SENT))
    found = verify(machine, "--peer=192.168.77.2")
    told = peer.result(60)
    print(told)
    return {key: result for key, result in found.items() if key[0] in WIRE}, float(machine.run(SENT)) - before


def test_perftest_measures_the_wire_to_a_peer_that_goes_through_its_ports(wire):
    """Each port reaches the other one: 10 Gb/s by name, some ten megabytes a second in emulation."""
    found, sent = to_the_peer(wire)
    tries = 1
    # In emulation perftest may find the processor's clock too restless to reckon by, and tells no figure.
    while not all("value" in result for result in found.values()) and tries < 6:
        found, sent = to_the_peer(wire)
        tries += 1
    assert {*found} == {(check, f"{device} port 1") for check in WIRE for device in ("rxe0", "rxe1")}
    for (check, _), result in found.items():
        if check == "RDMA write":
            assert (result["verdict"], result["target"]) == ("fail", pytest.approx(0.95 * 10e9 / 8))
            assert 1e6 < result["value"] < result["target"]
        else:
            assert 1e-6 < result["value"] < 0.1
    assert sent * 1024 > 3 * found["RDMA write", "rxe0 port 1"]["value"], "packets of 1024 bytes, for 3 s and more"
