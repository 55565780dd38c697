"""What runs in the forked readers, and which capabilities each may keep.

Imported here, before the fork, is what small readers share; what is large and one reader's own, it imports itself.
"""

from __future__ import annotations

import fcntl
import mmap
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpuhost_exporter.clock import SystemClock
from gpuhost_exporter.errors import Gone, SourceError
from gpuhost_exporter.sources import contention, linux, placement
from gpuhost_exporter.sources.files import Root
from gpuhost_exporter.sources.kmsg import KernelLogReader
from gpuhost_exporter.sources.launcher import ReaderKind
from gpuhost_exporter.sources.nvme_health import DriveReader
from gpuhost_exporter.sources.nvml.marks import MarkWriter
from gpuhost_exporter.sources.pipe import Pipe, recv_request, send_answer

KINDS = {
    # CAP_SYS_ADMIN, where it is held at all: GPM asks for it on some drivers.
    "nvml": ReaderKind("gpuhost_exporter.sources.readers:nvml", frozenset({linux.CAP_SYS_ADMIN})),
    # At most; it keeps only what the jobs that it is given need.
    "privileged": ReaderKind(
        "gpuhost_exporter.sources.readers:privileged",
        frozenset({linux.CAP_SYSLOG, linux.CAP_SYS_ADMIN, linux.CAP_SYS_PTRACE, linux.CAP_DAC_READ_SEARCH}),
    ),
    "latency": ReaderKind("gpuhost_exporter.sources.latency.reader:latency", frozenset()),
    "simulator": ReaderKind("gpuhost_exporter.sources.readers:simulator", frozenset()),
}


def nvml(sockets: Sequence[socket.socket], arguments: Mapping[str, Any], marks: mmap.mmap) -> None:
    """Answer {"subject": ..., "skip": [uuid, ...]} with a Batch; XID events go to the second socket unasked.

    The first answer is the Inventory. DriverDown ends the process after being sent: a library that no longer
    matches its driver can only be loaded anew by a new process.
    """
    from gpuhost_exporter.sources.nvml.calls import DriverDown, load
    from gpuhost_exporter.sources.nvml.reader import Reader

    clock = SystemClock()
    binding = load()
    if control := arguments.get("simulate"):
        from gpuhost_exporter.sim.nvml import SimNvml

        binding = SimNvml(control, clock)
    pipe, events = Pipe(sockets[0]), Pipe(sockets[1])
    mark = MarkWriter(marks)
    reader = Reader(binding, clock, mark)
    try:
        send_answer(pipe, reader.open(frozenset(arguments.get("skip", ()))))
        threading.Thread(target=_forward_events, args=(reader, events), daemon=True).start()
        while True:
            mark("", "")  # who ends while idle must not blame the GPU that was read last
            request = recv_request(pipe)
            send_answer(pipe, reader.read(request["subject"], frozenset(request["skip"])))
    except DriverDown as down:
        send_answer(pipe, down)


def _forward_events(reader: Any, pipe: Pipe) -> None:
    while True:
        try:
            events = reader.wait_events(5.0)
        except SourceError:
            time.sleep(5.0)
            continue
        if events:
            send_answer(pipe, events)


def privileged(sockets: Sequence[socket.socket], arguments: Mapping[str, Any], _marks: mmap.mmap) -> None:
    """A thread a job, so that one which the kernel holds up holds up no other. Ends when the exporter goes.

    Of its capabilities it keeps those of the jobs that it was given.
    """
    linux.keep_capabilities(frozenset().union(*(JOBS[name].capabilities for name in arguments)))
    ended = threading.Event()
    failures: list[BaseException] = []

    def run(name: str, sock: socket.socket) -> None:
        try:
            JOBS[name].run(sock, arguments[name])
        except Gone:
            pass
        except BaseException as error:
            failures.append(error)
            raise
        finally:
            ended.set()

    for name, sock in zip(arguments, sockets, strict=True):
        threading.Thread(target=run, args=(name, sock), name=name, daemon=True).start()
    ended.wait()
    if failures:
        raise failures[0]


def kernel_log(sock: socket.socket, arguments: Mapping[str, Any]) -> None:
    """Send what is new in the kernel log, first what is already in the ring, then as it comes."""
    pipe = Pipe(sock)
    cursor = arguments["cursor"]
    reader = KernelLogReader(Root(**arguments["root"]), tuple(cursor) if cursor else None)
    denied: str | None = None
    while True:
        try:
            found = reader.read_new()
        except SourceError as error:
            if str(error) != denied:
                send_answer(pipe, error)
                denied = str(error)
        else:
            if found or denied != "":
                send_answer(pipe, found)
                denied = ""
        # Waiting on the pipe as well: the exporter's end closes when it goes.
        if select.select([sock], [], [], 1.0 if denied == "" else 30.0)[0]:
            return


