"""Statistics of network interfaces: the ioctl's three answers, and what of them tells about RoCE."""

from __future__ import annotations

import errno
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuhost_exporter.errors import Absent, Denied, Malformed, Unsupported
from gpuhost_exporter.sim.ioctl import Interfaces
from gpuhost_exporter.sources import ethtool
from gpuhost_exporter.sources.ethtool import Network, Pause, Physical, parse_physical, parse_statistics

MLX5 = {
    "rx_packets": 5,
    "rx_prio3_pause": 18_244,
    "rx_prio3_pause_duration": 91_220,
    "rx_prio3_pause_transition": 300,
    "tx_prio3_pause": 2,
    "tx_prio3_pause_duration": 40,
    "rx_discards_phy": 7,
    "tx_discards_phy": 0,
    "rx_crc_errors_phy": 1,
    "rx_symbol_err_phy": 9,
    "tx_pause_storm_warning_events": 3,
    "tx_pause_storm_error_events": 0,
}


def interface(folder, name, statistics):
    (folder / "ethtool").mkdir(exist_ok=True)
    (folder / "ethtool" / name).write_text("".join(f"{key} {value}\n" for key, value in statistics.items()))


def test_statistics_come_by_name_through_the_ioctl(tmp_path):
    interface(tmp_path, "ens1np0", MLX5 | {"rx_vport_rdma_unicast_bytes": 2**64 - 1})
    told = Network(Interfaces(str(tmp_path))).statistics("ens1np0")
    assert told == MLX5 | {"rx_vport_rdma_unicast_bytes": 2**64 - 1}


def test_an_interface_of_another_network_namespace_is_absent(tmp_path):
    with pytest.raises(Absent, match="eno9: not in this network namespace"):
        Network(Interfaces(str(tmp_path))).statistics("eno9")


def test_an_interface_without_statistics_is_unsupported(tmp_path):
    interface(tmp_path, "lo", {})
    with pytest.raises(Unsupported):
        Network(Interfaces(str(tmp_path))).statistics("lo")


def test_this_kernels_loopback_has_none_and_says_so():
    """The real ioctl, without privilege."""
    with pytest.raises(Unsupported):
        Network().statistics("lo")


@pytest.mark.parametrize(
    ("number", "error"), [(errno.EPERM, Denied), (errno.EOPNOTSUPP, Unsupported), (errno.ENODEV, Absent)]
)
def test_what_the_kernel_refuses_is_told_as_what_it_is(number, error):
    def refuse(_descriptor, _request, _argument):
        raise OSError(number, os.strerror(number))

    with pytest.raises(error, match="ens1np0"):
        Network(refuse).statistics("ens1np0")


def test_a_driver_that_claims_more_than_any_has_is_not_asked_for_it():
    def claim(_descriptor, _request, argument):
        address = ethtool.REQUEST.unpack(argument)[1]
        answer = ethtool.SET_INFO.pack(ethtool.GET_SET_INFO, 0, 1 << ethtool.STATISTICS_SET, 2**31)
        import ctypes

        ctypes.memmove(address, answer, len(answer))
        return 0

    with pytest.raises(Malformed, match="2147483648 statistics"):
        Network(claim).statistics("ens1np0")


@pytest.mark.parametrize(
    ("statistics", "physical"),
    [
        (
            MLX5,
            Physical(
                (Pause("3", 18_244, 2, 0.09122, 4e-05),),
                (("warning", 3), ("error", 0)),
                (("rx", 7), ("tx", 0)),
                (("crc", 1), ("symbol", 9)),
            ),
        ),
        (
            {"rx_global_pause": 5, "rx_global_pause_duration": 2_000_000, "tx_global_pause": 0},
            Physical((Pause("global", 5, 0, 2.0, None),), (), (), ()),
        ),
        (
            {"rx_pfc_ena_frames_pri0": 1, "pfc_pri0_rx_duration_us": 500_000, "tx_pfc_ena_frames_pri7": 4},
            Physical((Pause("0", 1, None, 0.5, None), Pause("7", None, 4, None, None)), (), (), ()),
        ),
        (
            {"rx_priority_3_xoff.nic": 6, "tx_priority_3_xoff.nic": 0, "rx_priority_3_xon.nic": 6},
            Physical((Pause("3", 6, 0, None, None),), (), (), ()),
        ),
        (
            {
                "rx_prio3_pause": 1,
                **{f"rx_prio{priority}_discards": int(priority == 5) for priority in range(8)},
                "rx_prio3_buf_discard": 4,
                "rx_prio3_cong_discard": 0,
                "rx_prio8_discards": 9,
            },
            Physical(
                (Pause("3", 1),),
                *((), (), ()),
                (("3", "port", 0), ("3", "buffer", 4), ("3", "congestion", 0), ("5", "port", 1)),
            ),
        ),
        (
            {
                "rx_stat_discard": 5,
                "tx_stat_discard": 1,
                "rx_fcs_err_frames": 3,
                "rx_pcs_symbol_err": 8,
                "rx_discard_packets_cos3": 5,
                "[0]: rx_discards": 2,
                "rx_total_discard_pkts": 2,
            },
            Physical((), (), (("rx", 5), ("tx", 1)), (("crc", 3), ("symbol", 8))),
        ),
        (
            {
                "rx_dropped.nic": 5,
                "rx_dropped": 2,
                "tx_dropped_link_down.nic": 1,
                "rx_crc_errors.nic": 3,
                "illegal_bytes.nic": 8,
            },
            Physical((), (), (("rx", 5), ("tx", 1)), (("crc", 3), ("symbol", 8))),
        ),
        ({"rx_packets": 5, "rx_prio3_pause_transition": 1, "rx_prio9_pause": 2}, Physical((), (), (), ())),
        ({}, Physical((), (), (), ())),
    ],
    ids=[
        "mlx5 with PFC",
        "mlx5 without",
        "bnxt_en",
        "ice",
        "mlx5 loses by priority",
        "bnxt_en loses",
        "ice loses",
        "nothing of these",
        "nothing",
    ],
)
def test_pauses_come_by_priority_under_each_drivers_names(statistics, physical):
    assert parse_physical(statistics) == physical


def test_an_answer_that_is_cut_off_is_malformed():
    strings = ethtool.STRINGS_HEAD.pack(ethtool.GET_STRINGS, 1, 2) + b"rx_packets".ljust(32, b"\0")
    values = ethtool.HEAD.pack(ethtool.GET_STATISTICS, 2) + struct.pack("@2Q", 1, 2)
    with pytest.raises(Malformed):
        parse_statistics(strings, values)
    with pytest.raises(Malformed):
        parse_statistics(b"", b"")


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_answer_parses_or_is_malformed(strings, values):
    try:
        found = parse_statistics(strings, values)
    except Malformed:
        return
    parse_physical(found)


@given(st.dictionaries(st.text() | st.from_regex(r"[rt]x_prio[0-9]_pause(_duration)?", fullmatch=True), st.integers(0)))
def test_any_statistics_give_pauses_of_known_priorities(statistics):
    assert {pause.priority for pause in parse_physical(statistics).pauses} <= {*"01234567", "global"}
