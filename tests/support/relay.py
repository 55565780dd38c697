"""A relay in user space between two hosts' datagrams: it delays them, drops some, sends some again, tells all."""

from __future__ import annotations

import heapq
import itertools
import select
import socket
import threading
import time


class Relay:
    """Between the hosts at the ports `left` and `right` of 127.0.0.1, each of which takes one of `ports` for the other.

    `delay`: seconds each way. `drop(count)`: whether the so-many-th datagram from the left is lost. `silent`: nothing
    passes. Delays are waited out by spinning near their end: the sleep of a busy machine is off by more than is
    measured here.
    """

    def __init__(self, left, right):
        self.delay = 0.0
        self.drop = lambda count: False
        self.silent = False
        self.passed = {"left": 0, "right": 0}
        self.dropped = 0
        self.recorded = []
        self.held = []  # seconds that each datagram really was in here
        self._count = itertools.count(1)
        self._order = itertools.count()
        self._queue = []
        self._stopping = threading.Event()
        self._sockets = {}
        for side, host in (("left", left), ("right", right)):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(("127.0.0.1", 0))
            self._sockets[side] = sock, ("127.0.0.1", host)
        self.ports = {side: sock.getsockname()[1] for side, (sock, _) in self._sockets.items()}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stopping.set()
        self._thread.join()
        for sock, _ in self._sockets.values():
            sock.close()

    def send(self, to, datagram):
        """Bring that side a datagram as if from the other host."""
        sock, address = self._sockets[to]
        sock.sendto(datagram, address)

    def _run(self):
        other = {"left": "right", "right": "left"}
        while not self._stopping.is_set():
            wait = self._queue[0][0] - time.monotonic() - 0.0003 if self._queue else 0.05
            sockets = {sock: side for side, (sock, _) in self._sockets.items()}
            for sock in select.select(list(sockets), [], [], max(0.0, wait))[0]:
                arrived = time.monotonic()
                try:
                    datagram = sock.recv(2048)
                except ConnectionRefusedError:
                    continue  # the host was not there for the one before
                side = sockets[sock]
                if self.silent or (side == "left" and self.drop(next(self._count))):
                    self.dropped += 1
                    continue
                self.recorded.append((other[side], datagram))
                due = arrived + self.delay
                heapq.heappush(self._queue, (due, next(self._order), other[side], datagram, arrived))
            while self._queue and self._queue[0][0] - time.monotonic() < 0.0003:
                due, _, side, datagram, arrived = heapq.heappop(self._queue)
                while time.monotonic() < due:
                    pass
                self.held.append(time.monotonic() - arrived)
                self.send(side, datagram)
                self.passed[side] += 1
