"""NVMe controllers as sysfs shows them to anyone: identity, state, namespaces, temperature.

    /sys/class/nvme/nvme0/state          live     (new, resetting, connecting, deleting, dead: no I/O)
    /sys/class/nvme/nvme0/serial         S6CKNE0W500123       (padded with spaces)
    /sys/class/nvme/nvme0/transport      pcie     (tcp, rdma, fc, loop: drives over a network)
    /sys/class/nvme/nvme0/address        0000:41:00.0
    /sys/class/nvme/nvme0/hwmon3/temp1_input      43850       thousandths of a degree; temp1 is the composite,
    /sys/class/nvme/nvme0/device/hwmon/hwmon3/…               temp2 to temp9 sensors 1 to 8. Older kernels: here
    /sys/class/nvme/nvme0/nvme0n1        a namespace of this controller
    /sys/class/nvme/nvme0/nvme1c0n1      with multipath: this controller's path to the namespace nvme1n1

nvme1n1 need not belong to nvme1: with multipath its first number counts subsystems. Only the folder tells.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from gpuhost_exporter.sources.files import (
    Root,
    listed,
    names,
    optional_names,
    optional_number,
    optional_text,
    read_number,
    read_text,
)

_CONTROLLER = re.compile(r"nvme\d+\Z")
_NAMESPACE = re.compile(r"(nvme\d+)(?:c\d+)?(n\d+)\Z")
_MONITOR = re.compile(r"hwmon\d+\Z")
_INPUT = re.compile(r"temp(\d+)_input\Z")


@dataclass(frozen=True, slots=True)
class Controller:
    """`address` is the PCI address where transport is pcie; namespaces are named as /dev names them."""

    name: str
    state: str
    model: str | None
    serial: str | None
    firmware: str | None
    transport: str | None
    address: str | None
    numa_node: int | None
    subsystem: str | None  # NQN
    namespaces: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Temperature:
    """`sensor` is composite, or a number from 1 to 8."""

    sensor: str
    celsius: float


def controllers(root: Root) -> tuple[str, ...]:
    """Names of the controllers; none where the kernel knows no NVMe."""
    return tuple(name for name in optional_names(f"{root.sys}/class/nvme") if _CONTROLLER.match(name))


def incarnation(root: Root, name: str) -> int:
    """A number that changes when another controller gets the name, 0 when there is none."""
    try:
        return os.stat(_folder(root, name)).st_ino
    except OSError:
        return 0


def read(root: Root, name: str) -> Controller:
    """Raises Gone when the controller has disappeared, SourceError when its state cannot be read."""
    folder = _folder(root, name)
    with listed(folder):
        entries = names(folder)
        numa_node = optional_number(f"{folder}/numa_node")
        return Controller(
            name=name,
            model=optional_text(f"{folder}/model"),
            serial=optional_text(f"{folder}/serial"),
            firmware=optional_text(f"{folder}/firmware_rev"),
            transport=optional_text(f"{folder}/transport"),
            address=optional_text(f"{folder}/address"),
            numa_node=numa_node if numa_node is not None and numa_node >= 0 else None,
            subsystem=optional_text(f"{folder}/subsysnqn"),
            namespaces=tuple(f"{match[1]}{match[2]}" for entry in entries if (match := _NAMESPACE.match(entry))),
            # Last: a controller that vanishes half-way must not pass for one without a serial number.
            state=read_text(f"{folder}/state"),
        )


def temperatures(root: Root, name: str) -> tuple[Temperature, ...]:
    """What the controller's sensors read; none where the kernel has no monitor for it (CONFIG_NVME_HWMON).

    Raises SourceError when a sensor that is there cannot be read.
    """
    folder = _folder(root, name)
    with listed(folder):
        for parent in (folder, f"{folder}/device/hwmon"):
            for monitor in optional_names(parent):
                path = f"{parent}/{monitor}"
                if _MONITOR.match(monitor) and optional_text(f"{path}/name") == "nvme":
                    return tuple(
                        Temperature(_sensor(int(match[1])), read_number(f"{path}/{entry}") / 1000)
                        for entry in names(path)
                        if (match := _INPUT.match(entry))
                    )
    return ()


def _folder(root: Root, name: str) -> str:
    return f"{root.sys}/class/nvme/{name}"


def _sensor(index: int) -> str:
    return "composite" if index == 1 else str(index - 1)
