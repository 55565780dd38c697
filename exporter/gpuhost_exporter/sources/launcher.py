"""The launcher: a small process, forked before any thread starts, that forks, kills and reaps the readers.

The exporter itself keeps no capability after the start; the launcher keeps what readers may need and hands each
only its own. It has no network and does nothing but this, so that a reader can be started again at any time in
a few milliseconds, with the interpreter's memory shared.

    exporter -> launcher   {"do": "spawn", "number": 7, "reader": "nvml", "arguments": {...}} + sockets by SCM_RIGHTS
                           {"do": "kill", "pid": 4711}
    launcher -> exporter   {"spawned": 4711, "number": 7} | {"exited": 4711, "status": -11}
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import mmap
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gpuhost_exporter.errors import Gone, Unavailable
from gpuhost_exporter.sources import linux

log = logging.getLogger(__name__)

_MESSAGE = 65536
_SPAWN_SECONDS = 10.0
_MOST_SOCKETS = 24


@dataclass(frozen=True, slots=True)
class ReaderKind:
    """Where a reader's main(sockets, arguments, marks) is, and the capabilities that it may keep."""

    main: str
    capabilities: frozenset[int]


class Launcher:
    """The exporter's side. Safe to call from any thread.

    A launcher that has gone took its readers along: then spawn raises Unavailable, kill has nothing to do, and every
    reader counts as killed. It cannot be started again, for the exporter has given up what it would need.
    """

    def __init__(self, pid: int, sock: socket.socket, marks: mmap.mmap) -> None:
        self.pid = pid
        self.marks = marks
        self._socket = sock
        self._lock = threading.Lock()
        self._exited: dict[int, int] = {}
        self._spawned: dict[int, int] = {}
        self._requests = 0
        self._given_up: set[int] = set()

    @classmethod
    def start(cls, kinds: Mapping[str, ReaderKind]) -> Launcher:
        """Fork the launcher. Call it before the first thread starts and before giving up capabilities."""
        marks = mmap.mmap(-1, mmap.PAGESIZE)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        _freeze()
        pid = os.fork()
        if pid == 0:
            ours.close()
            status = 1
            try:
                linux.die_with_parent(parent)
                _Server(theirs, marks, kinds).run()
                status = 0
            finally:
                os._exit(status)
        theirs.close()
        return cls(pid, ours, marks)

    def spawn(self, reader: str, arguments: Mapping[str, Any], sockets: Sequence[socket.socket]) -> int:
        """Start a reader and hand it these sockets; its pid. The sockets are closed on this side."""
        with self._lock:
            self._requests += 1
            number = self._requests
            request = {"do": "spawn", "number": number, "reader": reader, "arguments": arguments}
            try:
                socket.send_fds(self._socket, [json.dumps(request).encode()], [sock.fileno() for sock in sockets])
                deadline = time.monotonic() + _SPAWN_SECONDS
                while number not in self._spawned:
                    if not self._receive(deadline - time.monotonic()):
                        self._given_up.add(number)
                        raise Unavailable("the launcher does not answer")
            except OSError as error:
                raise Unavailable(f"the launcher has gone: {error}") from error
            finally:
                for sock in sockets:
                    sock.close()
            return self._spawned.pop(number)

    def kill(self, pid: int) -> None:
        with self._lock, suppress(OSError):
            self._send_kill(pid)

    def exit_status(self, pid: int, wait: float = 0.0) -> int | None:
        """How a reader ended (exit code, or minus the signal); None while it still exists."""
        deadline = time.monotonic() + wait
        while True:
            with self._lock:
                try:
                    while pid not in self._exited and self._receive(0.0):
                        pass
                except OSError:
                    return -signal.SIGKILL
                if pid in self._exited:
                    return self._exited[pid]
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.01)

    def ended(self) -> bool:
        """Whether the launcher itself has gone, and with it every reader. Reaps it."""
        try:
            return os.waitpid(self.pid, os.WNOHANG)[0] != 0
        except ChildProcessError:
            return True

    def close(self) -> None:
        """End the launcher and every reader. What the kernel cannot kill is left to it."""
        self._socket.close()
        deadline = time.monotonic() + 3.0
        while time.monotonic() < deadline:
            if self.ended():
                return
            time.sleep(0.01)
        log.error("launcher %d does not end: a reader may be stuck in the kernel", self.pid)

    def _send_kill(self, pid: int) -> None:
        self._socket.send(json.dumps({"do": "kill", "pid": pid}).encode())

    def _receive(self, timeout: float) -> bool:
        """Take one message, waiting at most this long; whether there was one. OSError when the launcher has gone."""
        if not select.select([self._descriptor()], [], [], max(0.0, timeout))[0]:
            return False
        payload = self._socket.recv(_MESSAGE)
        if not payload:
            raise ConnectionResetError("end of file")
        message = json.loads(payload)
        if "exited" in message:
            self._exited[message["exited"]] = message["status"]
        elif message["number"] in self._given_up:
            self._given_up.discard(message["number"])
            self._send_kill(message["spawned"])
        else:
            self._spawned[message["number"]] = message["spawned"]
        return True

    def _descriptor(self) -> int:
        descriptor = self._socket.fileno()
        if descriptor < 0:
            raise ConnectionResetError("closed")
        return descriptor


