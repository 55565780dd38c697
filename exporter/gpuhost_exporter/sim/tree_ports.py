"""A simulated host's RDMA ports: the adapters' folders in /sys, and the statistics of the interfaces below them."""

from __future__ import annotations

from gpuhost_exporter.sim.hosts import HostSpec, Port
from gpuhost_exporter.sim.scenario import HostLevels
from gpuhost_exporter.sim.timeline import Timeline
from gpuhost_exporter.sim.tree_files import Files

_COUNTERS = (
    "VL15_dropped", "excessive_buffer_overrun_errors", "link_downed", "link_error_recovery",
    "local_link_integrity_errors", "multicast_rcv_packets", "multicast_xmit_packets",
    "port_rcv_constraint_errors", "port_rcv_errors", "port_rcv_remote_physical_errors",
    "port_rcv_switch_relay_errors", "port_xmit_constraint_errors", "port_xmit_discards",
    "symbol_error",
)  # fmt: skip
_HW_COUNTERS = (
    "duplicate_request", "implied_nak_seq_err", "out_of_buffer",
    "req_cqe_error", "req_cqe_flush_error", "resp_cqe_error", "resp_cqe_flush_error", "rnr_nak_retry_err",
)  # fmt: skip
_ROCE_COUNTERS = (
    "roce_adp_retrans_to", "roce_slow_restart", "roce_slow_restart_cnps", "roce_slow_restart_trans",
    "rp_cnp_ignored", "rx_icrc_encapsulated",
)  # fmt: skip
_PACKET = 4096
_TRAFFIC_BEFORE = 8.8e14  # bytes of a port when the simulation began


def write_fixed(files: Files, host: HostSpec) -> None:
    """What never changes."""
    for port in host.ports:
        _port(files, port)


def write(files: Files, timeline: Timeline, seconds: float) -> None:
    totals = timeline.host_levels(seconds)[1]
    for port in timeline.host.ports:
        moved = _TRAFFIC_BEFORE + (totals.nic if port.compute else totals.frontend)
        folder = f"sys/{port.pci.folder}/infiniband/{port.device}/ports/1"
        packets = str(int(moved / _PACKET))
        files.put_all(
            f"{folder}/counters",
            {
                "port_xmit_data": str(int(moved / 4)),
                "port_rcv_data": str(int(moved * 0.997 / 4)),
                "port_xmit_packets": packets,
                "port_rcv_packets": packets,
                "unicast_xmit_packets": packets,
                "unicast_rcv_packets": packets,
            },
        )
        if port.link_layer == "Ethernet":
            _write_roce(files, port, f"{folder}/hw_counters", totals)
        else:
            files.put(f"{folder}/counters/port_xmit_wait", str(int(4e6 + moved / 2e5)))


def _write_roce(files: Files, port: Port, folder: str, totals: HostLevels) -> None:
    share = float(port.compute)
    files.put_all(
        folder,
        {
            "rp_cnp_handled": str(int(310_442 + share * totals.congestion_packets)),
            "np_cnp_sent": str(int(298_017 + share * totals.congestion_packets)),
            "np_ecn_marked_roce_packets": str(int(702_118 + share * totals.ecn_packets)),
            "roce_adp_retrans": str(int(share * totals.retransmits)),
            "packet_seq_err": str(int(share * totals.retransmits)),
            "local_ack_timeout_err": str(int(share * totals.ack_timeouts)),
            "out_of_sequence": str(int(1_204 + share * totals.out_of_sequence)),
        },
    )
    paused = 41.7 + share * totals.paused
    statistics = {
        "rx_prio3_pause": int(paused / 65e-6),
        "rx_prio3_pause_duration": int(1e6 * paused),
        "tx_prio3_pause": 212,
        "tx_prio3_pause_duration": 14_208,
        "rx_discards_phy": 0,
        "tx_discards_phy": 0,
        "rx_crc_errors_phy": 0,
        "rx_symbol_err_phy": 0,
        "link_down_events_phy": 1,
        "tx_pause_storm_warning_events": 0,
        "tx_pause_storm_error_events": 0,
    }
    files.put(f"ethtool/{port.netdev}", "\n".join(f"{name} {value}" for name, value in statistics.items()))


def _port(files: Files, port: Port) -> None:
    folder = f"sys/{port.pci.folder}/infiniband/{port.device}"
    ethernet = port.link_layer == "Ethernet"
    guid = f"946d:ae03:00{port.pci.bdf[5:7]}:{port.gigabits:04x}"
    files.put_all(
        folder,
        {"node_type": "1: CA", "fw_ver": "28.41.1000", "node_guid": guid, "board_id": "MT_0000000838"},
    )
    files.put_all(
        f"{folder}/ports/1",
        {
            "state": "4: ACTIVE",
            "phys_state": "5: LinkUp",
            "rate": port.rate,
            "link_layer": port.link_layer,
            "lid": "0x0" if ethernet else "0x1f",
            "gids/0": f"fe80:0000:0000:0000:{guid}",
            "gid_attrs/types/0": "IB/RoCE v1",
            "gid_attrs/ndevs/0": port.netdev,
        },
    )
    if ethernet:
        files.put_all(
            f"{folder}/ports/1",
            {
                "gids/1": f"fe80:0000:0000:0000:{guid}",
                "gid_attrs/types/1": "RoCE v2",
                "gid_attrs/ndevs/1": port.netdev,
            },
        )
    zero = dict.fromkeys(
        _HW_COUNTERS + (_ROCE_COUNTERS if ethernet else ("local_ack_timeout_err", "out_of_sequence", "packet_seq_err")),
        "0",
    )
    files.put_all(f"{folder}/ports/1/hw_counters", {**zero, "lifespan": "10"})
    files.put_all(f"{folder}/ports/1/counters", dict.fromkeys(_COUNTERS, "0"))
    files.link(f"{folder}/device", f"sys/{port.pci.folder}")
    files.put("sys/bus/pci/drivers/mlx5_core/uevent", "")
    files.link(f"sys/{port.pci.folder}/driver", "sys/bus/pci/drivers/mlx5_core")
    files.link(f"sys/class/infiniband/{port.device}", folder)
    net = f"sys/{port.pci.folder}/net/{port.netdev}"
    files.put_all(net, {"operstate": "up", "carrier": "1", "mtu": "9000", "speed": str(1000 * port.gigabits)})
    files.link(f"{net}/device", f"sys/{port.pci.folder}")
    files.link(f"sys/class/net/{port.netdev}", net)
