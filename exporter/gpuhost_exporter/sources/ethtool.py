"""A network interface's own statistics, as `ethtool -S` shows them. No privilege needed.

    ioctl(socket, SIOCETHTOOL, {ifr_name: "ens1np0", ifr_data: &{ETHTOOL_GSTATS, n, ...}})
    $ ethtool -S ens1np0
         rx_prio3_pause: 18244            frames; rx: the network told this port to pause
         rx_prio3_pause_duration: 91220   microseconds in which the port sent nothing of the priority
         tx_prio3_pause: 0                frames that this port sent
         rx_discards_phy: 0
         rx_prio3_discards: 0             of those that the port had no buffer for
         rx_prio3_buf_discard: 0          the same of this host's share; rx_prio3_cong_discard: congestion
         rx_crc_errors_phy: 0

mlx5 shows a priority's pauses only where PFC is on for it, and the global ones only without PFC. bnxt_en calls the
durations pfc_pri3_rx_duration_us and the frames rx_pfc_ena_frames_pri3; ice has frames only, tx_priority_3_xoff.nic.
Discards are rx_stat_discard and rx_dropped.nic there, damage rx_fcs_err_frames and rx_crc_errors.nic. bnxt_en has
discards by class of service too (rx_discard_packets_cos3), which is not the priority.
The driver takes a lock and asks the adapter's firmware: seldom, please.
"""

from __future__ import annotations

import errno
import fcntl
import re
import socket
import struct
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gpuhost_exporter.errors import Absent, Malformed, Unsupported
from gpuhost_exporter.sources.files import source_error

SIOCETHTOOL = 0x8946
REQUEST = struct.Struct("@16sP16x")  # struct ifreq, <linux/if.h>: name, pointer
HEAD = struct.Struct("@II")  # command, count
SET_INFO = struct.Struct("@IIQI")  # command, reserved, mask of string sets, length of the only one
STRINGS_HEAD = struct.Struct("@III")  # command, string set, count
GET_STRINGS, GET_STATISTICS, GET_SET_INFO = 0x1B, 0x1D, 0x37  # <linux/ethtool.h>
STATISTICS_SET = 1
STRING_BYTES = 32
_MOST = 8192

# As fcntl.ioctl: descriptor, request, argument. What the simulated host answers in its place.
Ioctl = Callable[[int, int, bytearray], int]


@dataclass(frozen=True, slots=True)
class Pause:
    """`priority` is 0 to 7, or global. rx: the port was told to pause, tx: it told the network to."""

    priority: str
    rx_frames: float | None = None
    tx_frames: float | None = None
    rx_seconds: float | None = None
    tx_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Physical:
    """Counts by label, since the driver was loaded or the adapter reset."""

    pauses: tuple[Pause, ...]
    storms: tuple[tuple[str, int], ...]  # warning, error
    discards: tuple[tuple[str, int], ...]  # rx, tx
    errors: tuple[tuple[str, int], ...]  # crc, symbol
    priority_discards: tuple[tuple[str, str, int], ...] = ()  # priority, one of port, buffer, congestion, count


