"""Who probes whom: the [latency] table of the configuration.

The table may be the same on every host. Each host probes the next one in the order of `hosts`, the last the first
one, and the second of each of `pairs` whose first it is: never a full mesh. Hosts are told by address: what a name
server says must not decide who is sent packets.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpuhost_exporter.config import Reader

Address = tuple[str, int]
PROGRAMS = ("ib_write_lat", "ib_send_lat")
INTERVAL_SECONDS = 30.0
MOST_TARGETS = 8
MOST_NEIGHBOURS = 16
_KEYS = ("name", "listen-address", "key-file", "interval", "messages", "pairs", "hosts", "rdma")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<four>[0-9.]*)):(?P<port>[0-9]{1,5})\Z")
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}\Z")


@dataclass(frozen=True, slots=True)
class Rdma:
    """What perftest is told. `tcp_port` is where its two ends meet, for the second that a test takes."""

    device: str
    port: int = 1
    gid_index: int | None = None
    program: str = PROGRAMS[0]
    tcp_port: int = 18515


@dataclass(frozen=True, slots=True)
class LatencySettings:
    name: str
    listen: Address
    key_file: str
    hosts: Mapping[str, Address]
    pairs: tuple[tuple[str, str], ...] = ()
    interval: float = INTERVAL_SECONDS
    messages: int = 40
    rdma: Rdma | None = None

    def targets(self) -> tuple[str, ...]:
        """The hosts that this one probes."""
        return tuple(dict.fromkeys(second for first, second in self._edges() if first == self.name))

    def neighbours(self) -> tuple[str, ...]:
        """The hosts that this one probes or is probed by: it hears no other."""
        ends = (set(edge) - {self.name} for edge in self._edges() if self.name in edge)
        return tuple(dict.fromkeys(name for end in ends for name in end))

    def _edges(self) -> Iterator[tuple[str, str]]:
        ring = tuple(self.hosts)
        yield from zip(ring, (*ring[1:], ring[0]), strict=True)
        yield from self.pairs


def parse(reader: Reader, section: Any, folder: str) -> LatencySettings:
    """Raises ConfigError. A key file without a path is in the configuration's folder."""
    table = reader.table(section, "latency", _KEYS)
    hosts = _hosts(reader, table.get("hosts", {}))
    name = reader.string(table.get("name", os.uname().nodename), "latency.name")
    if name not in hosts:
        raise reader.error("latency.name", "one of latency.hosts; without it this host's own name is taken", name)
    listen = hosts[name]
    if "listen-address" in table:
        listen = _address(reader, table["listen-address"], "latency.listen-address", everywhere=True)
    settings = LatencySettings(
        name=name,
        listen=listen,
        key_file=os.path.join(folder, reader.string(table.get("key-file"), "latency.key-file")),
        hosts=hosts,
        pairs=_pairs(reader, table.get("pairs", []), hosts),
        interval=reader.number(table.get("interval", INTERVAL_SECONDS), "latency.interval", 5, 3600),
        messages=reader.count(table.get("messages", 40), "latency.messages", 10, 100),
        rdma=_rdma(reader, table["rdma"]) if "rdma" in table else None,
    )
    if len(settings.targets()) > MOST_TARGETS:
        raise reader.error("latency.pairs", f"at most {MOST_TARGETS} hosts that {name} probes", settings.targets())
    if len(settings.neighbours()) > MOST_NEIGHBOURS:
        raise reader.error("latency.pairs", f"at most {MOST_NEIGHBOURS} neighbours of {name}", settings.neighbours())
    spoken = {":" in hosts[peer][0] for peer in settings.neighbours()} | ({":" in listen[0]} if listen[0] else set())
    if len(spoken) > 1:
        raise reader.error("latency.hosts", "IPv4 only or IPv6 only between neighbours", section["hosts"])
    return settings


def _hosts(reader: Reader, section: Any) -> dict[str, Address]:
    hosts: dict[str, Address] = {}
    for name, value in reader.table(section, "latency.hosts", None).items():
        if not _NAME.match(name):
            raise reader.error("latency.hosts", "names of letters, digits, dots and dashes", name)
        hosts[name] = _address(reader, value, f"latency.hosts.{name}")
    if len(hosts) < 2 or len(set(hosts.values())) != len(hosts):
        raise reader.error("latency.hosts", "two hosts or more, each with an address of its own", section)
    return hosts


def _address(reader: Reader, value: Any, key: str, *, everywhere: bool = False) -> Address:
    expected = "an address and a port, such as 10.0.0.1:19401 or [fd00::1]:19401"
    match = _ADDRESS.match(reader.string(value, key))
    host, port = (match["six"] or match["four"] or "", int(match["port"])) if match else ("", 0)
    try:
        if host:
            socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    except OSError:
        port = 0
    if not 0 < port < 65536 or not (host or everywhere):
        raise reader.error(key, expected, value)
    return host, port


def _pairs(reader: Reader, value: Any, hosts: Mapping[str, Address]) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list):
        raise reader.error("latency.pairs", "a list of pairs of hosts", value)
    pairs = []
    for pair in value:
        names = [name for name in pair if isinstance(name, str) and name in hosts] if isinstance(pair, list) else []
        if pair != names or len(set(names)) != 2 or len(names) != 2:
            raise reader.error("latency.pairs", "two different ones of latency.hosts in each pair", pair)
        pairs.append((pair[0], pair[1]))
    return tuple(pairs)


def _rdma(reader: Reader, section: Any) -> Rdma:
    table = reader.table(section, "latency.rdma", ("device", "port", "gid-index", "program", "tcp-port"))
    device = reader.string(table.get("device"), "latency.rdma.device")
    if not _DEVICE.match(device):
        raise reader.error("latency.rdma.device", "a device such as mlx5_0", device)
    gid_index = table.get("gid-index")
    return Rdma(
        device=device,
        port=reader.count(table.get("port", 1), "latency.rdma.port", 1, 16),
        gid_index=None if gid_index is None else reader.count(gid_index, "latency.rdma.gid-index", 0, 255),
        program=reader.one_of(table.get("program", PROGRAMS[0]), "latency.rdma.program", PROGRAMS),
        tcp_port=reader.count(table.get("tcp-port", 18515), "latency.rdma.tcp-port", 1024, 65535),
    )
