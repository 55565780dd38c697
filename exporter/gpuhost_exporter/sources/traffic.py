"""What the host's network adapters carry, looked at only while somebody asks. No privilege needed.

/sys/class/infiniband/mlx5_0/ports/1/counters/port_xmit_data   as rdma_counters reads it: RDMA, past the kernel
/sys/class/net/ens1np0/statistics/tx_bytes                     4711 (what goes through the kernel)
/sys/class/net/ens1np0/device, /sys/class/infiniband/mlx5_0/device    -> the PCI device; virtual interfaces have none

An adapter's driver may ask its firmware for a port's counters, which takes up to a millisecond, and much longer where
it is ill: so they are read in a thread of their own, and only while they decide something.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from gpuhost_exporter.clock import Clock
from gpuhost_exporter.errors import SourceError, Unsupported
from gpuhost_exporter.sources import pci, rdma
from gpuhost_exporter.sources.files import Root, link_target, optional_names, read_count
from gpuhost_exporter.sources.rdma_counters import PortCounters

LONGEST_SECONDS = 3.0  # between two looks that make a window; after a longer pause a look only begins one
_SEARCH_SECONDS = 60.0
_KEPT = 16
_NET = "net "


class Carried(NamedTuple):
    """Bytes of one adapter in a window. What RDMA and the kernel carry are counted apart: the greater of the two."""

    address: str  # of its PCI device; empty where it has none
    received: int
    sent: int


@dataclass(frozen=True, slots=True)
class Traffic:
    since: float
    at: float
    adapters: tuple[Carried, ...]
    # Bytes that interfaces sent through the kernel, all together: RDMA is not among them. None where no interface of an
    # adapter is to be seen, as in a container, whatever the host sends.
    sent: int | None = None

    @property
    def seconds(self) -> float:
        return self.at - self.since


class _Counter(NamedTuple):
    """One port or interface: what tells its bytes received and sent, and on which adapter it is."""

    name: str
    address: str
    read: Callable[[], tuple[int, int]]


class Adapters:
    """The reader's side."""

    def __init__(self, root: Root, clock: Clock) -> None:
        self._root = root
        self._clock = clock
        self._counters: tuple[_Counter, ...] = ()
        self._searched = float("-inf")
        self._at = float("-inf")
        self._before: dict[str, tuple[int, int]] = {}

    def look(self) -> Traffic | None:
        """What was carried since the last look; None where that is too long ago, or nothing tells."""
        now = self._clock.now()
        if now - self._searched >= _SEARCH_SECONDS:
            self._searched = now
            self._counters = (*_rdma(self._root), *_interfaces(self._root))
        since, self._at = self._at, now
        before, self._before = self._before, {}
        found: dict[str, Carried] = {}
        sent: int | None = None
        for name, address, read in self._counters:
            try:
                now_read = read()
            except SourceError:
                continue
            self._before[name] = now_read
            if name in before:
                grown = [max(0, new - old) for new, old in zip(now_read, before[name], strict=True)]
                if name.startswith(_NET):
                    sent = (sent or 0) + grown[1]
                known = found.get(address, Carried(address, 0, 0))
                found[address] = Carried(address, max(known.received, grown[0]), max(known.sent, grown[1]))
        if not found or now - since > LONGEST_SECONDS:
            return None
        return Traffic(since, now, tuple(found.values()), sent)


class NetworkTraffic:
    """The exporter's side of the job `traffic`. Safe between threads; no call waits for the reader."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ask: Callable[[], bool] | None = None
        self._asked = False
        self._windows: deque[Traffic] = deque(maxlen=_KEPT)

    def connect(self, ask: Callable[[], bool]) -> None:
        """How to reach the reader: False when there is none."""
        self._ask = ask

    def look(self) -> None:
        """Have the adapters looked at now; two looks make a window."""
        with self._lock:
            if self._asked or self._ask is None:
                return
            self._asked = True
        if not self._ask():
            with self._lock:
                self._asked = False

    def take(self) -> tuple[Traffic, ...]:
        """The windows that have come since the last call, oldest first."""
        with self._lock:
            taken = tuple(self._windows)
            self._windows.clear()
            return taken

    def put(self, answer: Traffic | None) -> None:
        with self._lock:
            self._asked = False
            if answer is not None:
                self._windows.append(answer)

    def fail(self, _kind: str, _message: str) -> None:
        """It cannot look, or has ended: the GPUs are judged without."""
        with self._lock:
            self._asked = False


def _rdma(root: Root) -> Iterator[_Counter]:
    for device in rdma.devices(root):
        folder = f"{root.sys}/class/infiniband/{device}"
        address = pci.address(link_target(f"{folder}/device"))
        for port in optional_names(f"{folder}/ports"):
            counters = PortCounters(root, device, port, None)
            yield _Counter(f"{device}/{port}", address, partial(_octets, counters))


def _interfaces(root: Root) -> Iterator[_Counter]:
    for name in optional_names(f"{root.sys}/class/net"):
        folder = f"{root.sys}/class/net/{name}"
        if os.path.exists(f"{folder}/device"):
            address = pci.address(link_target(f"{folder}/device"))
            yield _Counter(f"{_NET}{name}", address, partial(_statistics, folder))


def _octets(counters: PortCounters) -> tuple[int, int]:
    received, sent = counters.octets("rx"), counters.octets("tx")
    if received is None or sent is None:
        raise Unsupported("no counters of bytes")
    return received, sent


def _statistics(folder: str) -> tuple[int, int]:
    return read_count(f"{folder}/statistics/rx_bytes"), read_count(f"{folder}/statistics/tx_bytes")
