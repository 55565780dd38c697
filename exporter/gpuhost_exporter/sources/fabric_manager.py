"""NVIDIA's fabric manager: whether it runs and its version. No privilege needed where its log may be read.

    /sys/fs/cgroup/system.slice/nvidia-fabricmanager.service/cgroup.procs      1803
    /proc/1803/comm                     nv-fabricmanage     (the kernel keeps 15 bytes)
    /proc/2/comm                        kthreadd: the host's processes are all seen; else this is a container,
    /proc/self/ns/pid                   pid:[4026531836]  or they are the host's, hidden by ProtectProc= (hidepid)
    /usr/lib/systemd/system/nvidia-fabricmanager.service      there: then it is that service or does not run
    /var/log/fabricmanager.log          [Feb 25 2025 13:59:45] [INFO] [tid 1803] Fabric Manager version 550.144.03 ...

It does not start beside a driver of another version.
"""

from __future__ import annotations

import os
import re

from gpuhost_exporter.errors import SourceError
from gpuhost_exporter.sources.files import Root, link_target, optional_names, optional_text, read_block

_PROGRAM = "nv-fabricmanage"
_UNIT = "nvidia-fabricmanager.service"
_SERVICE = f"system.slice/{_UNIT}/cgroup.procs"
_UNIT_FOLDERS = ("usr/lib/systemd/system", "lib/systemd/system", "etc/systemd/system")
_HOST_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO, the same on every kernel
_LOG = "var/log/fabricmanager.log"
_TAIL = 1 << 20
_VERSION = re.compile(r"Fabric Manager version(?: is)?\s*:?\s*([0-9]{2,4}(?:\.[0-9]{1,4}){1,3})\b")


class FabricManager:
    """Remembers its process and how far its log was read: a host has thousands of processes."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._pid: str | None = None
        self._version: str | None = None
        self._read: tuple[int, int] = (0, 0)  # inode, size

    def runs(self) -> bool | None:
        """None where the host's other processes cannot be seen."""
        if self._pid is None or not self._is(self._pid):
            self._pid = next((pid for pid in self._candidates() if self._is(pid)), None)
        if self._pid is not None:
            return True
        if optional_text(f"{self._root.proc}/2/comm") == "kthreadd":
            return False
        if not link_target(f"{self._root.proc}/self/ns/pid").endswith(_HOST_NAMESPACE):
            return None
        if self._of_service():
            return True
        installed = any(os.path.lexists(f"{self._root.top}/{folder}/{_UNIT}") for folder in _UNIT_FOLDERS)
        return False if installed else None

    def version(self) -> str | None:
        """Of its last start, from the end of its log; None where that does not say."""
        path = f"{self._root.top}/{_LOG}"
        try:
            status = os.stat(path)
            if (status.st_ino, status.st_size) != self._read:
                start = max(0, status.st_size - _TAIL)
                found = parse_version(read_block(path, start, _TAIL).decode("utf-8", "replace"))
                self._version = found or (self._version if status.st_ino == self._read[0] else None)
                self._read = status.st_ino, status.st_size
        except (OSError, SourceError):
            return None
        return self._version

    def _candidates(self) -> list[str]:
        return self._of_service() or [name for name in optional_names(self._root.proc) if name.isdecimal()]

    def _of_service(self) -> list[str]:
        for mount in ("cgroup", "cgroup/systemd", "cgroup/unified"):
            pids = optional_text(f"{self._root.sys}/fs/{mount}/{_SERVICE}")
            if pids:
                return pids.split()
        return []

    def _is(self, pid: str) -> bool:
        return optional_text(f"{self._root.proc}/{pid}/comm") == _PROGRAM


def parse_version(log: str) -> str | None:
    """The last version that the log names."""
    found = _VERSION.findall(log)
    return found[-1] if found else None
