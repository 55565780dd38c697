"""Files of one process in /proc.

/proc/4711/stat   4711 (python3) R 4700 4700 4650 0 -1 4194304 9120331 0 412 0 5120 568 0 0 20 0 187 0 502125 ...
                  the name in parentheses may hold spaces and parentheses; after it state, parent, process group,
                  session; 42 is the wait for block I/O in ticks
/proc/4711/io     rchar: 300\nwchar: 20\nsyscr: 2\nsyscw: 1\nread_bytes: 0\nwrite_bytes: 4096\n
                  cancelled_write_bytes: 0                      a parent has what its reaped children had, too
/proc/4711/task/4711/children   4712 4713
/proc/4711/mountinfo            29 1 9:0 / /mnt/data rw,relatime shared:1 - ext4 /dev/md0 rw
/proc/4711/fdinfo/7             pos:\t4096\nflags:\t0100001\nmnt_id:\t29\n
"""

from __future__ import annotations

import os
from typing import NamedTuple

from gpuhost_exporter.errors import Malformed, SourceError
from gpuhost_exporter.sources.files import Root, optional_names, optional_text, read_text

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_MOST_FILES = 512
_DUMPING = 0x200  # PF_DUMPCORE of the kernel's task flags
_NO_DATA = frozenset({"devtmpfs", "devpts", "proc", "sysfs", "cgroup", "cgroup2", "mqueue"})


class Stat(NamedTuple):
    comm: str
    state: str
    ppid: int
    faults: int  # minor page faults of its own and of the children that it has waited for
    reaped_faults: int  # of the latter
    ticks: int  # CPU time of its own
    threads: int
    start: int  # ticks since boot
    blocked_ticks: int  # always 0 without delay accounting
    dumping: bool = False  # it has failed and writes its memory to a core file, or has
    session: int = 0  # pid of who began it: a login's shell, a terminal's


class Io(NamedTuple):
    read_chars: int = 0
    written_chars: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    cancelled_bytes: int = 0


class Mount(NamedTuple):
    point: str
    type: str


def parse_stat(text: str) -> Stat:
    head, _, tail = text.rpartition(")")
    words = tail.split(None, 40)
    try:
        return Stat(
            head.partition("(")[2],
            words[0],
            int(words[1]),
            int(words[7]) + int(words[8]),
            int(words[8]),
            int(words[11]) + int(words[12]),
            int(words[17]),
            int(words[19]),
            int(words[39]),
            bool(int(words[6]) & _DUMPING),
            int(words[3]),
        )
    except (ValueError, IndexError) as error:
        raise Malformed(f"expected a process' stat line, got {text[:60]!r}") from error


def parse_io(text: str) -> Io:
    words = text.split()
    told = dict(zip(words[::2], words[1::2], strict=False))
    try:
        return Io(
            int(told["rchar:"]),
            int(told["wchar:"]),
            int(told["read_bytes:"]),
            int(told["write_bytes:"]),
            int(told["cancelled_write_bytes:"]),
        )
    except (KeyError, ValueError) as error:
        raise Malformed(f"expected a process' I/O counters, got {text[:60]!r}") from error


def parse_pids(text: str) -> list[int]:
    """Of a `children` or cgroup.procs file; 0 is a process of another PID namespace."""
    try:
        return [int(word) for word in text.split() if word != "0"]
    except ValueError as error:
        raise Malformed(f"expected process ids, got {text[:60]!r}") from error


def parse_mounts(text: str) -> dict[int, Mount]:
    """Mount points by id; file systems without data of jobs are left out."""
    mounts = {}
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        words, kind = left.split(), right.partition(" ")[0]
        if len(words) > 4 and words[0].isdecimal() and len(words[0]) < 10 and kind and kind not in _NO_DATA:
            mounts[int(words[0])] = Mount(_unescaped(words[4]), kind)
    return mounts


def threads(root: Root, pid: int) -> list[int]:
    return [int(name) for name in optional_names(f"{root.proc}/{pid}/task") if name.isdecimal()]


def written_mount(root: Root, pid: int) -> Mount | None:
    """Where the largest file lies that a process has open for writing. None: none, not on a known mount, or not told.

    Files are measured by how far it has come in them: 0 where they are mapped, or while one long call lasts. If all
    are so, those of one mount tell. Looks at regular files only, by their links, before it asks for more: drivers
    answer fdinfo themselves.
    """
    folder = f"{root.proc}/{pid}"
    written: dict[int, int] = {}
    try:
        descriptors = os.listdir(f"{folder}/fd")[:_MOST_FILES]
    except OSError:
        return None
    for descriptor in descriptors:
        try:
            target = os.readlink(f"{folder}/fd/{descriptor}")
        except OSError:
            continue
        if _holds_data(target):
            position, flags, mount = _fdinfo(optional_text(f"{folder}/fdinfo/{descriptor}") or "")
            if flags & os.O_ACCMODE:
                written[mount] = max(position, written.get(mount, 0))
    if not written or (len(written) > 1 and not any(written.values())):
        return None
    try:
        mounts = parse_mounts(read_text(f"{folder}/mountinfo"))
    except SourceError:
        return None
    return next((mounts[mount] for mount in sorted(written, key=lambda id_: -written[id_]) if mount in mounts), None)


def _holds_data(target: str) -> bool:
    """A file that stays; memory that processes share has no name any more."""
    if not target.startswith("/") or target.endswith(" (deleted)"):
        return False
    top, _, rest = target[1:].partition("/")
    return rest.startswith("shm/") if top == "dev" else top not in ("proc", "sys")


def _fdinfo(text: str) -> tuple[int, int, int]:
    words = text.split()
    told = dict(zip(words[::2], words[1::2], strict=False))
    try:
        return int(told["pos:"]), int(told["flags:"], 8), int(told["mnt_id:"])
    except (KeyError, ValueError):
        return 0, 0, -1


def _unescaped(text: str) -> str:
    for escaped, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(escaped, character)
    return text
