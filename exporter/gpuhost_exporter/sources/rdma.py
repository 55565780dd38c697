"""RDMA ports (InfiniBand and RoCE), from sysfs: what they are and whether they are up. No privilege needed.

/sys/class/infiniband/mlx5_0/fw_ver, board_id         28.39.1002, MT_0000000838
/sys/class/infiniband/mlx5_0/device                   -> the PCI device; its link driver names the driver
/sys/class/infiniband/mlx5_0/ports/1/state            4: ACTIVE     (1: DOWN, 2: INIT, 3: ARMED, 5: ACTIVE_DEFER)
/sys/class/infiniband/mlx5_0/ports/1/phys_state       5: LinkUp     (2: Polling, 3: Disabled)
/sys/class/infiniband/mlx5_0/ports/1/rate             400 Gb/sec (4X NDR)    (the words are InfiniBand's on
/sys/class/infiniband/mlx5_0/ports/1/link_layer       Ethernet                Ethernet too; only the number counts)
/sys/class/infiniband/mlx5_0/ports/1/gid_attrs/ndevs/0         ens1np0      (EINVAL where there is none)
/sys/class/infiniband/mlx5_0/ports/1/gid_attrs/types/1         RoCE v2      (or IB/RoCE v1)
/sys/class/net/ens1np0/mtu                            9000
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from gpuhost_exporter.errors import Malformed
from gpuhost_exporter.sources.files import (
    Root,
    link_target,
    listed,
    names,
    optional_count,
    optional_names,
    optional_number,
    optional_text,
    read_text,
)

_STATE = re.compile(r"([0-9]): ")
_RATE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?) Gb/sec\b")
_CARRYING = frozenset({4, 5})
_LINK_UP = 5
_GIDS = 8  # the first entries of the table hold the interface's own addresses, each in both versions


@dataclass(frozen=True, slots=True)
class Port:
    """`rate` is bytes per second in one direction, None while the port is not up: it means nothing then."""

    device: str
    port: str
    up: bool
    physical_up: bool | None
    rate: float | None
    link_layer: str | None
    interface: str | None
    mtu: int | None  # bytes, of the network interface
    gid_types: tuple[str, ...]  # "RoCE v2", "IB/RoCE v1"
    driver: str | None
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
        physical = optional_text(f"{folder}/phys_state")
        return Port(
            device=device,
            port=port,
            up=up,
            physical_up=None if physical is None else parse_state(physical) == _LINK_UP,
            rate=parse_rate(rate) if up and rate else None,
            link_layer=link_layer,
            interface=interface,
            mtu=optional_count(f"{root.sys}/class/net/{interface}/mtu") if interface else None,
            gid_types=_gid_types(folder) if link_layer == "Ethernet" else (),
            driver=_name(f"{above}/device/driver"),
            firmware=optional_text(f"{above}/fw_ver"),
            board=optional_text(f"{above}/board_id"),
            address=_name(f"{above}/device"),
            numa_node=numa_node if numa_node is not None and numa_node >= 0 else None,
        )


def ethernet_interface(root: Root, device: str) -> str | None:
    """The network interface of the device's first port; None where it is not Ethernet or has none."""
    folder = f"{root.sys}/class/infiniband/{device}/ports/1"
    if optional_text(f"{folder}/link_layer") != "Ethernet":
        return None
    return optional_text(f"{folder}/gid_attrs/ndevs/0")


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


def _gid_types(folder: str) -> tuple[str, ...]:
    """The kinds of address among the first entries; one that is empty cannot be read."""
    texts = (optional_text(f"{folder}/gid_attrs/types/{index}") for index in range(_GIDS))
    return tuple(sorted({text for text in texts if text}))


def _name(link: str) -> str | None:
    """Of the folder that a link leads to."""
    return os.path.basename(link_target(link)) if os.path.exists(link) else None
