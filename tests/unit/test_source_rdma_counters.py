"""What RDMA ports count, under each driver's names."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import fail_opening, plant

from gpuhost_exporter.errors import Denied, Gone, Malformed
from gpuhost_exporter.sources import rdma_counters
from gpuhost_exporter.sources.rdma_counters import CONGESTION, PortCounters, parse_counter

PORT = "sys/class/infiniband/rdma0/ports/1"


def counters(folder, files, link_layer="Ethernet"):
    root = plant(folder, {f"{PORT}/{name}": f"{text}\n" for name, text in files.items()})
    return PortCounters(root, "rdma0", "1", link_layer)


@pytest.mark.parametrize(
    ("files", "octets", "packets"),
    [
        ({"counters/port_rcv_data": "1000", "counters/port_rcv_packets": "7"}, 4000, 7),
        ({"counters/port_rcv_data": "18446744073709551615"}, 4 * (2**64 - 1), None),
        ({"hw_counters/rx_bytes": "1000", "hw_counters/rx_pkts": "7"}, 1000, 7),
        ({"counters/port_rcv_data": "N/A (no PMA)", "hw_counters/rx_bytes": "1000"}, 1000, None),
        ({"hw_counters/ip4InOctets": "1000", "hw_counters/ip6InOctets": "24", "hw_counters/ip4InPkts": "7"}, 1024, 7),
        ({"hw_counters/rcvd_pkts": "7"}, None, 7),
        ({"hw_counters/lifespan": "10"}, None, None),
        ({}, None, None),
    ],
    ids=["mlx5", "64 bits", "efa and bnxt_re", "not told, then told", "irdma", "rxe", "a setting", "virtual function"],
)
def test_words_are_four_bytes_and_octets_one(tmp_path, files, octets, packets):
    port = counters(tmp_path, files)
    assert (port.octets("rx"), port.packets("rx")) == (octets, packets)
    assert (port.octets("tx"), port.packets("tx")) == (None, None)


@pytest.mark.parametrize(("kind", "files"), [pytest.param(kind, files, id=kind) for kind, files in CONGESTION.items()])
def test_every_name_of_a_type_counts_it(tmp_path, kind, files):
    for number, name in enumerate(files):
        port = counters(tmp_path / str(number), {name: "12", "hw_counters/lifespan": "10"})
        assert {each: port.first(names) for each, names in CONGESTION.items()} == dict.fromkeys(CONGESTION) | {kind: 12}


def test_no_name_belongs_to_two_types():
    for table in (CONGESTION, counters_of("InfiniBand")):
        names = [name for files in table.values() for name in files]
        assert len(names) == len(set(names))
    assert not {n for files in CONGESTION.values() for n in files} & {
        n for files in counters_of("InfiniBand").values() for n in files
    }


def counters_of(link_layer):
    return PortCounters(rdma_counters.Root.below("/nonexistent"), "rdma0", "1", link_layer).error_types


def test_the_link_layers_own_errors_are_infinibands_only(tmp_path):
    files = {"counters/symbol_error": "3", "counters/link_downed": "1"}
    infiniband = counters(tmp_path / "infiniband", files, "InfiniBand")
    assert infiniband.first(infiniband.error_types["symbol"]) == 3
    ethernet = counters(tmp_path / "ethernet", files)
    assert "symbol" not in ethernet.error_types
    assert ethernet.first(ethernet.error_types["link_downed"]) == 1


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT])
def test_a_counter_that_fails_as_not_supported_is_none(tmp_path, monkeypatch, number):
    port = counters(tmp_path, {"counters/port_rcv_data": "1000"})
    fail_opening(monkeypatch, "port_rcv_data", number)
    assert port.octets("rx") is None


@pytest.mark.parametrize(("number", "error"), [(errno.EACCES, Denied), (errno.ENODEV, Gone)])
def test_a_counter_that_fails_otherwise_is_an_error(tmp_path, monkeypatch, number, error):
    port = counters(tmp_path, {"counters/port_rcv_data": "1000"})
    fail_opening(monkeypatch, "port_rcv_data", number)
    with pytest.raises(error):
        port.octets("rx")


def test_a_malformed_counter_is_named(tmp_path):
    port = counters(tmp_path, {"hw_counters/out_of_sequence": "many"})
    with pytest.raises(Malformed, match="hw_counters/out_of_sequence: expected a number"):
        port.first(CONGESTION["out_of_sequence"])


@pytest.mark.parametrize("text", ["", "-1", "12 bytes", "123456789012345678901"])
def test_what_no_port_writes_is_malformed(text):
    with pytest.raises(Malformed, match="expected a number"):
        parse_counter(text)


@given(st.text() | st.from_regex(r"[0-9]{1,21}", fullmatch=True))
def test_any_text_is_a_count_or_malformed(text):
    try:
        count = parse_counter(text)
    except Malformed:
        return
    assert count is None or 0 <= count < 10**20
