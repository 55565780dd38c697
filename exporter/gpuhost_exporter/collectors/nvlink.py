"""NVLink: which links are up, what they carried, what they could carry, and whether a program could use them.

All links may be active while no program can use one: they train without the fabric. So capacity is told twice,
nominal (active links) and usable (nothing before the fabric is ready and the peers are reachable over NVLink).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from gpuhost_exporter.collectors.per_gpu import NvmlCollector, R, gpu_counter, gpu_gauge, gpu_info, gpu_labels
from gpuhost_exporter.host import Host
from gpuhost_exporter.sources.nvml.readings import Activity, Fabric, Gpu, Health, Link, Links, Peer
from gpuhost_exporter.sources.pci import bytes_per_second
from gpuhost_exporter.specs import Sample

UP = gpu_gauge(
    "gpuhost_nvlink_up",
    "Whether the link is active. Good is 1 on every link. Absent while that cannot be read. Links of a GPU that "
    "nothing uses are read every 15 s only, so that the exporter does not keep it awake.",
    "link",
)
BYTES = gpu_counter(
    "gpuhost_nvlink_bytes_total",
    "Payload bytes over the link since the driver was loaded; tx leaves the GPU. Up to 15 s old on a GPU that nothing "
    "uses.",
    "link",
    "direction",
)
LINK_ERRORS = gpu_counter(
    "gpuhost_nvlink_errors_total",
    "Errors on the link by type: replay, recovery, crc or ecc. Only links and types with errors are shown; "
    "gpuhost_gpu_nvlink_errors_total has them all and is the one to take rates of.",
    "link",
    "type",
)
ERRORS = gpu_counter(
    "gpuhost_gpu_nvlink_errors_total",
    "Errors on all NVLinks of the GPU by type: replay, recovery, crc or ecc, as far as the architecture really counts "
    "them. Good is no increase; recoveries cost bandwidth. What takes a call a link, as ecc does, is asked every 15 s.",
    "type",
)
LINK_INFO = gpu_info(
    "gpuhost_nvlink_info",
    "What the link is: NVLink version, what is at its other end (gpu, switch or cpu) with its PCI address, and the "
    "signalling rate in one direction, which is above the payload rate that capacities are reckoned with.",
    "link",
    "version",
    "remote",
    "remote_bdf",
    "rate_bytes_per_second",
)
ACTIVE = gpu_gauge(
    "gpuhost_nvlink_links_active",
    "NVLinks that are active. Good is gpuhost_nvlink_links_expected. Absent while a link of the GPU cannot be read.",
)
EXPECTED = gpu_gauge(
    "gpuhost_nvlink_links_expected",
    "NVLinks that should be active: by the site's or the product's NVLink bandwidth, else the most seen on any GPU of "
    "the same model since the exporter started.",
)
CAPACITY = gpu_gauge(
    "gpuhost_nvlink_capacity_bytes_per_second",
    "Nominal NVLink bandwidth, both directions: active links times payload rate times 2. 900e9 on an H100 SXM, 850e9 "
    "with one of 18 links down. Absent while a link of the GPU cannot be read.",
)
USABLE = gpu_gauge(
    "gpuhost_nvlink_usable_bytes_per_second",
    "NVLink bandwidth that a program can have, both directions: the nominal one, but 0 unless the fabric is ready and "
    "every peer is reachable over NVLink. Absent while that or a link's state is not known, and on GPUs in MIG mode.",
)
PAIR_FALLBACK = gpu_gauge(
    "gpuhost_nvlink_pair_fallback",
    "1 for each pair of GPUs that should reach each other over NVLink and has fallen back to PCIe. Good is none; peer "
    "is the other GPU's index.",
    "peer",
)
FALLBACK_PEERS = gpu_gauge(
    "gpuhost_nvlink_fallback_peers",
    "Peers that the GPU should reach over NVLink and reaches over PCIe only. Good is 0.",
)
SLOWDOWN = gpu_gauge(
    "gpuhost_nvlink_fallback_slowdown",
    "How many times less bandwidth a pair has that falls back to PCIe: full NVLink bandwidth over that of the PCIe "
    "link, both directions, at the width found and the generation found under load, else the one the link can do.",
)

# Payload of one link in one direction, by major version, for products that are not in the table.
_RATES = {"2": 25e9, "3": 25e9, "4": 25e9, "5": 50e9}
_LOADED = 0.5  # utilization above which the PCIe link runs at the generation that it trained to
# Before Hopper GPUs do not register with the fabric: whether peers are reachable says it all.
_WITHOUT_REGISTRATION = ("volta", "turing", "ampere")


@dataclass(frozen=True, slots=True)
class _Reach:
    """What stands between links that are up and a program that can use them."""

    fabric_ready: bool | None
    fallen_back: tuple[Gpu, ...]
    untold: bool  # NVML did not say of every peer

    @property
    def usable(self) -> bool | None:
        if self.fabric_ready is False or self.fallen_back:
            return False
        return None if self.fabric_ready is None or self.untold else True


class NvlinkCollector(NvmlCollector):
    name = "nvlink"
    help = "State, traffic, errors and capacity of the NVLinks of each GPU"
    source = "NVML: NVLink state, remote device, field values; fabric and peers as the fabric collector read them"
    interval = 5.0
    subject = "links"
    specs = (
        UP,
        BYTES,
        LINK_ERRORS,
        ERRORS,
        LINK_INFO,
        ACTIVE,
        EXPECTED,
        CAPACITY,
        USABLE,
        PAIR_FALLBACK,
        FALLBACK_PEERS,
        SLOWDOWN,
    )

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._most: dict[str, int] = {}
        self._remotes: defaultdict[str, set[str]] = defaultdict(set)
        self._loaded: dict[str, float] = {}  # since when each GPU that is under load is
        self._errors: defaultdict[str, dict[tuple[int, str], int]] = defaultdict(dict)

    def poll(self, now: float) -> Iterator[Sample]:
        # A GPU that says it has no NVLink, though it should, has none of its links.
        found = [
            (gpu, links)
            for gpu, links in self.of_gpus(self.ask(), Links)
            if links.links or self.host.targets.nvlink_bandwidth(gpu.name)
        ]
        for gpu, links in found:
            self._learn(gpu, links)
        linked = [gpu for gpu, links in found if self._expected(gpu, self._rate(gpu, links))]
        fabrics = {fabric.uuid: fabric for fabric in self._posted("fabric", Fabric, now)}
        peers = {(peer.uuid, peer.peer_uuid): peer.nvlink for peer in self._posted("fabric", Peer, now)}
        health = {reading.uuid: reading for reading in self._posted("health", Health, now)}
        loads = {reading.uuid: reading for reading in self._posted("activity", Activity, now) if _loaded(reading)}
        self._loaded = {uuid: self._loaded.get(uuid, reading.at) for uuid, reading in loads.items()}
        for gpu, links in found:
            for link in links.links:
                yield from _link(gpu, link)
            yield from self._error_counts(gpu)
            partitioned = {uuid for uuid, reading in health.items() if reading.mig_enabled}
            reach = self._reach(gpu, [peer for peer in linked if peer.uuid not in partitioned], fabrics, peers)
            pcie = _pcie_bytes_per_second(health.get(gpu.uuid), self._loaded.get(gpu.uuid))
            yield from self._capacity(gpu, links, None if gpu.uuid in partitioned else reach, pcie)

    def _posted(self, subject: str, kind: type[R], now: float) -> Iterator[R]:
        """What another collector read; what it reads no more counts as not told."""
        posted: tuple[object, ...] = self.host.board.last(subject, tuple, now) or ()
        return (reading for reading in posted if isinstance(reading, kind))

    def _learn(self, gpu: Gpu, links: Links) -> None:
        """Remember what a link that goes down, or one that is not read this time, no longer tells."""
        active = sum(link.active is True for link in links.links)
        self._most[gpu.name] = max(self._most.get(gpu.name, 0), active)
        for link in links.links:
            if link.remote == "gpu" and link.remote_bdf:
                self._remotes[gpu.uuid].add(link.remote_bdf)
            for kind, count in link.errors:
                self._errors[gpu.uuid][link.index, kind] = count

    def _error_counts(self, gpu: Gpu) -> Iterator[Sample]:
        """A link that went down tells nothing more; what it had counted stays."""
        totals: defaultdict[str, int] = defaultdict(int)
        for (link, kind), count in self._errors[gpu.uuid].items():
            totals[kind] += count
            if count:
                yield LINK_ERRORS(*gpu_labels(gpu), str(link), kind, value=count)
        for kind, total in totals.items():
            yield ERRORS(*gpu_labels(gpu), kind, value=total)

    def _reach(
        self, gpu: Gpu, others: list[Gpu], fabrics: dict[str, Fabric], peers: dict[tuple[str, str], str | None]
    ) -> _Reach:
        bridged = self._remotes[gpu.uuid]
        meant = [
            other
            for other in others
            # Without a GPU at the other end of its links it is on a switch, with all that are.
            if other.uuid != gpu.uuid and (other.bdf in bridged if bridged else not self._remotes[other.uuid])
        ]
        verdicts = [(other, peers.get((gpu.uuid, other.uuid))) for other in meant]
        return _Reach(
            _ready(gpu, fabrics.get(gpu.uuid)),
            tuple(other for other, verdict in verdicts if verdict not in (None, "ok", "unknown")),
            any(verdict in (None, "unknown") for _, verdict in verdicts),
        )

    def _capacity(self, gpu: Gpu, links: Links, reach: _Reach | None, pcie: float | None) -> Iterator[Sample]:
        labels = gpu_labels(gpu)
        active = _active(links)
        rate = self._rate(gpu, links)
        expected = self._expected(gpu, rate)
        if active is not None:
            yield ACTIVE(*labels, value=active)
        yield EXPECTED(*labels, value=expected)
        if rate is not None:
            if active is not None:
                yield CAPACITY(*labels, value=active * rate * 2)
                if reach and reach.usable is not None:
                    yield USABLE(*labels, value=active * rate * 2 if reach.usable else 0.0)
            if pcie and expected:
                yield SLOWDOWN(*labels, value=expected * rate / pcie)
        if reach and (reach.fallen_back or not reach.untold):
            yield FALLBACK_PEERS(*labels, value=len(reach.fallen_back))
            for peer in reach.fallen_back:
                yield PAIR_FALLBACK(*labels, str(peer.index))

    def _expected(self, gpu: Gpu, rate: float | None) -> int:
        target = self.host.targets.nvlink_bandwidth(gpu.name)
        return round(target / rate / 2) if target and rate else self._most[gpu.name]

    def _rate(self, gpu: Gpu, links: Links) -> float | None:
        product = self.host.targets.product(gpu.name)
        if product and product.nvlink_link_bytes_per_second:
            return product.nvlink_link_bytes_per_second
        versions = {link.version for link in links.links if link.version}
        rates = {_RATES.get(version.partition(".")[0]) for version in versions}
        return rates.pop() if len(rates) == 1 else None


def _active(links: Links) -> int | None:
    """How many links are active; None while one is not read, for it may be either."""
    states = [link.active for link in links.links]
    return None if None in states else sum(map(bool, states))


def _link(gpu: Gpu, link: Link) -> Iterator[Sample]:
    labels = (*gpu_labels(gpu), str(link.index))
    if link.active is not None:
        yield UP(*labels, value=link.active)
    if link.rx_bytes is not None:
        yield BYTES(*labels, "rx", value=link.rx_bytes)
    if link.tx_bytes is not None:
        yield BYTES(*labels, "tx", value=link.tx_bytes)
    rate = "" if link.rate_bytes_per_second is None else f"{link.rate_bytes_per_second:.0f}"
    yield LINK_INFO(*labels, link.version or "", link.remote or "", link.remote_bdf or "", rate)


def _ready(gpu: Gpu, fabric: Fabric | None) -> bool | None:
    """Whether the fabric lets the GPU's links be used; None while it does not tell."""
    if fabric is None or fabric.state is None:
        return True if gpu.architecture in _WITHOUT_REGISTRATION else None
    if fabric.state == "not_supported":
        return True
    if fabric.state != "completed":
        return False
    return None if fabric.status_code is None else fabric.status_code == 0


def _loaded(activity: Activity) -> bool:
    told = activity.utilization_ratio if activity.graphics_ratio is None else activity.graphics_ratio
    return told is not None and told > _LOADED


def _pcie_bytes_per_second(health: Health | None, loaded: float | None) -> float | None:
    """One direction. An idle link runs at a lower generation than it can: only one that was read under load, here
    since `loaded`, shows what it does."""
    if health is None or health.pcie_width is None:
        return None
    generation = health.pcie_generation if loaded is not None and health.at >= loaded else None
    if generation is None:
        generation = health.pcie_generation_max
    return None if generation is None else bytes_per_second(generation, health.pcie_width)
