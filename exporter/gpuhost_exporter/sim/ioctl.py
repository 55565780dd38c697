"""The simulated host's ioctl, in the place of fcntl.ioctl: answers the admin command that asks for the health log.

A drive's node is a file below the simulated /dev that holds its page as of now; an empty one is a controller that
does not answer.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time

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
