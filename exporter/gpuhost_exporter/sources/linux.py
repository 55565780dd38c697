"""prctl, capset and seccomp for processes that give up what they do not need.

Linux' own numbers: <linux/prctl.h>, <linux/capability.h>, <linux/seccomp.h>, <linux/bpf_common.h>.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
from collections.abc import Sequence
from contextlib import suppress

CAP_DAC_READ_SEARCH = 2
CAP_SETPCAP = 8
CAP_SYS_PTRACE = 19
CAP_SYS_ADMIN = 21
CAP_SYSLOG = 34
_CAPABILITY_LAST = 63

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, *arguments: int) -> int:
    padded = (*arguments, 0, 0, 0, 0)[:4]
    return int(_libc().prctl(option, *(ctypes.c_ulong(value) for value in padded)))


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the parent's spawning thread ends, even by SIGKILL."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def name_process(name: str) -> None:
    """What ps and top call this process; the kernel keeps 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _prctl(_PR_SET_NAME, ctypes.addressof(buffer))


def bound_malloc() -> None:
    """Have glibc give large blocks back when freed, and not keep a heap for each thread: 2 MiB instead of 8 under
    forty clients. Other C libraries have no such heaps and no mallopt.
    """
    with suppress(AttributeError):
        mallopt = _libc().mallopt
        mallopt(_M_MMAP_THRESHOLD, 128 << 10)
        mallopt(_M_ARENA_MAX, 2)


def effective_capabilities() -> frozenset[int]:
    """This process's effective capabilities by number, from /proc/self/status (CapEff)."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        mask = next((int(line.split()[1], 16) for line in status if line.startswith("CapEff:")), 0)
    return frozenset(number for number in range(_CAPABILITY_LAST + 1) if mask >> number & 1)


def keep_capabilities(keep: frozenset[int]) -> None:
    """Give up every capability but these, for good: no exec can bring one back."""
    held = effective_capabilities()
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    if CAP_SETPCAP in held:
        for number in range(_CAPABILITY_LAST + 1):
            if number not in keep:
                _prctl(_PR_CAPBSET_DROP, number)
    mask = sum(1 << number for number in held & keep)
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    data = struct.pack("<6I", low, low, 0, high, high, 0)
    if _libc().capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")


_ALLOW, _REFUSE = 0x7FFF0000, 0x00050001  # SECCOMP_RET_ALLOW, and RET_ERRNO with EPERM
_LOAD, _EQUAL, _ANSWER = 0x20, 0x15, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_AF_INET, _AF_INET6, _AF_PACKET = 2, 10, 17
_Step = tuple[int, int, int, int]  # code, steps to pass over where it holds, where it does not, value


def forbid_internet() -> bool:
    """Refuse this process IPv4, IPv6 and packet sockets from now on (EPERM). False where seccomp cannot."""
    call = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}.get(platform.machine())
    if call is None:
        return False
    architecture, socket_call = call
    families = (_AF_INET, _AF_INET6, _AF_PACKET)
    return _filter(
        [
            (_LOAD, 0, 0, _ARCHITECTURE),
            (_EQUAL, 1, 0, architecture),
            (_ANSWER, 0, 0, _ALLOW),
            (_LOAD, 0, 0, _NUMBER),
            (_EQUAL, 1, 0, socket_call),
            (_ANSWER, 0, 0, _ALLOW),
            (_LOAD, 0, 0, _FIRST_ARGUMENT),
            *((_EQUAL, len(families) - place, 0, family) for place, family in enumerate(families)),
            (_ANSWER, 0, 0, _ALLOW),
            (_ANSWER, 0, 0, _REFUSE),
        ]
    )


def keep_connections() -> bool:
    """Leave this process the sockets that it has, connected as they are, for good: it can open or connect none, send
    to no address of its choice, and start no program (EPERM). False where seccomp cannot.
    """
    # socket, connect, bind, sendmsg, sendmmsg, execve, execveat, io_uring_setup; and sendto, which is send without
    # its address.
    calls = {
        "x86_64": (0xC000003E, (41, 42, 49, 46, 307, 59, 322, 425), 44),
        "aarch64": (0xC00000B7, (198, 203, 200, 211, 269, 221, 281, 425), 206),
    }.get(platform.machine())
    if calls is None:
        return False
    architecture, refused, sendto = calls
    address = _FIRST_ARGUMENT + 4 * 8
    return _filter(
        [
            (_LOAD, 0, 0, _ARCHITECTURE),
            (_EQUAL, 1, 0, architecture),
            (_ANSWER, 0, 0, _REFUSE),
            (_LOAD, 0, 0, _NUMBER),
            *((_EQUAL, len(refused) - place + 6, 0, number) for place, number in enumerate(refused)),
            (_EQUAL, 1, 0, sendto),
            (_ANSWER, 0, 0, _ALLOW),
            (_LOAD, 0, 0, address),
            (_EQUAL, 0, 3, 0),
            (_LOAD, 0, 0, address + 4),
            (_EQUAL, 0, 1, 0),
            (_ANSWER, 0, 0, _ALLOW),
            (_ANSWER, 0, 0, _REFUSE),
        ]
    )


def _filter(program: Sequence[_Step]) -> bool:
    code = b"".join(struct.pack("<HBBI", *step) for step in program)
    instructions = ctypes.create_string_buffer(code, len(code))
    head = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(instructions)))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    return _prctl(_PR_SET_SECCOMP, 2, ctypes.addressof(head)) == 0
