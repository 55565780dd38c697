"""HTTP for a handful of scrapers that no other client can delay: threads over plain sockets, parsed by h11.

One thread accepts. A client gets a small thread of its own when its first bytes come, so those who never say
anything cost next to nothing; who overstays (Limits) is ended, and at the cap the crowd decides who gives way.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.specs import Sample, counter, gauge
from gpuhost_exporter.web.connection import Connection, Limits, Refused
from gpuhost_exporter.web.crowd import Counts, Crowd, Newcomer, first_to_go
from gpuhost_exporter.web.listen import bound_address, listen
from gpuhost_exporter.web.message import Handler, Request, Response, text

if TYPE_CHECKING:
    from gpuhost_exporter.web.webconfig import WebConfig

log = logging.getLogger(__name__)

OPEN = gauge("gpuhost_exporter_connections_open", "Connections of clients to the exporter's port now, idle ones too.")
ACCEPTED = counter("gpuhost_exporter_connections_total", "Connections accepted.")
EVICTED = counter(
    "gpuhost_exporter_connections_evicted_total",
    "Connections closed by the exporter, by why: for another client's sake (crowded), or because the client was too "
    "slow in its handshake, its request or its reading (slow).",
    "reason",
)
REQUESTS = counter("gpuhost_exporter_requests_total", "HTTP requests answered, by status code.", "code")
SPECS = (OPEN, ACCEPTED, EVICTED, REQUESTS)

_STACK_BYTES = 512 << 10
_CLOSE_SECONDS = 0.5
_ACCEPT_AT_ONCE = 64


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
        self._listeners: dict[int, socket.socket] = {}
        self._newcomers: dict[int, Newcomer] = {}  # by descriptor, the oldest first; the accepting thread's own
        self._poll = select.poll()
        self._crowd = Crowd(self._limits)
        self._thread = threading.Thread(target=self._accept_forever, name="web", daemon=True)
        self._stopping = False
        self._fault = ""

    @property
    def addresses(self) -> tuple[str, ...]:
        """HOST:PORT of each listening socket, as really bound."""
        return tuple(bound_address(listener) for listener in self._listeners.values())

    def counts(self) -> Counts:
        return self._crowd.counts(len(self._newcomers))

    def samples(self) -> Iterator[Sample]:
        counts = self.counts()
        yield OPEN(value=counts.open)
        yield ACCEPTED(value=counts.accepted)
        yield EVICTED("crowded", value=counts.evicted)
        yield EVICTED("slow", value=counts.timed_out)
        for code, requests in sorted(counts.requests.items()):
            yield REQUESTS(str(code), value=requests)

    def start(self) -> None:
        try:
            for address in self._wanted:
                listener = listen(address)
                self._listeners[listener.fileno()] = listener
        except ConfigError:
            self._close_listeners()
            raise
        self._thread.start()

    def close(self) -> None:
        """Stop accepting, give answers under way half a second, end every connection. For a started server."""
        self._stopping = True
        os.eventfd_write(self._crowd.departures, 1)
        self._thread.join()
        self._close_listeners()
        self._crowd.disperse(_CLOSE_SECONDS)

    def _close_listeners(self) -> None:
        while self._listeners:
            self._listeners.popitem()[1].close()

    # In the accepting thread.

    def _accept_forever(self) -> None:
        tick = min(1.0, self._limits.head_seconds / 10, self._limits.write_seconds / 10)
        departures = select.poll()
        departures.register(self._crowd.departures, select.POLLIN)
        for descriptor in (self._crowd.departures, *self._listeners):
            self._poll.register(descriptor, select.POLLIN)
        while not self._stopping:
            anyone = self._newcomers or self._crowd.present()
            ready = [descriptor for descriptor, _ in self._poll.poll(tick * 1000 if anyone else None)]
            now = time.monotonic()
            self._crowd.reap(now)
            spoken = [self._newcomers[descriptor] for descriptor in ready if descriptor in self._newcomers]
            for place, newcomer in enumerate(sorted(spoken, key=lambda one: one.since)):
                if not self._crowd.has_room():
                    self._crowd.make_room(len(spoken) - place)
                    departures.poll(10)
                    if not self._crowd.has_room():
                        break
                self._begin(self._no_longer_new(newcomer.sock.fileno()))
            self._dismiss_silent(now)
            for descriptor in ready:
                if descriptor in self._listeners:
                    for _ in range(_ACCEPT_AT_ONCE):
                        if not self._accept(self._listeners[descriptor], now):
                            break
                elif descriptor == self._crowd.departures:
                    os.eventfd_read(descriptor)
        for descriptor in tuple(self._newcomers):
            self._no_longer_new(descriptor).sock.close()

    def _accept(self, listener: socket.socket, now: float) -> bool:
        """False when nobody is waiting."""
        try:
            sock, address = listener.accept()
            sock.setblocking(True)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BlockingIOError:
            return False
        except OSError as error:
            self._log_fault(f"cannot accept a connection: {error}")
            time.sleep(0.05)  # out of file descriptors: the listener stays ready
            return False
        if len(self._newcomers) >= self._limits.newcomers:
            victim = first_to_go(self._newcomers.values())[0]
            self._no_longer_new(victim.sock.fileno()).sock.close()
            self._crowd.note(evicted=1)
        self._newcomers[sock.fileno()] = Newcomer(sock, address[0].removeprefix("::ffff:"), now)
        self._poll.register(sock.fileno(), select.POLLIN)
        self._crowd.note(accepted=1)
        return True

    def _no_longer_new(self, descriptor: int) -> Newcomer:
        self._poll.unregister(descriptor)
        return self._newcomers.pop(descriptor)

    def _dismiss_silent(self, now: float) -> None:
        before = now - self._limits.head_seconds
        for descriptor, newcomer in tuple(self._newcomers.items()):
            if newcomer.since > before:
                return
            self._no_longer_new(descriptor).sock.close()
            self._crowd.note(timed_out=1)

    def _begin(self, newcomer: Newcomer) -> None:
        sock, handshake = newcomer.sock, None
        context = self._web_config.current().tls if self._web_config else None
        if context:
            try:
                sock = secure = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            except OSError:
                newcomer.sock.close()  # it has hung up
                return
            handshake = secure.do_handshake
        deadline = newcomer.since + self._limits.head_seconds
        connection = Connection(sock, newcomer.remote, deadline, self._limits, handshake)
        self._crowd.enter(connection)
        thread = threading.Thread(target=self._serve, args=(connection,), name="web-client", daemon=True)
        default = threading.stack_size(_STACK_BYTES)
        try:
            thread.start()
        except RuntimeError as error:  # no more threads
            self._log_fault(str(error))
            self._crowd.leave(connection)
        finally:
            threading.stack_size(default)

    # In the connection's thread.

    def _serve(self, connection: Connection) -> None:
        try:
            for request in connection.requests():
                policy = self._web_config.current() if self._web_config else None
                refusal = policy.refusal(request) if policy else None
                with self._crowd.answering():
                    response = refusal or self._answer(request)
                    self._crowd.note_request(response.status)
                    connection.send(policy.with_headers(response) if policy else response)
                    del response
        except Refused as refused:
            self._crowd.note_request(refused.status)
            with suppress(OSError):
                connection.refuse(text(refused.status, str(refused)))
        except OSError as error:
            log.debug("%s: %s", connection.remote, error)
        finally:
            self._crowd.leave(connection)

    def _answer(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return text(405, "only GET and HEAD", ("Allow", "GET, HEAD"))
        try:
            return self._handler(request)
        except Exception as error:  # noqa: BLE001 -- one page's bug must not take the others down
            self._log_fault(f"{request.path}: {type(error).__name__}: {error}", error)
            return text(500, "internal error; the exporter's log says more")

    def _log_fault(self, fault: str, error: Exception | None = None) -> None:
        """Once per change."""
        if fault != self._fault:
            self._fault = fault
            log.error("web: %s", fault, exc_info=error)


def _load(web_config_file: str) -> WebConfig:
    from gpuhost_exporter.web.webconfig import WebConfig  # ssl, yaml and bcrypt take 7 MiB

    return WebConfig.load(web_config_file)
