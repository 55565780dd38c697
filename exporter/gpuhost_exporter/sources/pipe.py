"""Whole messages over a stream socket between the exporter and its readers: a length, then the bytes.

Requests are JSON, because the reader may hold more privilege than who asks. Answers are pickled readings.
"""

from __future__ import annotations

import json
import pickle
import select
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

from gpuhost_exporter.errors import Gone, Hung

_LENGTH = struct.Struct("<I")
LIMIT = 16 << 20


class Pipe:
    """One end. `recv` raises Gone when the other end is closed and Hung when nothing whole came in time."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = bytearray()

    def fileno(self) -> int:
        return self._socket.fileno()

    def holds(self) -> bool:
        """Whether a whole message has come along with the last one: select does not tell."""
        if len(self._buffer) < _LENGTH.size:
            return False
        return bool(len(self._buffer) >= _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0])

    def close(self) -> None:
        self._socket.close()

    def send(self, payload: bytes) -> None:
        try:
            self._socket.sendall(_LENGTH.pack(len(payload)) + payload)
        except OSError as error:
            raise Gone(f"the reader's pipe is closed: {error}") from error

    def recv(self, timeout: float | None = None) -> bytes:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if len(self._buffer) >= _LENGTH.size:
                (size,) = _LENGTH.unpack_from(self._buffer)
                if size > LIMIT:
                    raise Gone(f"a message of {size} bytes on the reader's pipe")
                if len(self._buffer) >= _LENGTH.size + size:
                    payload = bytes(self._buffer[_LENGTH.size : _LENGTH.size + size])
                    del self._buffer[: _LENGTH.size + size]
                    return payload
            if deadline is not None:
                poller = select.poll()
                poller.register(self._socket, select.POLLIN)
                if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    raise Hung("no answer in time")
            try:
                block = self._socket.recv(262144)
            except OSError as error:
                raise Gone(f"the reader's pipe is closed: {error}") from error
            if not block:
                raise Gone("the reader has gone")
            self._buffer += block


def send_request(pipe: Pipe, request: dict[str, Any]) -> None:
    pipe.send(json.dumps(request).encode())


def recv_request(pipe: Pipe) -> dict[str, Any]:
    request = json.loads(pipe.recv())
    if not isinstance(request, dict):
        raise Gone("a request that is no object")
    return request


def recv_requests(pipe: Pipe) -> Iterator[dict[str, Any]]:
    """The next request, and those that came along with it."""
    yield recv_request(pipe)
    while pipe.holds():
        yield recv_request(pipe)


def send_answer(pipe: Pipe, answer: object) -> None:
    pipe.send(pickle.dumps(answer, protocol=5))


def recv_answer(pipe: Pipe, timeout: float | None) -> Any:
    """The reader's next answer; the reader is at least as trusted as this process."""
    return pickle.loads(pipe.recv(timeout))  # noqa: S301  see above


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
