"""What an RDMA port counts, from sysfs, under each driver's own names. No privilege needed.

    /sys/class/infiniband/mlx5_0/ports/1/counters/port_rcv_data       words of 4 octets, on RoCE as well
    /sys/class/infiniband/mlx5_0/ports/1/hw_counters/rp_cnp_handled   mlx5; bnxt_re: rx_cnp_pkts, irdma: cnpHandled
    /sys/class/infiniband/efa_0/ports/1/hw_counters/rx_bytes          octets

Virtual functions, soft-RoCE (rxe), irdma and efa have no counters folder; a counter that the device does not keep
reads "N/A (no PMA)" or fails with EINVAL. hw_counters/lifespan is a setting. Names not listed here are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from gpuhost_exporter.errors import Absent, Malformed, Unsupported
from gpuhost_exporter.sources.files import Root, optional_names, read_text

Direction = Literal["rx", "tx"]
Files = tuple[str, ...]
DIRECTIONS: tuple[Direction, ...] = ("rx", "tx")

_WORD_BYTES = 4
_WORDS: dict[Direction, str] = {"rx": "counters/port_rcv_data", "tx": "counters/port_xmit_data"}
# efa and bnxt_re count octets; irdma counts those of RoCE by the version of IP, which add up.
_OCTETS: dict[Direction, Files] = {"rx": ("hw_counters/rx_bytes",), "tx": ("hw_counters/tx_bytes",)}
_IP_OCTETS: dict[Direction, Files] = {
    "rx": ("hw_counters/ip4InOctets", "hw_counters/ip6InOctets"),
    "tx": ("hw_counters/ip4OutOctets", "hw_counters/ip6OutOctets"),
}
_PACKETS: dict[Direction, Files] = {
    "rx": ("counters/port_rcv_packets", "hw_counters/rx_pkts", "hw_counters/rcvd_pkts"),
    "tx": ("counters/port_xmit_packets", "hw_counters/tx_pkts", "hw_counters/sent_pkts"),
}
_IP_PACKETS: dict[Direction, Files] = {
    "rx": ("hw_counters/ip4InPkts", "hw_counters/ip6InPkts"),
    "tx": ("hw_counters/ip4OutPkts", "hw_counters/ip6OutPkts"),
}

# By type: the names that mlx5, bnxt_re, irdma, efa and rxe give it.
CONGESTION: Mapping[str, Files] = {
    "ecn_marked": (
        "hw_counters/np_ecn_marked_roce_packets",
        "hw_counters/rx_ecn_marked_pkts",
        "hw_counters/RxECNMrkd",
    ),
    "cnp_sent": ("hw_counters/np_cnp_sent", "hw_counters/tx_cnp_pkts", "hw_counters/cnpSent"),
    "cnp_handled": ("hw_counters/rp_cnp_handled", "hw_counters/rx_cnp_pkts", "hw_counters/cnpHandled"),
    "cnp_ignored": ("hw_counters/rp_cnp_ignored", "hw_counters/cnpIgnored"),
    "out_of_sequence": (
        "hw_counters/out_of_sequence",
        "hw_counters/oos_drop_count",
        "hw_counters/out_of_seq_request",
    ),
    "sequence_nak": ("hw_counters/packet_seq_err", "hw_counters/seq_err_naks_rcvd", "hw_counters/rcvd_seq_err"),
    "implied_nak": ("hw_counters/implied_nak_seq_err",),
    "ack_timeout": ("hw_counters/local_ack_timeout_err", "hw_counters/to_retransmits"),
    "rnr_nak": ("hw_counters/rnr_nak_retry_err", "hw_counters/rnr_naks_rcvd", "hw_counters/rcvd_rnr_err"),
    "out_of_buffer": ("hw_counters/out_of_buffer",),
    "duplicate_request": ("hw_counters/duplicate_request",),
    "retransmission": ("hw_counters/completer_retry_err", "hw_counters/retrans_pkts"),
    "adaptive_retransmission": ("hw_counters/roce_adp_retrans",),
    "adaptive_retransmission_timeout": ("hw_counters/roce_adp_retrans_to",),
}
_ERRORS: Mapping[str, Files] = {
    "link_downed": ("counters/link_downed", "hw_counters/link_downed"),
    "receive": ("counters/port_rcv_errors", "hw_counters/rx_roce_errors"),
    "transmit": ("hw_counters/tx_roce_errors", "hw_counters/send_err"),
    "receive_discard": ("hw_counters/rx_roce_discards", "hw_counters/rx_drops"),
    "transmit_discard": ("counters/port_xmit_discards", "hw_counters/tx_roce_discards"),
    "icrc": ("hw_counters/rx_icrc_encapsulated",),
    "retry_exceeded": ("hw_counters/max_retry_exceeded", "hw_counters/retry_exceeded_err"),
    "request_completion": ("hw_counters/req_cqe_error",),
    "request_flushed": ("hw_counters/req_cqe_flush_error",),
    "response_completion": ("hw_counters/resp_cqe_error",),
    "response_flushed": ("hw_counters/resp_cqe_flush_error",),
}
# Of InfiniBand's link layer: on Ethernet the files are there and mean nothing.
_INFINIBAND_ERRORS: Mapping[str, Files] = {
    "symbol": ("counters/symbol_error",),
    "link_recovery": ("counters/link_error_recovery",),
    "link_integrity": ("counters/local_link_integrity_errors",),
    "buffer_overrun": ("counters/excessive_buffer_overrun_errors",),
    "remote_physical": ("counters/port_rcv_remote_physical_errors",),
}
TRANSMIT_WAIT: Files = ("counters/port_xmit_wait",)


class PortCounters:
    """One port's, as listed when it was made: which of the names its driver has is looked up once."""

    def __init__(self, root: Root, device: str, port: str, link_layer: str | None) -> None:
        self._folder = f"{root.sys}/class/infiniband/{device}/ports/{port}"
        self._listed = frozenset(
            f"{kind}/{name}"
            for kind in ("counters", "hw_counters")
            for name in optional_names(f"{self._folder}/{kind}")
        )
        self.error_types = _ERRORS if link_layer != "InfiniBand" else {**_ERRORS, **_INFINIBAND_ERRORS}

    def octets(self, direction: Direction) -> int | None:
        """Bytes through the port since its driver was loaded or it was reset; None where it does not count them."""
        words = self.first((_WORDS[direction],))
        if words is not None:
            return words * _WORD_BYTES
        octets = self.first(_OCTETS[direction])
        return self._sum(_IP_OCTETS[direction]) if octets is None else octets

    def packets(self, direction: Direction) -> int | None:
        packets = self.first(_PACKETS[direction])
        return self._sum(_IP_PACKETS[direction]) if packets is None else packets

    def first(self, files: Files) -> int | None:
        """The first of these counters that the port keeps; None where it keeps none. Raises SourceError."""
        for name in files:
            if name in self._listed:
                count = self._read(name)
                if count is not None:
                    return count
        return None

    def _sum(self, files: Files) -> int | None:
        counts = [count for name in files if name in self._listed and (count := self._read(name)) is not None]
        return sum(counts) if counts else None

    def _read(self, name: str) -> int | None:
        path = f"{self._folder}/{name}"
        try:
            return parse_counter(read_text(path))
        except (Absent, Unsupported):
            return None
        except Malformed as error:
            raise Malformed(f"{path}: {error}") from error


def parse_counter(text: str) -> int | None:
    """A counter's number; None for "N/A (no PMA)"."""
    if text.startswith("N/A"):
        return None
    if not re.fullmatch(r"[0-9]{1,20}", text):
        raise Malformed(f"expected a number or N/A, got {text[:40]!r}")
    return int(text)
