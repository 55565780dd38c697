"""One client's connection: TLS, then requests and answers one after the other, in a thread of its own.

The thread blocks without time limits. The server reads `phase`, `since` and `deadline` and
ends a connection from outside by shutting its socket down, which wakes the thread.
"""

from __future__ import annotations

import math
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal

import h11

from gpuhost_exporter.web.message import Request, Response

# handshake or head: no complete request yet; idle: between requests; linger: answered, input thrown away
Phase = Literal["head", "idle", "answer", "write", "linger"]

HEAD_BYTES = 16 << 10
_RECEIVE = 8 << 10
_CHUNK = 64 << 10
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 16 << 20
_AUTHORITY = re.compile(r"\Ahttps?://[^/?]*", re.IGNORECASE)
_PLAIN_ON_TLS = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"This port speaks HTTPS; the request came as plain HTTP.\n"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may take. Seconds and bytes; none is extended by sending or reading drop by drop."""

    connections: int = 40  # that have begun to speak, each with a thread
    newcomers: int = 400  # that have not
    head_seconds: float = 10  # TLS handshake and the first request's head together; each later head
    idle_seconds: float = 75  # longer than the usual scrape intervals, so that Prometheus can reuse it
    write_seconds: float = 30  # one response
    answers: int = 4  # made and sent at a time: their bytes are in memory


class Refused(Exception):
    """The client broke the protocol; `status` is what to answer."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Connection:
    """`sock` is connected and blocking; `handshake` is what an ssl.SSLSocket still has to do."""

    def __init__(
        self,
        sock: socket.socket,
        remote: str,
        deadline: float,
        limits: Limits,
        handshake: Callable[[], None] | None = None,
    ) -> None:
        self.remote = remote
        self.phase: Phase = "head"
        self.since = time.monotonic()  # when the present wait began, or the last bytes were taken
        self.deadline = deadline  # for the first request's head
        self.ended = False  # by the server
        self._sock = sock
        self._handshake = handshake
        self._limits = limits
        self._lock = threading.Lock()
        self._closed = False
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        self._method = ""
        self._body_follows = False

    def end(self, *, even_answering: bool = False) -> bool:
        """Wake the thread out of its wait, for good. False when there is nothing to end."""
        with self._lock:
            if self._closed or self.ended or (self.phase == "answer" and not even_answering):
                return False
            self.ended = True
            self._shutdown(socket.SHUT_RDWR)
            return True

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._sock.close()

    def requests(self) -> Iterator[Request]:
        """Each complete request; the caller answers it by send() before it asks for the next.

        Raises Refused where the client breaks the protocol, OSError where it goes away.
        """
        if self._handshake:
            self._shake_hands(self._handshake)
        while True:
            request = self._next_request()
            if request is None or not self._enter_answer():
                return
            yield request
            if self._body_follows:
                self._linger()
                return
            if self._http.our_state is not h11.DONE:
                return
            self._http.start_next_cycle()
            if not self._http.trailing_data[0]:
                self._wait("idle", self._limits.idle_seconds)
            else:
                self._wait("head", self._limits.head_seconds)

    def refuse(self, response: Response) -> None:
        """Answer a broken request where the protocol still allows, and hang up."""
        self._body_follows = True
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.send(response)
            self._linger()

    def send(self, response: Response) -> None:
        """Raises OSError when the client, or the server, ends the connection before all is taken."""
        headers = [
            *response.headers,
            ("Content-Length", str(len(response.body))),
            ("Date", time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())),
        ]
        if self._body_follows:
            headers.append(("Connection", "close"))
        reason = HTTPStatus(response.status).phrase.encode()
        head = self._http.send(h11.Response(status_code=response.status, headers=headers, reason=reason))
        body = response.body if self._method != "HEAD" else b""
        self.since = time.monotonic()
        self.deadline = self.since + self._limits.write_seconds
        self.phase = "write"
        self._send_all(head or b"")
        if body:
            self._send_all(self._http.send(h11.Data(data=body)) or b"")
        self._http.send(h11.EndOfMessage())

    def _send_all(self, data: bytes) -> None:
        view = memoryview(data)
        for start in range(0, len(data), _CHUNK):
            self._sock.sendall(view[start : start + _CHUNK])
            self.since = time.monotonic()

    def _shake_hands(self, handshake: Callable[[], None]) -> None:
        try:
            handshake()
        except OSError as error:
            if getattr(error, "reason", "") == "HTTP_REQUEST":
                socket.socket.send(self._sock, _PLAIN_ON_TLS)
            raise

    def _next_request(self) -> Request | None:
        """None when the client has hung up."""
        self._method = ""
        try:
            event = self._next_event()
            if not isinstance(event, h11.Request):
                return None
            self._method = event.method.decode("ascii")
            self._body_follows = not isinstance(self._http.next_event(), h11.EndOfMessage)
        except h11.RemoteProtocolError as error:
            raise Refused(error.error_status_hint, str(error)) from error
        if event.http_version not in (b"1.0", b"1.1"):
            raise Refused(505, "only HTTP/1.0 and HTTP/1.1")
        target = _AUTHORITY.sub("", event.target.decode("ascii"), count=1)
        path, _, query = target.partition("?")
        headers: dict[str, str] = {}
        for name, value in event.headers:
            key, text = name.decode("ascii"), value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        return Request(self._method, path or "/", query, headers, self.remote)

    def _next_event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            data = self._sock.recv(_RECEIVE)
            if not data:
                return h11.ConnectionClosed()
            if self.phase == "idle":
                self.phase = "head"
                self.deadline = time.monotonic() + self._limits.head_seconds
            self._http.receive_data(data)
        return event

    def _wait(self, phase: Phase, seconds: float) -> None:
        self.since = time.monotonic()
        self.deadline = self.since + seconds
        self.phase = phase

    def _enter_answer(self) -> bool:
        """From here on the server does not end the connection; False where it already has."""
        with self._lock:
            if not self.ended:
                self.deadline = math.inf
                self.phase = "answer"
            return not self.ended

    def _linger(self) -> None:
        """Throw away what the client still sends: closing at once would reset it before it reads the answer."""
        self._wait("linger", _LINGER_SECONDS)
        self._shutdown(socket.SHUT_WR)
        thrown_away = 0
        while thrown_away < _LINGER_BYTES and (data := socket.socket.recv(self._sock, _CHUNK)):
            thrown_away += len(data)

    def _shutdown(self, how: int) -> None:
        # Past SSLSocket's own methods, which would drop its TLS state under the thread that is using it.
        with suppress(OSError):
            socket.socket.shutdown(self._sock, how)
