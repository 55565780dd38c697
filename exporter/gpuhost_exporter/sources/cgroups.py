"""I/O of a control group, version 2: files that anybody may read.

/sys/fs/cgroup/<path>/io.stat       259:0 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0
/sys/fs/cgroup/<path>/memory.stat   ...\nfile_dirty 1216512\nfile_writeback 0\n...
/sys/fs/cgroup/<path>/io.pressure   some avg10=0.00 avg60=0.00 avg300=0.00 total=22212 (microseconds)
/sys/fs/cgroup/<path>/cpu.stat      usage_usec 5120000\n...
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple, TypeVar

from gpuhost_exporter.errors import Absent, Denied, Malformed, SourceError, Unsupported
from gpuhost_exporter.sources.evidence import CgroupIo
from gpuhost_exporter.sources.files import Root, optional_text, read_text
from gpuhost_exporter.sources.pressure import parse_pressure
from gpuhost_exporter.sources.procfs import parse_pids
from gpuhost_exporter.sources.writeback import mirrored_shares, stacked_numbers

MOST = 16

T = TypeVar("T", int, float)


class Moved(NamedTuple):
    read_bytes: int
    write_bytes: int


class Counters(NamedTuple):
    """What a control group has done since it was made; None where its controller is off."""

    devices: Mapping[str, Moved] | None  # by number
    dirty_bytes: int | None  # a level: page cache that is dirty now
    io_some_seconds: float | None
    io_full_seconds: float | None
    cpu_seconds: float | None


def accounted(folder: str, path: str) -> str | None:
    """The nearest group from `path` upwards that counts I/O or memory; never one that others' work is in, too."""
    while path not in ("", "/"):
        if any(os.path.exists(f"{folder}{path}/{name}") for name in ("io.stat", "memory.stat")):
            return path
        path = os.path.dirname(path)
        if path.endswith((".slice", "slurmstepd.scope")):
            return None
    return None


def read(group: str) -> Counters:
    """Raises Malformed, and Gone when the group has ended."""
    devices = _devices(group)
    text = optional_text(f"{group}/io.pressure")
    waited = {stall.kind: stall.seconds for stall in parse_pressure("io", text)} if text else {}
    dirty = parse_number(optional_text(f"{group}/memory.stat") or "", "file_dirty")
    cpu = parse_number(optional_text(f"{group}/cpu.stat") or "", "usage_usec")
    return Counters(devices, dirty, waited.get("some"), waited.get("full"), None if cpu is None else cpu / 1e6)


def _devices(group: str) -> dict[str, Moved] | None:
    try:
        return parse_io_stat(read_text(f"{group}/io.stat"))
    except (Absent, Denied, Unsupported):
        return None


def parse_io_stat(text: str) -> dict[str, Moved]:
    """By device number. A device without figures has done nothing."""
    found = {}
    for line in filter(str.strip, text.splitlines()):
        told = {"rbytes": 0, "wbytes": 0}
        words = line.split()
        for pair in words[1:]:
            key, _, value = pair.partition("=")
            if key in told:
                try:
                    told[key] = int(value)
                except ValueError as error:
                    raise Malformed(f"io.stat: expected {key}=NUMBER, got {pair[:40]!r}") from error
        found[words[0]] = Moved(told["rbytes"], told["wbytes"])
    return found


def parse_number(text: str, name: str) -> int | None:
    """The number behind a name in a file of "name number" lines; None where the name is not there."""
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            try:
                return int(value)
            except ValueError as error:
                raise Malformed(f"expected {name} NUMBER, got {line[:40]!r}") from error
    return None


class Groups:
    """What came since the last look, of the control groups that hold GPUs."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._folder: str | None = None
        self._above: frozenset[str] = frozenset()  # devices with others below them, which count the same bytes again
        self._mirrored: Mapping[str, float] = {}
        self._before: dict[str, Counters] = {}

    def refresh(self) -> None:
        """Look again for the hierarchy, and for arrays and mapped devices."""
        self._folder = _unified_root(self._root)
        self._above = stacked_numbers(self._root)
        self._mirrored = mirrored_shares(self._root)

    def members(self, path: str) -> list[int]:
        """Processes of a group, not of those below it."""
        if self._folder is None:
            return []
        return parse_pids(optional_text(f"{self._folder}{path}/cgroup.procs") or "")

    def look(self, jobs: Mapping[str, str | None]) -> tuple[CgroupIo, ...]:
        """Of the nearest groups that count, each once; `jobs`: keys by the path of a process' group."""
        folder = self._folder
        if folder is None:
            return ()
        wanted: dict[str, str | None] = {}
        for path, job in jobs.items():
            counted = accounted(folder, path)
            if counted is not None and len(wanted) < MOST:
                wanted.setdefault(counted, job)
        now: dict[str, Counters] = {}
        for path in wanted:
            with suppress(SourceError):
                now[path] = read(f"{folder}{path}")
        before, self._before = self._before, now
        return tuple(self._since(path, wanted[path], counters, before.get(path)) for path, counters in now.items())

    def _since(self, path: str, job: str | None, now: Counters, before: Counters | None) -> CgroupIo:
        if before is None:
            return CgroupIo(path, job, None, None, None, None, None, None)
        dirtied = None
        read, wrote = self._moved(now.devices, before.devices)
        if wrote is not None and now.dirty_bytes is not None and before.dirty_bytes is not None:
            dirtied = max(0, wrote + now.dirty_bytes - before.dirty_bytes)
        return CgroupIo(
            path,
            job,
            read,
            wrote,
            dirtied,
            _grown(now.io_some_seconds, before.io_some_seconds),
            _grown(now.io_full_seconds, before.io_full_seconds),
            _grown(now.cpu_seconds, before.cpu_seconds),
        )

    def _moved(
        self, now: Mapping[str, Moved] | None, before: Mapping[str, Moved] | None
    ) -> tuple[int | None, int | None]:
        """Bytes read from and written to the lowest devices, less the copies that mirrors made."""
        if now is None or before is None:
            return None, None
        read = wrote = 0
        for number, counters in now.items():
            then = before.get(number, Moved(0, 0))
            given = counters.write_bytes - then.write_bytes
            if number not in self._above:
                read += counters.read_bytes - then.read_bytes
                wrote += given
            wrote -= int(given * self._mirrored.get(number, 0))
        return read, max(0, wrote)


def _unified_root(root: Root) -> str | None:
    """Where cgroup v2 is mounted: alone, or beside version 1. None on hosts with version 1 only."""
    for folder in (f"{root.sys}/fs/cgroup", f"{root.sys}/fs/cgroup/unified"):
        if os.path.exists(f"{folder}/cgroup.controllers"):
            return folder
    return None


def _grown(now: T | None, before: T | None) -> T | None:
    return now - before if now is not None and before is not None else None
