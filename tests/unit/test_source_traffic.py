"""What network adapters carried between two looks."""

from __future__ import annotations

import pytest
from support.fakes import FakeClock
from trees import Link, plant

from gpuhost_exporter.sources.traffic import Adapters, Carried, NetworkTraffic, Traffic

NIC, FRONT = "0000:1a:00.0", "0000:2b:00.0"
_PORT = f"sys/devices/pci0000:15/{NIC}/infiniband/mlx5_0/ports/1/counters"


def tree():
    return {
        f"{_PORT}/port_rcv_data": "1000\n",
        f"{_PORT}/port_xmit_data": "2000\n",
        f"sys/devices/pci0000:15/{NIC}/net/ens1/statistics/rx_bytes": "10\n",
        f"sys/devices/pci0000:15/{NIC}/net/ens1/statistics/tx_bytes": "20\n",
        f"sys/devices/pci0000:15/{NIC}/infiniband/mlx5_0/device": Link("../.."),
        f"sys/devices/pci0000:15/{NIC}/net/ens1/device": Link("../.."),
        f"sys/devices/pci0000:28/{FRONT}/virtio0/net/eth0/statistics/rx_bytes": "0\n",
        f"sys/devices/pci0000:28/{FRONT}/virtio0/net/eth0/statistics/tx_bytes": "0\n",
        f"sys/devices/pci0000:28/{FRONT}/virtio0/net/eth0/device": Link("../../../virtio0"),
        "sys/class/infiniband/mlx5_0": Link(f"../../devices/pci0000:15/{NIC}/infiniband/mlx5_0"),
        "sys/class/net/ens1": Link(f"../../devices/pci0000:15/{NIC}/net/ens1"),
        "sys/class/net/eth0": Link(f"../../devices/pci0000:28/{FRONT}/virtio0/net/eth0"),
        "sys/devices/virtual/net/lo/statistics/rx_bytes": "5\n",
        "sys/devices/virtual/net/lo/statistics/tx_bytes": "5\n",
        "sys/class/net/lo": Link("../../devices/virtual/net/lo"),
        "sys/class/infiniband/rxe0/ports/1/hw_counters/sent_pkts": "1\n",
    }


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def adapters(tmp_path, clock):
    return Adapters(plant(tmp_path, tree()), clock)


def put(folder, **numbers):
    folders = {"port": folder / _PORT, "ens1": folder / "sys/class/net/ens1/statistics",
               "eth0": folder / "sys/class/net/eth0/statistics"}  # fmt: skip
    for name, number in numbers.items():
        place, _, file = name.partition("_")
        (folders[place] / file).write_text(f"{number}\n")


def test_two_looks_tell_each_adapters_bytes_and_loopback_is_none(tmp_path, clock, adapters):
    assert adapters.look() is None
    put(tmp_path, port_port_rcv_data=1250, port_port_xmit_data=2500, ens1_rx_bytes=60, eth0_tx_bytes=7)
    clock.time += 1.0
    told = adapters.look()
    assert told.seconds == 1.0
    assert told.adapters == (Carried(NIC, 1000, 2000), Carried(FRONT, 0, 7)), "4-byte words; the greater of the two"
    assert told.sent == 7, "through the kernel"


def test_after_a_pause_a_look_only_begins_a_window(tmp_path, clock, adapters):
    adapters.look()
    clock.time += 3.5
    assert adapters.look() is None
    put(tmp_path, eth0_tx_bytes=9)
    clock.time += 1.0
    assert adapters.look().adapters[-1] == Carried(FRONT, 0, 9)


def test_counters_that_are_reset_have_carried_nothing(tmp_path, clock, adapters):
    adapters.look()
    put(tmp_path, port_port_rcv_data=0, port_port_xmit_data=2001)
    clock.time += 1.0
    assert adapters.look().adapters[0] == Carried(NIC, 0, 4)


def test_a_port_that_fails_costs_its_own_figures_only(tmp_path, clock, adapters):
    adapters.look()
    put(tmp_path, port_port_rcv_data="garbage", ens1_rx_bytes=30, eth0_rx_bytes=3)
    clock.time += 1.0
    assert adapters.look().adapters == (Carried(NIC, 20, 0), Carried(FRONT, 3, 0))
    put(tmp_path, port_port_rcv_data=5000)
    clock.time += 1.0
    assert adapters.look().adapters[0] == Carried(NIC, 0, 0), "what came while it failed is not told"


def test_in_a_container_rdma_ports_are_told_without_the_hosts_interfaces(tmp_path, clock):
    files = {path: text for path, text in tree().items() if "/net/" not in path}
    adapters = Adapters(plant(tmp_path, files), clock)
    adapters.look()
    clock.time += 1.0
    told = adapters.look()
    assert told.adapters == (Carried(NIC, 0, 0),)
    assert told.sent is None, "what the host sends through the kernel is not known"


def test_a_host_without_adapters_tells_nothing(tmp_path, clock):
    adapters = Adapters(plant(tmp_path, {"sys/class/net/lo/mtu": "1\n"}), clock)
    adapters.look()
    clock.time += 1.0
    assert adapters.look() is None


def test_nobody_is_asked_again_before_the_answer():
    asked, network = [], NetworkTraffic()
    network.look()
    network.connect(lambda: asked.append(1) is None)
    network.look()
    network.look()
    assert len(asked) == 1
    network.put(None)
    assert network.take() == ()
    network.look()
    told = Traffic(0.0, 1.0, ())
    network.put(told)
    assert network.take() == (told,)
    assert network.take() == ()
    network.look()
    network.fail("unavailable", "it ended")
    network.look()
    assert len(asked) == 4


def test_a_reader_that_is_not_there_is_asked_each_time():
    asked, network = [], NetworkTraffic()
    network.connect(lambda: bool(asked.append(1)))
    network.look()
    network.look()
    assert len(asked) == 2
