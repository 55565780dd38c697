"""The simulated drives: their health logs, the ioctl that asks for them, and a drive that is pulled."""

from __future__ import annotations

import errno
import os
import threading
import time

import pytest
from support.fakes import FakeClock

from gpuhost_exporter.sim import catalogue, control
from gpuhost_exporter.sim.ioctl import ioctl
from gpuhost_exporter.sim.tree import Tree
from gpuhost_exporter.sources import nvme, nvme_health, pci, raid
from gpuhost_exporter.sources.files import Root
from gpuhost_exporter.sources.udev import Event

START = 1000.0


class Simulated:
    def __init__(self, folder, host, scenario):
        self.clock = FakeClock()
        control.create(str(folder / "control.json"), host, scenario, self.clock)
        self.folder = folder / "root"
        self.tree = Tree(str(folder / "control.json"), str(self.folder), self.clock)
        self.root = Root.below(str(self.folder))
        self.events = self.tree.write()

    def at(self, seconds):
        self.clock.time = START + seconds
        self.events = self.tree.write()
        return self

    def health(self, name):
        return nvme_health.read(self.root, name, ioctl)

    def all_health(self):
        return {name: self.health(name) for name in nvme.controllers(self.root)}


@pytest.fixture
def simulate(tmp_path):
    return lambda scenario="steady", host="h100x8": Simulated(tmp_path, host, scenario)


@pytest.mark.parametrize("host", catalogue.names())
def test_every_drive_of_every_host_answers_and_is_well(simulate, host):
    simulated = simulate(host=host).at(600)
    for health in simulated.all_health().values():
        assert health.warnings == ()
        assert 0 < health.wear_ratio < 0.5
        assert health.spare_ratio > health.spare_threshold_ratio
        assert health.media_errors == 0


def test_the_log_and_the_kernels_monitor_tell_one_temperature(simulate):
    simulated = simulate("data-starved").at(60)
    for name, health in simulated.all_health().items():
        assert health.temperatures[0] == nvme.temperatures(simulated.root, name)[0]


def test_counts_of_a_drives_life_only_grow(simulate):
    simulated = simulate("array-slow")
    before = simulated.all_health()
    after = simulated.at(4000).all_health()
    for name, health in after.items():
        assert health.written_bytes >= before[name].written_bytes
        assert health.read_bytes >= before[name].read_bytes
        assert health.power_on_seconds >= before[name].power_on_seconds + 3600


def test_the_slow_member_of_the_array_and_no_other_has_media_errors(simulate):
    simulated = simulate("array-slow").at(19)
    assert {health.media_errors for health in simulated.all_health().values()} == {0}
    errors = {name: health.media_errors for name, health in simulated.at(140).all_health().items()}
    assert errors.pop("nvme2") == pytest.approx(30, abs=2)
    assert set(errors.values()) == {0}
    worn = simulated.at(1800).health("nvme2")
    assert worn.spare_ratio < worn.spare_threshold_ratio
    assert worn.warnings == ("spare_low",)


def test_a_drive_that_lost_power_counts_it(simulate):
    simulated = simulate("array-degraded")
    before = simulated.all_health()
    after = simulated.at(70).all_health()
    grown = {name for name, health in after.items() if health.unsafe_shutdowns > before[name].unsafe_shutdowns}
    assert grown == {"nvme5"}


def test_a_pulled_drive_leaves_nothing_but_the_arrays_dangling_link(simulate):
    simulated = simulate("drive-pulled").at(19)
    assert simulated.events == ()
    assert raid.read(simulated.root, "md0").reachable()
    simulated.at(21)
    assert simulated.events == (
        Event("remove", "block", "nvme1n1"),
        Event("remove", "nvme", "nvme1"),
        Event("remove", "pci", "0000:2c:00.0"),
    )
    assert nvme.controllers(simulated.root) == ("nvme0", "nvme2", "nvme3", "nvme4", "nvme5")
    left = [path for path in simulated.folder.rglob("*nvme1*") if path.exists()]
    assert {path.name for path in left} == {"dev-nvme1n1"}
    assert not raid.read(simulated.root, "md0").reachable()
    assert simulated.at(22).events == (), "said once"


def test_a_drive_that_comes_back_is_whole_again(simulate):
    simulated = simulate("drive-pulled").at(19)
    before = {str(path.relative_to(simulated.folder)) for path in simulated.folder.rglob("*")}
    simulated.at(30)
    simulated.at(81)
    assert [event.action for event in simulated.events] == ["add"] * 3
    assert {str(path.relative_to(simulated.folder)) for path in simulated.folder.rglob("*")} == before
    assert raid.read(simulated.root, "md0").reachable()
    drive = nvme.read(simulated.root, "nvme1")
    assert (drive.state, pci.read_device(simulated.root, drive.address).link.width) == ("live", 4)
    assert simulated.health("nvme1").media_errors == 0


def test_a_drive_that_hangs_leaves_its_command_waiting_until_it_answers_again(simulate, tmp_path):
    simulated = simulate("drive-hung").at(25)
    answers = []
    asking = threading.Thread(target=lambda: answers.append(simulated.health("nvme1")), daemon=True)
    asking.start()
    assert simulated.health("nvme0").media_errors == 0
    time.sleep(0.3)
    assert asking.is_alive()
    control.switch(str(tmp_path / "control.json"), "steady", simulated.clock)
    simulated.at(26)
    asking.join(5)
    assert len(answers) == 1


@pytest.mark.parametrize(
    ("request_number", "command", "answer"),
    [
        (0x1234, bytearray(72), errno.ENOTTY),
        (nvme_health.NVME_IOCTL_ADMIN_CMD, bytearray(72), 0x4001),
        (nvme_health.NVME_IOCTL_ADMIN_CMD, bytearray([2]) + bytearray(71), 0x4109),
    ],
    ids=["another request", "another command", "another log page"],
)
def test_the_simulated_controller_refuses_what_it_does_not_know(request_number, command, answer):
    try:
        got = ioctl(-1, request_number, command)
    except OSError as error:
        got = error.errno
    assert got == answer


def test_a_node_that_goes_while_it_is_asked_is_a_device_that_is_gone(tmp_path):
    node = tmp_path / "nvme0"
    node.write_bytes(b"")
    descriptor = os.open(node, os.O_RDONLY)
    node.unlink()
    page = bytearray(512)
    command = nvme_health.COMMAND.pack(2, 0, 0, 0, 0, 0, 0, 0, 0, len(page), 0x007F0002, 0, 0, 0, 0, 0, 0, 0)
    with pytest.raises(OSError, match="No such device"):
        ioctl(descriptor, nvme_health.NVME_IOCTL_ADMIN_CMD, bytearray(command))
    os.close(descriptor)
