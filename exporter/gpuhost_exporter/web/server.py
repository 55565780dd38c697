"""HTTP for a handful of scrapers that no other client can delay: threads over plain sockets, parsed by h11.

One thread accepts, and ends connections that overstay (Limits); each connection has a small thread of its own.
At the cap the connection that has waited longest without a complete request gives way, from the address that
holds most of them, so that one host's flood costs that host. A request that is being worked on is never ended.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.web.connection import Connection, Limits, Refused
from gpuhost_exporter.web.listen import bound_address, listen
from gpuhost_exporter.web.message import Handler, Request, Response, text

if TYPE_CHECKING:
    from gpuhost_exporter.web.webconfig import WebConfig

log = logging.getLogger(__name__)

_STACK_BYTES = 512 << 10
_STALLED_SECONDS = 0.2
_CLOSE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Counts:
    """Since the start, but for `open`, which is now."""

    open: int
    accepted: int
    evicted: int  # gave way to another client
    timed_out: int  # too slow in its handshake, request head or reading; not those that were idle
    requests: Mapping[int, int]  # by status code


class Server:
    """`start()` returns when it listens. ConfigError from the web configuration file or an address."""

    def __init__(
        self,
        addresses: Sequence[str],
        handler: Handler,
        web_config_file: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._wanted = tuple(addresses)
        self._handler = handler
        self._web_config = _load(web_config_file) if web_config_file else None
        self._limits = limits or Limits()
        self._listeners: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept_forever, name="web", daemon=True)
        self._stopping = False
        self._fault = ""
        self._lock = threading.Lock()  # guards what follows
        self._connections: set[Connection] = set()
        self._wakeup = -1
        self._accepted = self._evicted = self._timed_out = 0
        self._requests: Counter[int] = Counter()

    @property
    def addresses(self) -> tuple[str, ...]:
        """HOST:PORT of each listening socket, as really bound."""
        return tuple(bound_address(listener) for listener in self._listeners)

    def counts(self) -> Counts:
        with self._lock:
            return Counts(len(self._connections), self._accepted, self._evicted, self._timed_out, dict(self._requests))

    def start(self) -> None:
        try:
            for address in self._wanted:
                self._listeners.append(listen(address))
        except ConfigError:
            self._close_listeners()
            raise
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread.start()

    def close(self) -> None:
        """Stop accepting, give answers under way half a second, end every connection. For a started server."""
        self._stopping = True
        os.eventfd_write(self._wakeup, 1)
        self._thread.join()
        self._close_listeners()
        until = time.monotonic() + _CLOSE_SECONDS
        while (left := self._open()) and time.monotonic() < until:
            for connection in left:
                if connection.phase != "write":
                    connection.end()
            time.sleep(0.005)
        for connection in self._open():
            connection.end(even_answering=True)
        with self._lock:
            os.close(self._wakeup)
            self._wakeup = -1

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()

    def _open(self) -> tuple[Connection, ...]:
        with self._lock:
            return tuple(self._connections)

    # In the accepting thread.

    def _accept_forever(self) -> None:
        tick = min(1.0, self._limits.head_seconds / 10, self._limits.write_seconds / 10)
        wakeups, everything = select.poll(), select.poll()
        wakeups.register(self._wakeup, select.POLLIN)
        everything.register(self._wakeup, select.POLLIN)
        listeners = {listener.fileno(): listener for listener in self._listeners}
        for descriptor in listeners:
            everything.register(descriptor, select.POLLIN)
        while not self._stopping:
            connections = self._open()
            if len(connections) >= self._limits.connections:
                self._make_way(connections)
                ready = wakeups.poll(50)
            else:
                ready = everything.poll(tick * 1000 if connections else None)
            self._reap()
            for descriptor, _ in ready:
                if descriptor in listeners:
                    self._accept(listeners[descriptor])
                else:
                    os.eventfd_read(descriptor)

    def _make_way(self, connections: Sequence[Connection]) -> None:
        if any(connection.ended for connection in connections):
            return  # one is on its way out
        waiting = [connection for connection in connections if connection.phase in ("head", "idle", "linger")]
        crowd = Counter(connection.remote for connection in waiting)
        waiting.sort(key=lambda connection: (-crowd[connection.remote], connection.since))
        self._evict(waiting or self._stalled(connections))

    def _stalled(self, connections: Iterable[Connection]) -> list[Connection]:
        """Those whose client takes nothing of its answer, the longest first."""
        before = time.monotonic() - _STALLED_SECONDS
        stalled = [
            connection
            for connection in connections
            if connection.phase == "write" and connection.since < before and not connection.ended
        ]
        return sorted(stalled, key=lambda connection: connection.since)

    def _evict(self, candidates: Iterable[Connection]) -> bool:
        evicted = any(connection.end() for connection in candidates)
        with self._lock:
            self._evicted += evicted
        return evicted

    def _reap(self) -> None:
        now = time.monotonic()
        for connection in self._open():
            if now >= connection.deadline:
                slow = connection.phase in ("head", "write")
                if connection.end() and slow:
                    with self._lock:
                        self._timed_out += 1

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, address = listener.accept()
        except BlockingIOError:
            return  # it hung up before we came
        except OSError as error:
            self._log_fault(f"cannot accept a connection: {error}")
            time.sleep(0.05)  # out of file descriptors: the listener stays ready
            return
        try:
            sock.setblocking(True)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            handshake = None
            context = self._web_config.current().tls if self._web_config else None
            if context:
                sock = secure = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                handshake = secure.do_handshake
        except OSError:
            sock.close()
            return
        self._begin(Connection(sock, address[0].removeprefix("::ffff:"), self._limits, handshake))

    def _begin(self, connection: Connection) -> None:
        thread = threading.Thread(target=self._serve, args=(connection,), name="web-client", daemon=True)
        with self._lock:
            self._connections.add(connection)
            self._accepted += 1
        default = threading.stack_size(_STACK_BYTES)
        try:
            thread.start()
        except RuntimeError as error:  # no more threads
            self._log_fault(str(error))
            self._forget(connection)
        finally:
            threading.stack_size(default)

    # In the connection's thread.

    def _serve(self, connection: Connection) -> None:
        try:
            for request in connection.requests():
                response = self._answer(request)
                self._make_room(len(response.body))
                self._record(response.status)
                connection.send(response)
        except Refused as refused:
            self._record(refused.status)
            with suppress(OSError):
                connection.refuse(text(refused.status, str(refused)))
        except OSError as error:
            log.debug("%s: %s", connection.remote, error)
        finally:
            self._forget(connection)

    def _answer(self, request: Request) -> Response:
        policy = self._web_config.current() if self._web_config else None
        if request.method not in ("GET", "HEAD"):
            response = text(405, "only GET and HEAD", ("Allow", "GET, HEAD"))
        else:
            response = (policy and policy.refusal(request)) or self._handled(request)
        return policy.with_headers(response) if policy else response

    def _handled(self, request: Request) -> Response:
        try:
            return self._handler(request)
        except Exception as error:  # noqa: BLE001 -- one page's bug must not take the others down
            self._log_fault(f"{request.path}: {type(error).__name__}: {error}", error)
            return text(500, "internal error; the exporter's log says more")

    def _make_room(self, size: int) -> None:
        """Keep what clients have asked for and do not read from filling the memory."""
        while True:
            connections = [connection for connection in self._open() if not connection.ended]
            unsent = sum(connection.unsent for connection in connections)
            if unsent + size <= self._limits.unsent_bytes or not self._evict(self._stalled(connections)):
                return

    def _record(self, status: int) -> None:
        with self._lock:
            self._requests[status] += 1

    def _forget(self, connection: Connection) -> None:
        connection.close()
        with self._lock:
            full = len(self._connections) >= self._limits.connections
            self._connections.discard(connection)
            if full and self._wakeup >= 0:
                os.eventfd_write(self._wakeup, 1)

    def _log_fault(self, fault: str, error: Exception | None = None) -> None:
        """Once per change."""
        if fault != self._fault:
            self._fault = fault
            log.error("web: %s", fault, exc_info=error)


def _load(web_config_file: str) -> WebConfig:
    from gpuhost_exporter.web.webconfig import WebConfig  # ssl, yaml and bcrypt take 7 MiB

    return WebConfig.load(web_config_file)
