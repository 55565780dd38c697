"""RDMA ports as sysfs shows them."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import Link, fail_opening, plant, vanish_opening

from gpuhost_exporter.errors import Absent, Gone, Malformed
from gpuhost_exporter.sources import rdma


def adapter(name: str = "mlx5_0", **changed: str) -> dict[str, str]:
    """One adapter with one port; a changed file is named by the last part of its path."""
    above = f"sys/class/infiniband/{name}"
    files = {
        f"{above}/fw_ver": "28.39.1002",
        f"{above}/board_id": "MT_0000000838",
        f"{above}/device": Link("../../../devices/pci0000:15/0000:18:00.0"),
        "sys/devices/pci0000:15/0000:18:00.0/numa_node": "0",
        "sys/devices/pci0000:15/0000:18:00.0/driver": Link("../../../bus/pci/drivers/mlx5_core"),
        "sys/bus/pci/drivers/mlx5_core/uevent": "",
        "sys/class/net/ens1np0/mtu": "9000",
        f"{above}/ports/1/state": "4: ACTIVE",
        f"{above}/ports/1/phys_state": "5: LinkUp",
        f"{above}/ports/1/rate": "400 Gb/sec (4X NDR)",
        f"{above}/ports/1/link_layer": "Ethernet",
        f"{above}/ports/1/gid_attrs/ndevs/0": "ens1np0",
        f"{above}/ports/1/gid_attrs/types/0": "IB/RoCE v1",
        f"{above}/ports/1/gid_attrs/types/1": "RoCE v2",
        f"{above}/ports/1/counters/port_rcv_data": "1000",
        f"{above}/ports/1/counters/port_xmit_data": "18446744073709551615",
    }
    changes = {path: changed[path.rsplit("/", 1)[1]] for path in files if path.rsplit("/", 1)[1] in changed}
    return {path: Link(text) if isinstance(text, Link) else f"{text}\n" for path, text in (files | changes).items()}


def test_a_port_is_read_whole(tmp_path):
    root = plant(tmp_path, adapter())
    assert rdma.devices(root) == ("mlx5_0",)
    assert rdma.ports(root, "mlx5_0") == ("1",)
    assert rdma.read(root, "mlx5_0", "1") == rdma.Port(
        device="mlx5_0",
        port="1",
        up=True,
        physical_up=True,
        rate=50e9,
        link_layer="Ethernet",
        interface="ens1np0",
        mtu=9000,
        gid_types=("IB/RoCE v1", "RoCE v2"),
        driver="mlx5_core",
        firmware="28.39.1002",
        board="MT_0000000838",
        address="0000:18:00.0",
        numa_node=0,
    )


@pytest.mark.parametrize(
    ("state", "up"),
    [("1: DOWN", False), ("2: INIT", False), ("3: ARMED", False), ("4: ACTIVE", True), ("5: ACTIVE_DEFER", True)],
)
def test_only_an_active_port_is_up_and_has_a_rate(tmp_path, state, up):
    port = rdma.read(plant(tmp_path, adapter(state=state)), "mlx5_0", "1")
    assert (port.up, port.rate) == (up, 50e9 if up else None)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("400 Gb/sec (4X NDR)", 50e9),
        ("200 Gb/sec (2X NDR)", 25e9),
        ("2.5 Gb/sec (1X SDR)", 312.5e6),
        ("100 Gb/sec", 12.5e9),
    ],
)
def test_of_a_rate_only_the_number_counts(text, rate):
    assert rdma.parse_rate(text) == rate


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (rdma.parse_state, ""),
        (rdma.parse_state, "ACTIVE"),
        (rdma.parse_rate, ""),
        (rdma.parse_rate, "fast"),
        (rdma.parse_rate, "400 Mb/sec"),
    ],
)
def test_what_no_port_writes_is_malformed(parse, text):
    with pytest.raises(Malformed, match="expected"):
        parse(text)


@given(st.text() | st.from_regex(r"[0-9.]{1,9} Gb/sec", fullmatch=True))
def test_any_text_parses_or_is_malformed(text):
    for parse in (rdma.parse_state, rdma.parse_rate):
        try:
            value = parse(text)
        except Malformed:
            continue
        assert value >= 0


def test_a_port_without_network_interface_or_pci_device_has_neither(tmp_path, monkeypatch):
    files = {path: text for path, text in adapter("rxe0").items() if "/device" not in path}
    root = plant(tmp_path, files)
    fail_opening(monkeypatch, "ndevs/0", errno.EINVAL)
    port = rdma.read(root, "rxe0", "1")
    assert (port.interface, port.mtu, port.driver, port.address, port.numa_node) == (None,) * 5
    assert port.up


@pytest.mark.parametrize(
    ("physical", "up"),
    [("5: LinkUp", True), ("2: Polling", False), ("3: Disabled", False), ("6: LinkErrorRecovery", False)],
)
def test_a_link_is_up_or_the_cable_is_at_fault(tmp_path, physical, up):
    port = rdma.read(plant(tmp_path, adapter(phys_state=physical, state="1: DOWN")), "mlx5_0", "1")
    assert (port.up, port.physical_up) == (False, up)


def test_only_ethernet_has_an_interface_whose_statistics_matter(tmp_path):
    root = plant(tmp_path, adapter() | adapter("mlx5_1", link_layer="InfiniBand"))
    assert rdma.ethernet_interface(root, "mlx5_0") == "ens1np0"
    assert rdma.ethernet_interface(root, "mlx5_1") is None
    assert rdma.read(root, "mlx5_1", "1").gid_types == ()


def test_a_host_without_rdma_has_no_devices(tmp_path):
    assert rdma.devices(plant(tmp_path, {})) == ()


def test_an_adapter_that_vanishes_is_gone(tmp_path, monkeypatch):
    root = plant(tmp_path, adapter())
    vanish_opening(monkeypatch, "/link_layer", tmp_path / "sys/class/infiniband/mlx5_0")
    with pytest.raises(Gone):
        rdma.read(root, "mlx5_0", "1")
    with pytest.raises(Gone):
        rdma.ports(root, "mlx5_0")


def test_a_port_without_a_state_file_is_absent_not_gone(tmp_path):
    files = {path: text for path, text in adapter().items() if not path.endswith("/state")}
    with pytest.raises(Absent):
        rdma.read(plant(tmp_path, files), "mlx5_0", "1")
