"""RDMA ports: up, rate, bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from gpuhost_exporter.board import Listed
from gpuhost_exporter.collector import Collector
from gpuhost_exporter.errors import SourceError
from gpuhost_exporter.sources import rdma
from gpuhost_exporter.specs import Sample, Spec, counter, gauge, info

UP = gauge("gpuhost_rdma_port_up", "Whether the port is active and carries traffic (1).", "device", "port")
RATE = gauge(
    "gpuhost_rdma_port_rate_bytes_per_second",
    "Negotiated rate of the link in bytes a second in one direction: 50e9 for 400 Gb/s. Absent while the port is down.",
    "device",
    "port",
)
BYTES = counter(
    "gpuhost_rdma_port_bytes_total",
    "Bytes received (rx) and sent (tx) by the port, RDMA included, since its driver was loaded or its counters reset.",
    "device",
    "port",
    "direction",
)
INFO = info(
    "gpuhost_rdma_port_info",
    "What the port is: link layer, network interface, and its adapter's firmware, board, PCI address and NUMA node.",
    "device",
    "port",
    "link_layer",
    "interface",
    "firmware",
    "board",
    "address",
    "numa_node",
)


class RdmaCollector(Collector):
    name: ClassVar[str] = "rdma"
    help: ClassVar[str] = "InfiniBand and RoCE ports: up, rate, bytes"
    source: ClassVar[str] = "/sys/class/infiniband"
    interval: ClassVar[float] = 10.0
    specs: ClassVar[tuple[Spec, ...]] = (UP, RATE, BYTES, INFO)

    def poll(self, now: float) -> Iterator[Sample]:
        root = self.host.root
        found: list[rdma.Port] = []
        listed: list[Listed] = []
        try:
            devices = rdma.devices(root)
        except SourceError:
            self.post("listed ports", None)
            raise
        for device in devices:
            numbers = None
            with self.guard(device):
                numbers = rdma.ports(root, device)
            if numbers is None:
                listed.append(Listed(device, None))
            for number in numbers or ():
                listed.append(Listed(device, f"{device}/{number}"))
                with self.guard(f"{device} port {number}"):
                    port = rdma.read(root, device, number)
                    found.append(port)
                    yield from self._samples(port)
        self.post("ports", tuple(found))
        self.post("listed ports", tuple(listed))

    def _samples(self, port: rdma.Port) -> Iterator[Sample]:
        yield UP(port.device, port.port, value=float(port.up))
        if port.rate is not None:
            yield RATE(port.device, port.port, value=port.rate)
        yield INFO(
            port.device,
            port.port,
            port.link_layer or "",
            port.interface or "",
            port.firmware or "",
            port.board or "",
            port.address or "",
            "" if port.numa_node is None else str(port.numa_node),
        )
        for direction in rdma.DIRECTIONS:
            with self.guard(f"{port.device} port {port.port} {direction}"):
                octets = rdma.read_bytes(self.host.root, port.device, port.port, direction)
                if octets is not None:
                    yield BYTES(port.device, port.port, direction, value=octets)