def processes(sock: socket.socket, arguments: Mapping[str, Any]) -> None:
    """Answer {"holding": {uuid: [pid, ...]}} with Evidence."""
    from gpuhost_exporter.sources.follow import Follower

    pipe = Pipe(sock)
    follower = Follower(Root(**arguments["root"]), SystemClock())
    while True:
        request = recv_request(pipe)
        try:
            answer: object = follower.look(request["holding"])
        except SourceError as error:
            answer = error
        send_answer(pipe, answer)


def traffic(sock: socket.socket, arguments: Mapping[str, Any]) -> None:
    """Answer each request with Traffic, or None. In a thread that a port's firmware may hold up."""
    from gpuhost_exporter.sources.traffic import Adapters

    pipe = Pipe(sock)
    adapters = Adapters(Root(**arguments["root"]), SystemClock())
    while True:
        recv_request(pipe)
        try:
            answer: object = adapters.look()
        except SourceError as error:
            answer = error
        send_answer(pipe, answer)


def drives(sock: socket.socket, arguments: Mapping[str, Any]) -> None:
    """Send what each drive's health log says, every `interval` seconds, and for how long one has been silent."""
    pipe = Pipe(sock)
    ioctl: Any = fcntl.ioctl
    if arguments["simulated"]:
        from gpuhost_exporter.sim.ioctl import ioctl
    reader = DriveReader(Root(**arguments["root"]), arguments["interval"], SystemClock(), ioctl)
    failure: str | None = None
    while True:
        try:
            reports = reader.look()
        except SourceError as error:
            if str(error) != failure:
                send_answer(pipe, error)
                failure = str(error)
        else:
            if reports or failure != "":
                send_answer(pipe, reports)
                failure = ""
        # So often a drive that was added is seen; listing a folder costs microseconds.
        if select.select([sock], [], [], 2.0)[0]:
            return


def registers(sock: socket.socket, arguments: Mapping[str, Any]) -> None:
    """Send what the PCIe switches' downstream ports are set to and what SMBIOS says, now and every ten minutes."""
    from gpuhost_exporter.sources import smbios

    pipe, root = Pipe(sock), Root(**arguments["root"])
    while True:
        send_answer(pipe, placement.Registers(placement.switch_ports(root), smbios.virtual_machine(root)))
        if select.select([sock], [], [], 600.0)[0]:
            return


def waits(sock: socket.socket, arguments: Mapping[str, Any]) -> None:
    """Send how long this thread, which sleeps five times a second, had to wait for a CPU. Needs no privilege, but a
    process in which little else runs."""
    pipe = Pipe(sock)
    probe = contention.WaitProbe(Root(**arguments["root"]))
    found: list[contention.Wait] = []
    due = time.monotonic()
    while True:
        pause = contention.EVERY_SECONDS
        try:
            wait = probe.look()
            if wait:
                found.append(wait)
            if time.monotonic() >= due:
                send_answer(pipe, tuple(found))
                found, due = [], time.monotonic() + 5.0
        except SourceError as error:
            send_answer(pipe, error)
            pause = 60.0
        if select.select([sock], [], [], pause)[0]:
            return


@dataclass(frozen=True, slots=True)
class PrivilegedJob:
    run: Callable[[socket.socket, Mapping[str, Any]], None]
    capabilities: frozenset[int]


JOBS: Mapping[str, PrivilegedJob] = {
    "kernel_log": PrivilegedJob(kernel_log, frozenset({linux.CAP_SYSLOG})),
    "drives": PrivilegedJob(drives, frozenset({linux.CAP_SYS_ADMIN})),
    # SMBIOS is read by what another job may (CAP_DAC_READ_SEARCH): a second opinion is not worth it alone.
    "registers": PrivilegedJob(registers, frozenset({linux.CAP_SYS_ADMIN})),
    "waits": PrivilegedJob(waits, frozenset()),
    "traffic": PrivilegedJob(traffic, frozenset()),
    # /proc/PID/io, environ and fd of others: their owner's alone to open (DAC), and to be traced (PTRACE).
    "processes": PrivilegedJob(processes, frozenset({linux.CAP_SYS_PTRACE, linux.CAP_DAC_READ_SEARCH})),
}


def simulator(sockets: Sequence[socket.socket], arguments: Mapping[str, Any], _marks: mmap.mmap) -> None:
    """Write the simulated host's moving files; the first answer comes when they are all there, then its uevents."""
    from gpuhost_exporter.sim.tree import Tree

    pipe = Pipe(sockets[0])
    tree = Tree(arguments["control"], arguments["folder"], SystemClock())
    tree.write()
    send_answer(pipe, "written")
    while True:
        # Just before the wall second on which the collectors read.
        pause = 1.0 - (time.time() + 0.25) % 1.0
        if select.select([sockets[0]], [], [], pause)[0]:
            return
        for event in tree.write():
            send_answer(pipe, event)
