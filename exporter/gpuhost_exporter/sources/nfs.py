"""NFS mounts as the client counts them.

    /proc/1/mountstats, /proc/self/mountstats
    device server:/export mounted on /mnt/data with fstype nfs4 statvers=1.1
            bytes:  normal-read normal-write direct-read direct-write server-read server-write pages-read pages-written
            per-op statistics
                    READ: operations transmissions timeouts bytes-sent bytes-received queue-ms rtt-ms execute-ms errors
                   WRITE: ...

Each process's tells of the mounts that it sees. The host's first process sees the host's, but only root, with any
capability or none, may read its file: others see their own, which in a container are not the host's. Errors are told
since statvers=1.1 (Linux 5.3).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from gpuhost_exporter.errors import Absent, Denied, Gone, Malformed, SourceError
from gpuhost_exporter.sources import mounts
from gpuhost_exporter.sources.files import Root, read_text
from gpuhost_exporter.sources.mounts import unescape

# By name; all other operations are added up: attributes, lookups, locks.
OPERATIONS = ("READ", "WRITE", "COMMIT")
OTHER = "other"

_DEVICE = re.compile(r"device (\S+) mounted on (\S+) with fstype (nfs4?)(?: statvers=\S+)?\Z")
_OPERATION = re.compile(r"\s+([A-Z_0-9]+): ((?:[0-9]{1,20} ?)+)\Z")


@dataclass(frozen=True, slots=True)
class Operation:
    """`seconds` from a caller's request to its answer, added up. `errors` is None where the kernel does not count."""

    count: int
    retransmissions: int
    timeouts: int
    seconds: float
    errors: int | None


@dataclass(frozen=True, slots=True)
class NfsMount:
    """Bytes are those that went over the network, past the page cache or not."""

    point: str
    source: str
    read_bytes: int
    written_bytes: int
    operations: dict[str, Operation]


@dataclass(frozen=True, slots=True)
class NfsMounts:
    """`unread`: mount points of the host that this process may not read the counters of."""

    mounts: tuple[NfsMount, ...]
    unread: tuple[str, ...]


def read(root: Root) -> NfsMounts:
    """The host's NFS mounts, each once."""
    try:
        return NfsMounts(_read(f"{root.proc}/1/mountstats"), ())
    except (Absent, Denied, Gone):
        told = _read(f"{root.proc}/self/mountstats")
    points = {mount.point for mount in told}
    try:
        listed = {mount.point for mount in mounts.read(root) if mount.kind in ("nfs", "nfs4")}
    except SourceError:
        listed = set()
    return NfsMounts(told, tuple(sorted(listed - points)))


def parse_mountstats(text: str) -> tuple[NfsMount, ...]:
    found: dict[str, NfsMount] = {}
    for source, point, lines in list(_stanzas(text)):
        # What is mounted on top of another hides it.
        found[point] = _mount(source, point, lines)
    return tuple(found.values())


def _read(path: str) -> tuple[NfsMount, ...]:
    try:
        return parse_mountstats(read_text(path))
    except Malformed as error:
        raise Malformed(f"{path}: {error}") from error


def _stanzas(text: str) -> Iterator[tuple[str, str, list[str]]]:
    lines: list[str] | None = None
    for line in text.splitlines():
        if line.startswith("device "):
            lines = None
            match = _DEVICE.match(line)
            if match:
                lines = []
                yield unescape(match[1]), unescape(match[2]), lines
        elif lines is not None:
            lines.append(line)


def _mount(source: str, point: str, lines: list[str]) -> NfsMount:
    moved: list[int] = []
    operations: dict[str, Operation] = {}
    for line in lines:
        if line.strip().startswith("bytes:"):
            words = line.split()[1:]
            if len(words) < 6 or not all(word.isascii() and word.isdecimal() and len(word) <= 20 for word in words):
                raise Malformed(f"{point}: expected 'bytes:' and eight numbers, got {line.strip()[:60]!r}")
            moved = [int(word) for word in words]
        elif match := _OPERATION.match(line):
            name = match[1] if match[1] in OPERATIONS else OTHER
            operations[name] = _added(operations.get(name), _operation(point, match[1], match[2].split()))
    if not moved:
        raise Malformed(f"{point}: expected a line 'bytes:', got none")
    return NfsMount(point, source, moved[4], moved[5], operations)


def _operation(point: str, name: str, words: list[str]) -> Operation:
    if len(words) < 8:
        raise Malformed(f"{point}: expected eight numbers or nine after {name}, got {len(words)}")
    numbers = [int(word) for word in words]
    operations, transmissions, timeouts, execute = numbers[0], numbers[1], numbers[2], numbers[7]
    errors = numbers[8] if len(numbers) > 8 else None
    return Operation(operations, max(0, transmissions - operations), timeouts, execute / 1000, errors)


def _added(first: Operation | None, second: Operation) -> Operation:
    if first is None:
        return second
    return Operation(
        first.count + second.count,
        first.retransmissions + second.retransmissions,
        first.timeouts + second.timeouts,
        first.seconds + second.seconds,
        None if first.errors is None or second.errors is None else first.errors + second.errors,
    )
