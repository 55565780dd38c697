"""The process that probes: a Prober with sockets, each connected to one neighbour by the exporter.

Unlike the other readers it listens to the network, so the exporter trusts it with nothing: it holds no capability, can
open, connect or start nothing, and what it tells is JSON, never a pickle.

    exporter -> prober   {"started": true, "peer": "gpu-b"}           perftest's server, as asked
                         {"ended": "client"}
    prober -> exporter   {"state": "ok", "message": ""}
                         {"peer": "gpu-b", "seconds": [4.1e-05, ...], "sent": 46, "lost": 0}
                         {"peer": "gpu-b", "transport": "tcp", "skipped": "peer_busy"}
                         {"peer": "gpu-b", "rejected": "forged", "count": 3}
                         {"run": "server", "peer": "gpu-b"}
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from gpuhost_exporter.errors import SourceError
from gpuhost_exporter.sources import linux
from gpuhost_exporter.sources.latency import keys
from gpuhost_exporter.sources.latency.message import SIZE
from gpuhost_exporter.sources.latency.plan import Plan
from gpuhost_exporter.sources.latency.prober import Hooks, Prober
from gpuhost_exporter.sources.pipe import Pipe, recv_requests, send_request

_KEYS_SECONDS = 30.0  # from one look at the file of keys to the next
_UNREAD_SECONDS = 1.0


def now() -> float:
    """Seconds of a clock that neither people nor NTP change the rate of."""
    return time.clock_gettime(time.CLOCK_MONOTONIC_RAW)


def latency(sockets: Sequence[socket.socket], arguments: Mapping[str, Any], _marks: object) -> None:
    """Probe and answer until the exporter goes. The sockets: its pipe, then the neighbours' in the plan's order."""
    linux.keep_connections()
    plan = Plan.of(arguments["plan"])
    Reader(Pipe(sockets[0]), dict(zip(plan.neighbours, sockets[1:], strict=True)), plan, arguments["key_file"]).run()


class Reader:
    def __init__(self, pipe: Pipe, sockets: Mapping[str, socket.socket], plan: Plan, key_file: str) -> None:
        self._pipe = pipe
        self._sockets = sockets
        self._plan = plan
        self._key_file = key_file
        self._keys_stamp: tuple[int, int] | None = None
        self._keys_failure: str | None = None
        self._rejected: Counter[tuple[str, str]] = Counter()
        self._prober: Prober | None = None
        for sock in sockets.values():
            sock.setblocking(False)

    def run(self) -> None:
        keys_due = now()
        while True:
            if now() >= keys_due:
                self._look_at_keys()
                self._tell_rejected()
                keys_due = now() + _KEYS_SECONDS
            due = min(keys_due, self._prober.tick()) if self._prober else keys_due
            readable = self._readable()
            if self._prober and len(readable) < len(self._sockets):
                due = min(due, now() + _UNREAD_SECONDS)
            descriptors = [self._pipe.fileno(), *readable]
            for descriptor in select.select(descriptors, [], [], max(0.0, due - now()))[0]:
                if descriptor in readable:
                    self._read(readable[descriptor])
                else:
                    for message in recv_requests(self._pipe):
                        self._told(message)

    def _readable(self) -> dict[int, str]:
        """The sockets of those who may be heard. Who sends more is left to the kernel's buffer, which is small."""
        prober = self._prober
        return {sock.fileno(): peer for peer, sock in self._sockets.items() if prober and prober.may_read(peer)}

    def _read(self, peer: str) -> None:
        assert self._prober
        with suppress(OSError):  # nothing there after all, or the peer's host has no such port: no answer either
            datagram = self._sockets[peer].recv(SIZE + 1)
            self._prober.received(peer, datagram, now())

    def _told(self, message: Mapping[str, Any]) -> None:
        assert self._prober
        if "started" in message:
            self._prober.server_started(message["peer"], started=message["started"])
        else:
            self._prober.perftest_ended(message["ended"])

    def _look_at_keys(self) -> None:
        """Read the file anew when it has changed. Without keys nobody is asked or answered; bad ones leave the last."""
        try:
            status = os.stat(self._key_file)
            stamp = status.st_mtime_ns, status.st_ino
        except OSError:
            stamp = None  # keys.load says why
        if stamp is not None and stamp == self._keys_stamp:
            return
        try:
            ring = keys.load(self._key_file)
        except SourceError as error:
            self._tell_state(error.kind, str(error))
            return
        self._keys_stamp = stamp
        self._tell_state("ok", "")
        if self._prober is None:
            self._prober = Prober(self._plan, ring, self._hooks())
        self._prober.keys = ring

    def _hooks(self) -> Hooks:
        return Hooks(
            now=now,
            send=self._send,
            random=os.urandom,
            run=lambda role, peer: send_request(self._pipe, {"run": role, "peer": peer}),
            finished=lambda peer, seconds, sent, lost: send_request(
                self._pipe, {"peer": peer, "seconds": seconds, "sent": sent, "lost": lost}
            ),
            skipped=lambda peer, transport, reason: send_request(
                self._pipe, {"peer": peer, "transport": transport, "skipped": reason}
            ),
            rejected=self._reject,
        )

    def _send(self, peer: str, datagram: bytes) -> float:
        at = now()
        with suppress(OSError):  # no route, no such port, a full queue: it counts as lost when no answer comes
            self._sockets[peer].send(datagram)
        return at

    def _reject(self, peer: str, reason: str) -> None:
        self._rejected[peer, reason] += 1

    def _tell_rejected(self) -> None:
        """In bulk: what strangers send must not become as many messages to the exporter."""
        for (peer, reason), count in self._rejected.items():
            send_request(self._pipe, {"peer": peer, "rejected": reason, "count": count})
        self._rejected.clear()

    def _tell_state(self, kind: str, message: str) -> None:
        if self._keys_failure != message:
            self._keys_failure = message
            send_request(self._pipe, {"state": kind, "message": message})
