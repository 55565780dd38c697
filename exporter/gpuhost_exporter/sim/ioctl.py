"""The simulated host's ioctl, in the place of fcntl.ioctl: the drives' admin command and the interfaces' statistics.

An interface's statistics are a file NAME below the simulated host's folder `ethtool`, "rx_prio3_pause 18244" a line.
A drive's node is a file below the simulated /dev that holds its page as of now; an empty one is a controller that
does not answer.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import time

from gpuhost_exporter.sources import ethtool
from gpuhost_exporter.sources.nvme_health import (
    COMMAND,
    GET_LOG_PAGE,
    HEALTH_LOG,
    NVME_IOCTL_ADMIN_CMD,
)

_KERNEL_WAITS = 60.0
_INVALID_OPCODE = 0x4001
_INVALID_LOG_PAGE = 0x4109


def ioctl(descriptor: int, request: int, argument: bytearray) -> int:
    if request != NVME_IOCTL_ADMIN_CMD or len(argument) != COMMAND.size:
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
    fields = COMMAND.unpack(argument)
    opcode, address, length, log_page = fields[0], fields[7], fields[9], fields[10]
    if opcode != GET_LOG_PAGE:
        return _INVALID_OPCODE
    if log_page & 0xFF != HEALTH_LOG or length != 4 * ((log_page >> 16) + 1):
        return _INVALID_LOG_PAGE
    until = time.monotonic() + _KERNEL_WAITS
    while not (page := os.pread(descriptor, length, 0)):
        if time.monotonic() > until:
            raise OSError(errno.EINTR, os.strerror(errno.EINTR))
        if not os.fstat(descriptor).st_nlink:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        time.sleep(0.1)
    ctypes.memmove(address, page, len(page))
    return 0


class Interfaces:
    """The network interfaces of the host whose tree is in `folder`."""

    def __init__(self, folder: str) -> None:
        self._folder = f"{folder}/ethtool"

    def __call__(self, _descriptor: int, request: int, argument: bytearray) -> int:
        if request != ethtool.SIOCETHTOOL or len(argument) != ethtool.REQUEST.size:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        name, address = ethtool.REQUEST.unpack(argument)
        statistics = self._statistics(name.rstrip(b"\0").decode())
        command = ctypes.c_uint.from_address(address).value
        if command == ethtool.GET_SET_INFO:
            answer = ethtool.SET_INFO.pack(command, 0, 1 << ethtool.STATISTICS_SET, len(statistics))
        elif command == ethtool.GET_STRINGS:
            texts = b"".join(text.encode().ljust(ethtool.STRING_BYTES, b"\0") for text in statistics)
            answer = ethtool.STRINGS_HEAD.pack(command, ethtool.STATISTICS_SET, len(statistics)) + texts
        elif command == ethtool.GET_STATISTICS:
            answer = ethtool.HEAD.pack(command, len(statistics)) + struct.pack(
                f"@{len(statistics)}Q", *statistics.values()
            )
        else:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        ctypes.memmove(address, answer, len(answer))
        return 0

    def _statistics(self, name: str) -> dict[str, int]:
        try:
            with open(f"{self._folder}/{name}", encoding="ascii") as file:
                pairs = [line.split() for line in file]
        except FileNotFoundError as error:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV)) from error
        return {text: int(number) for text, number in pairs}
