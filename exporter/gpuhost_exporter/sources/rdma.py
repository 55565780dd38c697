"""RDMA ports (InfiniBand and RoCE), from sysfs. No privilege needed.

    /sys/class/infiniband/mlx5_0/fw_ver, board_id         28.39.1002, MT_0000000838
    /sys/class/infiniband/mlx5_0/device                   -> the PCI device
    /sys/class/infiniband/mlx5_0/ports/1/state            4: ACTIVE     (1: DOWN, 2: INIT, 3: ARMED, 5: ACTIVE_DEFER)
    /sys/class/infiniband/mlx5_0/ports/1/rate             400 Gb/sec (4X NDR)    (the words are InfiniBand's on
    /sys/class/infiniband/mlx5_0/ports/1/link_layer       Ethernet                Ethernet too; only the number counts)
    /sys/class/infiniband/mlx5_0/ports/1/gid_attrs/ndevs/0         ens1np0      (EINVAL where there is none)
    /sys/class/infiniband/mlx5_0/ports/1/counters/port_rcv_data    words of 4 octets, on RoCE as well

Virtual functions and soft-RoCE have no counters folder; a counter that the device does not keep reads
"N/A (no PMA)" or fails with EINVAL.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal

from gpuhost_exporter.errors import Absent, Malformed, Unsupported
from gpuhost_exporter.sources.files import (
    Root,
    link_target,
    listed,
    names,
    optional_names,
    optional_number,
    optional_text,
    read_text,
)

Direction = Literal["rx", "tx"]
WORD_BYTES = 4
_COUNTERS: dict[Direction, str] = {"rx": "port_rcv_data", "tx": "port_xmit_data"}
DIRECTIONS: tuple[Direction, ...] = tuple(_COUNTERS)

_STATE = re.compile(r"([0-9]): ")
_RATE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?) Gb/sec\b")
_CARRYING = frozenset({4, 5})


@dataclass(frozen=True, slots=True)
class Port:
    """`rate` is bytes per second in one direction, None while the port is not up: it means nothing then."""

    device: str
    port: str
    up: bool
    rate: float | None
    link_layer: str | None
    interface: str | None
    firmware: str | None
    board: str | None
    address: str | None  # of the PCI device, 0000:18:00.0; None for soft-RoCE
    numa_node: int | None


def devices(root: Root) -> tuple[str, ...]:
    """Names of the RDMA devices; none where the kernel has no RDMA."""
    return optional_names(f"{root.sys}/class/infiniband")


def ports(root: Root, device: str) -> tuple[str, ...]:
    """The device's port numbers. Raises Gone when the device has disappeared."""
    with listed(f"{root.sys}/class/infiniband/{device}"):
        return names(f"{root.sys}/class/infiniband/{device}/ports")


def read(root: Root, device: str, port: str) -> Port:
    """Raises Gone when the port has disappeared, SourceError when its state cannot be read."""
    above = f"{root.sys}/class/infiniband/{device}"
    folder = f"{above}/ports/{port}"
    with listed(folder):
        rate = optional_text(f"{folder}/rate")
        numa_node = optional_number(f"{above}/device/numa_node")
        link_layer = optional_text(f"{folder}/link_layer")
        interface = optional_text(f"{folder}/gid_attrs/ndevs/0")
        up = parse_state(read_text(f"{folder}/state")) in _CARRYING
        return Port(
            device=device,
            port=port,
            up=up,
            rate=parse_rate(rate) if up and rate else None,
            link_layer=link_layer,
            interface=interface,
            firmware=optional_text(f"{above}/fw_ver"),
            board=optional_text(f"{above}/board_id"),
            address=_address(f"{above}/device"),
            numa_node=numa_node if numa_node is not None and numa_node >= 0 else None,
        )


def read_bytes(root: Root, device: str, port: str, direction: Direction) -> int | None:
    """Bytes through the port since it came up or was reset; None where the device does not count them."""
    path = f"{root.sys}/class/infiniband/{device}/ports/{port}/counters/{_COUNTERS[direction]}"
    try:
        words = parse_counter(read_text(path))
    except (Absent, Unsupported):
        return None
    except Malformed as error:
        raise Malformed(f"{path}: {error}") from error
    return None if words is None else words * WORD_BYTES


def parse_state(text: str) -> int:
    """The number of "4: ACTIVE"."""
    match = _STATE.match(text)
    if match is None:
        raise Malformed(f"expected a port state such as '4: ACTIVE', got {text[:40]!r}")
    return int(match[1])


def parse_rate(text: str) -> float:
    """Bytes per second of "400 Gb/sec (4X NDR)"."""
    match = _RATE.match(text)
    if match is None:
        raise Malformed(f"expected a port rate such as '400 Gb/sec (4X NDR)', got {text[:40]!r}")
    return float(match[1]) * 125e6


def parse_counter(text: str) -> int | None:
    """A counter's number; None for "N/A (no PMA)"."""
    if text.startswith("N/A"):
        return None
    if not re.fullmatch(r"[0-9]{1,20}", text):
        raise Malformed(f"expected a number or N/A, got {text[:40]!r}")
    return int(text)


def _address(link: str) -> str | None:
    return os.path.basename(link_target(link)) if os.path.exists(link) else None
