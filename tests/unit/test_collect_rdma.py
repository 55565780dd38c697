"""RDMA ports as samples."""

from __future__ import annotations

import errno
import os

import pytest
from test_source_rdma import adapter
from trees import fail_opening, host_at, values

from gpuhost_exporter.board import Listed
from gpuhost_exporter.collectors.rdma import RdmaCollector
from gpuhost_exporter.errors import Transient

INFO = ("Ethernet", "ens1np0", "mlx5_core", "28.39.1002", "MT_0000000838", "0000:18:00.0", "0")


def two(**changed):
    second = {path: text for path, text in adapter("mlx5_1", **changed).items() if "infiniband" in path}
    return adapter() | second


def test_a_port_has_state_rate_bytes_and_identity(tmp_path):
    host = host_at(tmp_path, adapter(port_xmit_data="2500"))
    assert values(RdmaCollector(host).poll(0.0)) == {
        ("rdma_port_up", "mlx5_0", "1"): 1,
        ("rdma_port_physical_up", "mlx5_0", "1"): 1,
        ("rdma_port_mtu_bytes", "mlx5_0", "1"): 9000,
        ("rdma_port_roce_v2", "mlx5_0", "1"): 1,
        ("rdma_port_rate_bytes_per_second", "mlx5_0", "1"): 50e9,
        ("rdma_port_bytes_total", "mlx5_0", "1", "rx"): 4000,
        ("rdma_port_bytes_total", "mlx5_0", "1", "tx"): 10000,
        ("rdma_port_info", "mlx5_0", "1", *INFO): 1,
    }
    (posted,) = host.board.last("ports", tuple, host.clock.now())
    assert (posted.device, posted.port) == ("mlx5_0", "1")


def test_a_port_that_is_down_has_no_rate_and_keeps_its_bytes(tmp_path):
    got = values(RdmaCollector(host_at(tmp_path, adapter(state="1: DOWN"))).poll(0.0))
    assert got["rdma_port_up", "mlx5_0", "1"] == 0
    assert ("rdma_port_rate_bytes_per_second", "mlx5_0", "1") not in got
    assert got["rdma_port_bytes_total", "mlx5_0", "1", "rx"] == 4000


def test_soft_roce_without_counters_has_no_bytes_and_no_errors(tmp_path):
    files = {path: text for path, text in adapter("rxe0").items() if "counters" not in path}
    collector = RdmaCollector(host_at(tmp_path, files))
    assert {key[0] for key in values(collector.poll(0.0))} == {
        "rdma_port_up",
        "rdma_port_physical_up",
        "rdma_port_mtu_bytes",
        "rdma_port_roce_v2",
        "rdma_port_rate_bytes_per_second",
        "rdma_port_info",
    }
    assert collector.errors == {}


@pytest.mark.parametrize(
    ("suffix", "number", "kind"),
    [
        ("mlx5_1/ports/1/state", errno.EACCES, "denied"),
        ("mlx5_1/ports/1/state", errno.ENODEV, "gone"),
        ("mlx5_1/ports/1/state", errno.EIO, "transient"),
    ],
)
def test_one_adapters_fault_leaves_its_siblings_whole(tmp_path, monkeypatch, suffix, number, kind):
    collector = RdmaCollector(host_at(tmp_path, two()))
    fail_opening(monkeypatch, suffix, number)
    got = values(collector.poll(0.0))
    assert {key[1] for key in got} == {"mlx5_0"}
    assert len(got) == 8
    assert collector.errors == {kind: 1}


@pytest.mark.parametrize(
    ("changed", "lost"),
    [
        ({"port_rcv_data": "garbage"}, {("rdma_port_bytes_total", "mlx5_1", "1", "rx")}),
        ({"port_rcv_data": ""}, {("rdma_port_bytes_total", "mlx5_1", "1", "rx")}),
    ],
    ids=["garbage", "truncated"],
)
def test_a_spoiled_counter_costs_that_counter_only(tmp_path, changed, lost):
    whole = values(RdmaCollector(host_at(tmp_path / "whole", two())).poll(0.0))
    collector = RdmaCollector(host_at(tmp_path / "spoiled", two(**changed)))
    assert whole.keys() - values(collector.poll(0.0)).keys() == lost
    assert collector.errors == {"malformed": 1}


def test_a_host_without_rdma_has_no_samples_and_no_errors(tmp_path):
    host = host_at(tmp_path, {})
    collector = RdmaCollector(host)
    assert list(collector.poll(0.0)) == []
    assert collector.errors == {}
    assert host.board.last("ports", tuple, host.clock.now()) == ()


def test_an_adapter_whose_ports_cannot_be_listed_stays_listed_itself(tmp_path, monkeypatch):
    host = host_at(tmp_path, two())
    collector = RdmaCollector(host)
    list(collector.poll(0.0))
    whole = host.board.last("listed ports", tuple, host.clock.now())
    assert {entry.identity for entry in whole} == {f"{entry.device}/1" for entry in whole}
    real = os.listdir
    broken = "mlx5_1/ports"

    def listing(path):
        if str(path).endswith(broken):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    monkeypatch.setattr(os, "listdir", listing)
    list(collector.poll(10.0))
    listed = host.board.last("listed ports", tuple, host.clock.now())
    assert [entry for entry in listed if entry.identity is None] == [Listed("mlx5_1", None)]
    assert len(listed) == len(whole)
    broken = "infiniband"
    with pytest.raises(Transient):
        list(collector.poll(20.0))
    assert host.board.last("listed ports", tuple, host.clock.now()) is None
