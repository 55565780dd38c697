"""RDMA ports: up, rate, traffic, congestion, errors, and what is set up so that it costs bandwidth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from gpuhost_exporter.board import Listed
from gpuhost_exporter.collector import Collector
from gpuhost_exporter.errors import SourceError
from gpuhost_exporter.sources import rdma, rdma_counters
from gpuhost_exporter.specs import Sample, Spec, counter, gauge, info

UP = gauge("gpuhost_rdma_port_up", "Whether the port is active and carries traffic (1).", "device", "port")
PHYSICAL_UP = gauge(
    "gpuhost_rdma_port_physical_up",
    "Whether the port's cable carries a link, 1 is good. 1 on an InfiniBand port that is not up: it waits for a subnet "
    "manager. 0: cable, transceiver or the other end.",
    "device",
    "port",
)
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
PACKETS = counter(
    "gpuhost_rdma_port_packets_total",
    "Packets received (rx) and sent (tx) by the port, RDMA included, since its driver was loaded or its counters "
    "reset.",
    "device",
    "port",
    "direction",
)
CONGESTION = counter(
    "gpuhost_rdma_congestion_events_total",
    "Signs of congestion and of loss that the port has counted. ecn_marked, cnp_sent and cnp_handled are congestion "
    "control at work and normal under load; cnp_ignored means that it is off here. out_of_sequence is normal under "
    "adaptive routing. sequence_nak, implied_nak, retransmission and adaptive_retransmission are packets sent again; "
    "rnr_nak, out_of_buffer and duplicate_request mean a slow receiver. ack_timeout and "
    "adaptive_retransmission_timeout stall a job: good is no increase. Types that the adapter does not count are "
    "absent.",
    "device",
    "port",
    "type",
)
ERRORS = counter(
    "gpuhost_rdma_port_errors_total",
    "Errors that the port has counted, by type. Good is no increase, but for request_flushed and response_flushed, "
    "which come with every normal end of a connection and are part of request_completion and response_completion. "
    "Types that the adapter does not count are absent.",
    "device",
    "port",
    "type",
)
TRANSMIT_WAIT = counter(
    "gpuhost_rdma_port_transmit_wait_ticks_total",
    "Ticks in which an InfiniBand port had data and no credit to send it: its congestion signal. A tick's length "
    "depends on the adapter, so compare ports of one kind. Good is a small share of the others' rate.",
    "device",
    "port",
)
MTU = gauge(
    "gpuhost_rdma_port_mtu_bytes",
    "MTU of an Ethernet port's network interface in bytes. RDMA sends at most 4096 a packet and takes the next lower "
    "power of two that fits with its headers: good is 4200 or more, 1500 leaves 1024.",
    "device",
    "port",
)
ROCE_V2 = gauge(
    "gpuhost_rdma_port_roce_v2",
    "Whether an Ethernet port has an address (GID) of RoCE version 2, 1 is good. Version 1 crosses no router and takes "
    "no part in most networks' congestion control.",
    "device",
    "port",
)
INFO = info(
    "gpuhost_rdma_port_info",
    "What the port is: link layer, network interface, and its adapter's driver, firmware, board, PCI address and NUMA "
    "node.",
    "device",
    "port",
    "link_layer",
    "interface",
    "driver",
    "firmware",
    "board",
    "address",
    "numa_node",
)


class RdmaCollector(Collector):
    name: ClassVar[str] = "rdma"
    help: ClassVar[str] = "InfiniBand and RoCE ports: up, rate, traffic, congestion, errors"
    source: ClassVar[str] = "/sys/class/infiniband"
    interval: ClassVar[float] = 10.0
    specs: ClassVar[tuple[Spec, ...]] = (
        UP,
        PHYSICAL_UP,
        RATE,
        BYTES,
        PACKETS,
        CONGESTION,
        ERRORS,
        TRANSMIT_WAIT,
        MTU,
        ROCE_V2,
        INFO,
    )

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
                    yield from _state(port)
                    yield from self._counters(port)
        self.post("ports", tuple(found))
        self.post("listed ports", tuple(listed))

    def _counters(self, port: rdma.Port) -> Iterator[Sample]:
        labels = (port.device, port.port)
        reader = rdma_counters.PortCounters(self.host.root, *labels, port.link_layer)
        for direction in rdma_counters.DIRECTIONS:
            with self.guard(f"{port.device} port {port.port} {direction}"):
                octets = reader.octets(direction)
                if octets is not None:
                    yield BYTES(*labels, direction, value=octets)
                packets = reader.packets(direction)
                if packets is not None:
                    yield PACKETS(*labels, direction, value=packets)
        for spec, table in ((CONGESTION, rdma_counters.CONGESTION), (ERRORS, reader.error_types)):
            for kind, files in table.items():
                with self.guard(f"{port.device} port {port.port} {kind}"):
                    count = reader.first(files)
                    if count is not None:
                        yield spec(*labels, kind, value=count)
        if port.link_layer == "InfiniBand":
            with self.guard(f"{port.device} port {port.port} transmit wait"):
                ticks = reader.first(rdma_counters.TRANSMIT_WAIT)
                if ticks is not None:
                    yield TRANSMIT_WAIT(*labels, value=ticks)


def _state(port: rdma.Port) -> Iterator[Sample]:
    labels = (port.device, port.port)
    yield UP(*labels, value=float(port.up))
    if port.physical_up is not None:
        yield PHYSICAL_UP(*labels, value=float(port.physical_up))
    if port.rate is not None:
        yield RATE(*labels, value=port.rate)
    if port.link_layer == "Ethernet":
        if port.mtu is not None:
            yield MTU(*labels, value=port.mtu)
        if port.gid_types:
            yield ROCE_V2(*labels, value=float("RoCE v2" in port.gid_types))
    yield INFO(
        *labels,
        port.link_layer or "",
        port.interface or "",
        port.driver or "",
        port.firmware or "",
        port.board or "",
        port.address or "",
        "" if port.numa_node is None else str(port.numa_node),
    )
