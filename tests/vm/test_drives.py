"""NVMe drives as a real kernel shows them, against what nvme-cli and /proc/diskstats say at the same moment."""

from __future__ import annotations

import time

import pytest
from support.daemon import select, value

from vm.machine import Machine


@pytest.fixture
def drives(machine: Machine):
    """Plugs drives in by name, and out again at the end."""
    plugged = []

    def add(name, *arguments):
        plugged.append(name)
        return machine.add_drive(name, *arguments)

    yield add
    machine.run("cd /; umount --recursive /mnt/* 2>/dev/null; mdadm --stop --scan 2>/dev/null; true")
    for name in plugged:
        machine.remove_drive(name)


def test_a_drive_that_is_added_shows_within_five_seconds_and_is_told_as_nvme_cli_tells_it(machine, drives):
    before = machine.series()
    drive = drives("new")
    began = time.monotonic()
    series = machine.wait_until(lambda found: value(found, "gpuhost_nvme_wear_ratio", device=drive.controller) is not None, 5)
    assert time.monotonic() - began < 5
    assert not select(before, "gpuhost_nvme_up", device=drive.controller)
    assert value(series, "gpuhost_nvme_up", device=drive.controller) == 1
    labels = next(iter(select(series, "gpuhost_nvme_info", device=drive.controller)))
    assert dict(labels)["serial"] == "new"
