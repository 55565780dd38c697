"""The exporter's side of the prober: opens its sockets, starts it again when it ends, and runs perftest for it.

Each socket is connected to one neighbour's address before the prober gets it. So the kernel hands it nothing from any
other host, and nothing that the prober does reaches one.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Mapping
from typing import Any

from gpuhost_exporter.clock import Clock
from gpuhost_exporter.errors import Malformed, SourceError, Transient
from gpuhost_exporter.latency.settings import LatencySettings
from gpuhost_exporter.sources.latency.perftest import Program
from gpuhost_exporter.sources.latency.results import (
    RDMA,
    REJECTED,
    SKIPPED,
    TCP,
    Rejections,
    Result,
    Results,
    Round,
    Skipped,
)
from gpuhost_exporter.sources.latency.trials import Trials
from gpuhost_exporter.sources.launcher import Launcher
from gpuhost_exporter.sources.pipe import Pipe, pair, recv_requests, send_request

log = logging.getLogger(__name__)

_LONGEST_PAUSE = 60.0
_BUFFER_BYTES = 32768  # of a socket: some tens of datagrams, and no more from who sends without end
_MOST_MESSAGES = 100_000
_LONGEST_SECONDS = 3600.0
_LONGEST_TEXT = 300


class LatencyClient:
    def __init__(self, launcher: Launcher, settings: LatencySettings, results: Results, clock: Clock) -> None:
        self._launcher = launcher
        self._settings = settings
        self._results = results
        self._clock = clock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="latency", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def _run(self) -> None:
        pause = 1.0
        while not self._stopping.is_set():
            ours, theirs = pair()
            pipe = Pipe(ours)
            began = self._clock.now()
            try:
                try:
                    sockets = open_sockets(self._settings)
                except SourceError:
                    theirs.close()
                    raise
                self._launcher.spawn("latency", self._arguments(), [theirs, *sockets])
                self._serve(pipe)
            except (SourceError, ValueError) as error:
                if not self._stopping.is_set():
                    kind = error.kind if isinstance(error, SourceError) else Malformed.kind
                    self._results.tell(kind, f"the prober ended: {error}")
                    log.warning("latency: the prober ended: %s", error)
            finally:
                pipe.close()
            if self._clock.now() - began > _LONGEST_PAUSE:
                pause = 1.0
            self._stopping.wait(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _arguments(self) -> dict[str, Any]:
        settings = self._settings
        plan = {
            "name": settings.name,
            "targets": settings.targets(),
            "neighbours": settings.neighbours(),
            "interval": settings.interval,
            "messages": settings.messages,
            "rdma": settings.rdma is not None,
        }
        return {"plan": plan, "key_file": settings.key_file}

    def _serve(self, pipe: Pipe) -> None:
        """Take what the prober tells until it goes: raises Gone then, and Malformed for what it should not tell."""
        trials = Trials(self._settings, self._results, self._clock)
        try:
            while True:
                trials.begin_due()
                waiting: list[Pipe | Program] = [pipe, *trials.running()]
                ready = select.select(waiting, [], [], trials.pause())[0]
                for role in trials.read(ready):
                    send_request(pipe, {"ended": role})
                for message in recv_requests(pipe) if pipe in ready else ():
                    self._heard(pipe, message, trials)
        finally:
            trials.stop()

    def _heard(self, pipe: Pipe, message: Mapping[str, Any], trials: Trials) -> None:
        if "state" in message:
            self._results.tell(str(message["state"]), str(message.get("message"))[:_LONGEST_TEXT])
            return
        peer = message.get("peer")
        if peer not in self._settings.neighbours():
            raise Malformed(f"a message about {peer!r}, which is no neighbour")
        if "run" not in message:
            self._results.put(parse(message, self._clock.wall()))
        elif message["run"] == "server":
            send_request(pipe, {"started": trials.start("server", peer), "peer": peer})
        elif message["run"] == "client" and not trials.start("client", peer):
            send_request(pipe, {"ended": "client"})


def parse(message: Mapping[str, Any], wall: float) -> Result:
    """What the prober tells of a peer, at that time. Raises Malformed: it reads what comes from the network."""
    peer = str(message.get("peer"))
    if message.get("transport") in (TCP, RDMA) and message.get("skipped") in SKIPPED:
        return Skipped(peer, message["transport"], message["skipped"])
    count, sent, lost = message.get("count"), message.get("sent"), message.get("lost")
    if message.get("rejected") in REJECTED and isinstance(count, int) and count > 0:
        return Rejections(peer, message["rejected"], count)
    seconds = message.get("seconds")
    if not isinstance(sent, int) or not isinstance(lost, int) or not isinstance(seconds, list):
        raise Malformed(f"neither a round nor a reason for none: {sorted(message)}")
    if not 0 <= lost <= sent <= _MOST_MESSAGES or len(seconds) > sent:
        raise Malformed(f"{len(seconds)} round trips of {sent} messages, {lost} of them lost")
    if not all(isinstance(value, float) and 0.0 <= value < _LONGEST_SECONDS for value in seconds):
        raise Malformed("a round trip that is no time")
    return Round(peer, TCP, tuple(seconds), sent, lost, wall)


def open_sockets(settings: LatencySettings) -> list[socket.socket]:
    """A datagram socket to each neighbour, all on this host's one address and port. Raises Transient."""
    sockets: list[socket.socket] = []
    try:
        family = socket.AF_INET6 if ":" in settings.hosts[settings.neighbours()[0]][0] else socket.AF_INET
        # Sockets that share a port share it with any other of this user: a second exporter must not go unnoticed.
        with socket.socket(family, socket.SOCK_DGRAM) as alone:
            alone.bind(settings.listen)
        for peer in settings.neighbours():
            sock = socket.socket(family, socket.SOCK_DGRAM)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            sock.bind(settings.listen)
            sock.connect(settings.hosts[peer])
    except OSError as error:
        for sock in sockets:
            sock.close()
        host, port = settings.listen
        raise Transient(f"a socket from {host or 'any address'} port {port}: {error.strerror}") from error
    return sockets