class Network:
    """The interfaces of this process' network namespace."""

    def __init__(self, ioctl: Ioctl = fcntl.ioctl) -> None:
        self._ioctl = ioctl

    def statistics(self, interface: str) -> dict[str, int]:
        """Every statistic by name. Raises Absent where there is no such interface in this network namespace,
        Unsupported where its driver has none.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as descriptor:

            def ask(block: array[int]) -> None:
                request = bytearray(REQUEST.pack(interface.encode()[:15], block.buffer_info()[0]))
                try:
                    self._ioctl(descriptor.fileno(), SIOCETHTOOL, request)
                except OSError as error:
                    if error.errno == errno.ENODEV:
                        raise Absent(f"{interface}: not in this network namespace") from error
                    raise source_error(f"{interface}: ethtool", error) from error

            block = array("B", SET_INFO.pack(GET_SET_INFO, 0, 1 << STATISTICS_SET, 0))
            ask(block)
            _, _, mask, count = SET_INFO.unpack(block[: SET_INFO.size])
            if not mask or not count:
                raise Unsupported(f"{interface}: its driver keeps no statistics")
            if count > _MOST:
                raise Malformed(f"{interface}: {count} statistics")
            strings = array("B", STRINGS_HEAD.pack(GET_STRINGS, STATISTICS_SET, count) + bytes(STRING_BYTES * count))
            ask(strings)
            values = array("B", HEAD.pack(GET_STATISTICS, count) + bytes(8 * count))
            ask(values)
        return parse_statistics(strings.tobytes(), values.tobytes())


def parse_statistics(strings: bytes, values: bytes) -> dict[str, int]:
    """Names and numbers of the two answers. Raises Malformed."""
    try:
        count = min(STRINGS_HEAD.unpack_from(strings)[2], HEAD.unpack_from(values)[1])
    except struct.error as error:
        raise Malformed(f"ethtool statistics: {error}") from error
    if len(strings) < STRINGS_HEAD.size + STRING_BYTES * count or len(values) < HEAD.size + 8 * count:
        raise Malformed(f"ethtool statistics: {count} of them in {len(strings)} and {len(values)} bytes")
    names = struct.unpack_from(f"@{f'{STRING_BYTES}s' * count}", strings, STRINGS_HEAD.size)
    numbers = struct.unpack_from(f"@{count}Q", values, HEAD.size)
    return {
        name.partition(b"\0")[0].decode("ascii", "replace").strip(): number
        for name, number in zip(names, numbers, strict=True)
    }


_PAUSES = (
    # mlx5, then bnxt_en, then ice; the group is the priority
    (re.compile(r"rx_(?:prio([0-7])|global)_pause"), "rx_frames", 1.0),
    (re.compile(r"tx_(?:prio([0-7])|global)_pause"), "tx_frames", 1.0),
    (re.compile(r"rx_(?:prio([0-7])|global)_pause_duration"), "rx_seconds", 1e6),
    (re.compile(r"tx_(?:prio([0-7])|global)_pause_duration"), "tx_seconds", 1e6),
    (re.compile(r"rx_pfc_ena_frames_pri([0-7])"), "rx_frames", 1.0),
    (re.compile(r"tx_pfc_ena_frames_pri([0-7])"), "tx_frames", 1.0),
    (re.compile(r"pfc_pri([0-7])_rx_duration_us"), "rx_seconds", 1e6),
    (re.compile(r"pfc_pri([0-7])_tx_duration_us"), "tx_seconds", 1e6),
    (re.compile(r"rx_priority_([0-7])_xoff\.nic"), "rx_frames", 1.0),
    (re.compile(r"tx_priority_([0-7])_xoff\.nic"), "tx_frames", 1.0),
)
_STORMS = (("warning", "tx_pause_storm_warning_events"), ("error", "tx_pause_storm_error_events"))
# mlx5, bnxt_en, ice: an interface has the names of one of them.
_DISCARDS = (
    *(("rx", "rx_discards_phy"), ("tx", "tx_discards_phy")),
    *(("rx", "rx_stat_discard"), ("tx", "tx_stat_discard")),
    *(("rx", "rx_dropped.nic"), ("tx", "tx_dropped_link_down.nic")),
)
_ERRORS = (
    *(("crc", "rx_crc_errors_phy"), ("symbol", "rx_symbol_err_phy")),
    *(("crc", "rx_fcs_err_frames"), ("symbol", "rx_pcs_symbol_err")),
    *(("crc", "rx_crc_errors.nic"), ("symbol", "illegal_bytes.nic")),
)
_PRIORITY_DISCARDS = (
    ("port", "rx_prio{}_discards"),
    ("buffer", "rx_prio{}_buf_discard"),
    ("congestion", "rx_prio{}_cong_discard"),
)


def parse_physical(statistics: Mapping[str, int]) -> Physical:
    """What of an interface's statistics tells about RoCE."""
    found: dict[str, dict[str, float]] = {}
    for name, value in statistics.items():
        for pattern, field, divisor in _PAUSES:
            match = pattern.fullmatch(name)
            if match:
                found.setdefault(match[1] or "global", {})[field] = value / divisor
    return Physical(
        tuple(Pause(priority, **found[priority]) for priority in sorted(found)),
        _counts(statistics, _STORMS),
        _counts(statistics, _DISCARDS),
        _counts(statistics, _ERRORS),
        # mlx5 has them of all eight; what is without PFC and has lost nothing says nothing.
        tuple(
            (priority, reason, statistics[name])
            for priority in "01234567"
            for reason, pattern in _PRIORITY_DISCARDS
            if (name := pattern.format(priority)) in statistics and (priority in found or statistics[name])
        ),
    )


def _counts(statistics: Mapping[str, int], names: tuple[tuple[str, str], ...]) -> tuple[tuple[str, int], ...]:
    return tuple((label, statistics[name]) for label, name in names if name in statistics)
