"""What the network interface below a RoCE port counts: pauses by priority, discards and errors on the wire."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from gpuhost_exporter.collector import Collector
from gpuhost_exporter.sources import rdma
from gpuhost_exporter.sources.ethtool import parse_physical
from gpuhost_exporter.specs import Sample, Spec, counter

PAUSE = counter(
    "gpuhost_rdma_pause_seconds_total",
    "Seconds in which the port sent nothing of a priority because the network had told it to pause (PFC; priority "
    "global: all of them). A rate above 0.05 means that the network pushes back. Absent where neither is on.",
    "device",
    "priority",
)
PAUSE_ASKED = counter(
    "gpuhost_rdma_pause_asked_seconds_total",
    "Seconds in which the port told the network to pause a priority: this host takes packets too slowly. Good is no "
    "increase; else look at its PCIe link, IOMMU and NUMA placement.",
    "device",
    "priority",
)
PAUSE_FRAMES = counter(
    "gpuhost_rdma_pause_frames_total",
    "Pause frames of a priority received (rx: the network pushes back) and sent (tx: this host is slow).",
    "device",
    "priority",
    "direction",
)
PAUSE_STORMS = counter(
    "gpuhost_rdma_pause_storms_total",
    "Times that the port went on telling the network to pause for so long that the adapter warned (warning) or "
    "stopped sending pauses (error). Good is none.",
    "device",
    "severity",
)
DISCARDS = counter(
    "gpuhost_rdma_physical_discards_total",
    "Packets that the physical port dropped for lack of buffers, received (rx) and to be sent (tx). RoCE is built on "
    "a network without loss: good is no increase.",
    "device",
    "direction",
)
PRIORITY_DISCARDS = counter(
    "gpuhost_rdma_priority_discards_total",
    "Packets of a priority that the adapter dropped on arrival. reason port: the port had no buffer left; buffer: this "
    "host's share of the adapter had none; congestion: this host was too slow. Good is no increase. Of priorities "
    "without PFC only those that have lost some; mlx5 only.",
    "device",
    "priority",
    "reason",
)
PHYSICAL_ERRORS = counter(
    "gpuhost_rdma_physical_errors_total",
    "Packets and symbols that arrived damaged at the physical port: crc and symbol. An increase means a cable, "
    "transceiver or port to be exchanged.",
    "device",
    "type",
)


class RdmaEthernetCollector(Collector):
    name: ClassVar[str] = "rdma_ethernet"
    help: ClassVar[str] = "Pauses, discards and damage at the Ethernet ports that carry RoCE"
    source: ClassVar[str] = "the network interfaces' statistics (SIOCETHTOOL, as ethtool -S)"
    interval: ClassVar[float] = 30.0  # the driver asks the adapter's firmware for these under a lock
    specs: ClassVar[tuple[Spec, ...]] = (
        *(PAUSE, PAUSE_ASKED, PAUSE_FRAMES, PAUSE_STORMS),
        *(DISCARDS, PRIORITY_DISCARDS, PHYSICAL_ERRORS),
    )

    def poll(self, now: float) -> Iterator[Sample]:
        interfaces = {
            interface: device
            for device in rdma.devices(self.host.root)
            if (interface := rdma.ethernet_interface(self.host.root, device))
        }
        for interface, device in interfaces.items():
            with self.guard(f"{device} ({interface})"):
                yield from self._samples(device, interface)

    def _samples(self, device: str, interface: str) -> Iterator[Sample]:
        found = parse_physical(self.host.network.statistics(interface))
        for pause in found.pauses:
            if pause.rx_seconds is not None:
                yield PAUSE(device, pause.priority, value=pause.rx_seconds)
            if pause.tx_seconds is not None:
                yield PAUSE_ASKED(device, pause.priority, value=pause.tx_seconds)
            for direction, frames in (("rx", pause.rx_frames), ("tx", pause.tx_frames)):
                if frames is not None:
                    yield PAUSE_FRAMES(device, pause.priority, direction, value=frames)
        for priority, reason, count in found.priority_discards:
            yield PRIORITY_DISCARDS(device, priority, reason, value=count)
        for spec, counts in (
            (PAUSE_STORMS, found.storms),
            (DISCARDS, found.discards),
            (PHYSICAL_ERRORS, found.errors),
        ):
            for label, count in counts:
                yield spec(device, label, value=count)