def _freeze() -> None:
    """Before a fork: objects that the garbage collector leaves alone stay in memory that both processes share."""
    gc.collect()
    gc.freeze()


class _Server:
    """The launcher process itself: one thread, so that fork is safe."""

    def __init__(self, sock: socket.socket, marks: mmap.mmap, kinds: Mapping[str, ReaderKind]) -> None:
        self._socket = sock
        self._marks = marks
        self._kinds = kinds
        self._children: set[int] = set()

    def run(self) -> None:
        # A terminal's Ctrl-C and systemd's SIGTERM reach every process of the group; readers end with the exporter.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        linux.name_process("gpuhost-launcher")
        linux.keep_capabilities(frozenset().union(*(kind.capabilities for kind in self._kinds.values())))
        linux.forbid_internet()
        woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake)
        try:
            while True:
                ready = select.select([self._socket.fileno(), woken], [], [])[0]
                if woken in ready:
                    os.read(woken, 4096)
                    self._reap()
                if self._socket.fileno() in ready and not self._serve(woken, wake):
                    return
        finally:
            self._end_all()

    def _serve(self, *private: int) -> bool:
        payload, descriptors, _, _ = socket.recv_fds(self._socket, _MESSAGE, _MOST_SOCKETS)
        if not payload:
            return False
        request = json.loads(payload)
        if request["do"] == "kill":
            if request["pid"] in self._children:
                os.kill(request["pid"], signal.SIGKILL)
            return True
        kind = self._kinds[request["reader"]]
        module, _, function = kind.main.partition(":")
        main = getattr(importlib.import_module(module), function)
        _freeze()
        launcher = os.getpid()
        pid = os.fork()
        if pid == 0:
            linux.name_process(f"gpuhost-{request['reader']}")
            self._become(main, kind, request["arguments"], descriptors, launcher, private)
        self._children.add(pid)
        for descriptor in descriptors:
            os.close(descriptor)
        self._socket.send(json.dumps({"spawned": pid, "number": request["number"]}).encode())
        return True

    def _become(
        self,
        main: Any,
        kind: ReaderKind,
        arguments: Mapping[str, Any],
        descriptors: Sequence[int],
        launcher: int,
        private: Sequence[int],
    ) -> None:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            linux.die_with_parent(launcher)
            self._socket.close()
            for descriptor in private:
                os.close(descriptor)
            linux.keep_capabilities(kind.capabilities)
            main([socket.socket(fileno=descriptor) for descriptor in descriptors], arguments, self._marks)
            status = 0
        except Gone:
            status = 0  # the exporter closed the pipe: the ordinary end
        except Exception:
            log.exception("reader %s failed", kind.main)
        finally:
            os._exit(status)

    def _reap(self) -> None:
        while self._children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._children.discard(pid)
            message = {"exited": pid, "status": os.waitstatus_to_exitcode(status)}
            try:
                self._socket.send(json.dumps(message).encode())
            except OSError:
                return

    def _end_all(self) -> None:
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 2.0
        while self._children and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.005)
