"""How long small messages take between this host and those that it was told to probe."""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Iterator

from gpuhost_exporter.averages import median
from gpuhost_exporter.collector import Collector
from gpuhost_exporter.host import Host
from gpuhost_exporter.latency.collective import SUBJECT, Collective, parse
from gpuhost_exporter.latency.settings import INTERVAL_SECONDS
from gpuhost_exporter.ledger.histogram import Histogram
from gpuhost_exporter.sources.latency.results import MPI, Rejections, Result, Round, Skipped
from gpuhost_exporter.specs import Sample, counter, gauge, histogram

ROUND_TRIP = histogram(
    "gpuhost_fabric_round_trip_seconds",
    "Seconds of small messages to the peer and back. Transport rdma: 8 bytes by perftest, processors' caches to "
    "caches; good is under gpuhost_target_collective_latency_seconds. mpi: an allreduce of 8 bytes over every host of "
    "the job (peer all); same target. tcp: datagrams of 66 bytes through both kernels and two programs; it has no "
    "target, only its own past.",
    "peer",
    "transport",
)
MEDIAN = gauge(
    "gpuhost_fabric_round_trip_median_seconds",
    "Median of the last round's round trips in seconds. For rdma and mpi good is under "
    "gpuhost_target_collective_latency_seconds; for tcp see gpuhost_fabric_round_trip_drift_ratio. Absent where the "
    "last round had no answer or is older than three intervals; one of mpi stays until the next, and "
    "gpuhost_fabric_probe_timestamp_seconds tells its age.",
    "peer",
    "transport",
)
DRIFT = gauge(
    "gpuhost_fabric_round_trip_drift_ratio",
    "Median of the last ten rounds over the median of up to a day of rounds before them. Good is about 1; 2 "
    "means twice as slow as this path usually is. Absent until there are ten rounds of either, and where there is no "
    "gpuhost_fabric_round_trip_median_seconds.",
    "peer",
    "transport",
)
LOSS = gauge(
    "gpuhost_fabric_probe_loss_ratio",
    "Share of the messages of the last 20 rounds that got no answer within a second, 0 to 1. Good is 0; 1 is a peer "
    "that is down. Datagrams are not sent again, so this is loss on the way or a host that does not come to answer.",
    "peer",
    "transport",
)
MESSAGES = counter(
    "gpuhost_fabric_probe_messages_total", "Messages sent to the peer to be answered.", "peer", "transport"
)
LOST = counter(
    "gpuhost_fabric_probe_lost_total",
    "Messages that the peer did not answer within a second. Good is no increase.",
    "peer",
    "transport",
)
AT = gauge(
    "gpuhost_fabric_probe_timestamp_seconds",
    "When the last round ended, answered or not, in seconds since the epoch. Rounds come every 30 s unless configured "
    "otherwise; those of mpi when somebody starts one.",
    "peer",
    "transport",
)
SKIPPED = counter(
    "gpuhost_fabric_probe_skipped_total",
    "Rounds that did not take place, by reason: peer_busy (it is in another round), busy_here (this host is), "
    "peer_refused (it has no RDMA configured, or runs another test), no_answer, failed (perftest did not come to a "
    "result; doctor has its words).",
    "peer",
    "transport",
    "reason",
)
REJECTED = counter(
    "gpuhost_fabric_probe_rejected_total",
    "Datagrams from the peer's address that were not taken for its own, by reason: malformed, unknown_key, forged, "
    "replayed, or rate: more than is agreed, left unread. Good is no increase; hosts with different keys show as "
    "unknown_key or forged.",
    "peer",
    "reason",
)
RANKS = gauge("gpuhost_fabric_collective_ranks", "Ranks that took part in the last allreduce of transport mpi.")

# 5e-6 is the guide's figure, so that the share below it can be told.
BOUNDS = (
    *(1e-6, 2e-6, 3e-6, 4e-6, 5e-6, 7e-6, 1e-5, 2e-5, 3e-5, 5e-5, 7e-5),
    *(1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1),
)
ALL_PEERS = "all"
_RECENT = 10
_DAY = 2880  # rounds at 30 s
_LOSS_ROUNDS = 20
_LASTS_ROUNDS = 3.5  # a test of perftest's comes some seconds after the round that led to it


class _Path:
    """What is kept of one peer and transport. A median is the present one for `lasts` seconds; without, for good."""

    def __init__(self, lasts: float | None) -> None:
        self._lasts = lasts
        self._median_at: float | None = None  # Clock.now(); None where the last round had no answer
        self.histogram = Histogram(BOUNDS)
        self.medians = array("d")
        self.losses: deque[tuple[int, int]] = deque(maxlen=_LOSS_ROUNDS)
        self.sent = 0
        self.lost = 0
        self.at = 0.0
        self.drift: float | None = None

    def add(self, found: Round, now: float) -> None:
        for seconds in found.seconds:
            self.histogram.add(seconds)
        self._median_at = now if found.seconds else None
        if found.seconds:
            self._add_median(median(found.seconds))
        if found.sent:
            self.losses.append((found.sent, found.lost))
        self.sent += found.sent
        self.lost += found.lost
        self.at = found.at

    def _add_median(self, seconds: float) -> None:
        self.medians.append(seconds)
        if len(self.medians) > _RECENT + _DAY:
            self.medians.pop(0)
        if len(self.medians) >= 2 * _RECENT:
            self.drift = median(self.medians[-_RECENT:]) / median(self.medians[:-_RECENT])

    def samples(self, peer: str, transport: str, now: float) -> Iterator[Sample]:
        yield from self.histogram.samples(ROUND_TRIP, peer, transport)
        yield AT(peer, transport, value=self.at)
        if self._median_at is not None and (self._lasts is None or now - self._median_at < self._lasts):
            yield MEDIAN(peer, transport, value=self.medians[-1])
            if self.drift is not None:
                yield DRIFT(peer, transport, value=self.drift)
        if self.losses:
            sent, lost = map(sum, zip(*self.losses, strict=True))
            yield LOSS(peer, transport, value=lost / sent)
            yield MESSAGES(peer, transport, value=self.sent)
            yield LOST(peer, transport, value=self.lost)


class LatencyCollector(Collector):
    name = "latency"
    help = "Latency and loss between this host and those that it is told to probe, and of MPI's allreduce"
    source = "datagrams to and from the hosts of [latency]; perftest; the result of gpuhost-exporter allreduce"
    interval = 10.0
    on_by_default = False
    switch = "a [latency] table in the configuration file, the same on every host; README.md shows one"
    specs = (ROUND_TRIP, MEDIAN, DRIFT, LOSS, MESSAGES, LOST, AT, SKIPPED, REJECTED, RANKS)

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        configured = host.settings.latency
        self._lasts = _LASTS_ROUNDS * (configured.interval if configured else INTERVAL_SECONDS)
        self._began = host.clock.wall()
        self._paths: dict[tuple[str, str], _Path] = {}
        self._skipped: Counter[tuple[str, str, str]] = Counter()
        self._rejected: Counter[tuple[str, str]] = Counter()
        self._failures: dict[str, str] = {}
        self._collective: Collective | None = None

    def poll(self, now: float) -> Iterator[Sample]:
        for found in self.host.latency.take():
            self._fold(found, now)
        with self.guard("allreduce"):
            self._take_collective(now)
        for (peer, transport), path in self._paths.items():
            yield from path.samples(peer, transport, now)
        for labels, count in self._skipped.items():
            yield SKIPPED(*labels, value=count)
        for rejected, count in self._rejected.items():
            yield REJECTED(*rejected, value=count)
        if self._collective:
            yield RANKS(value=self._collective.ranks)

    def remarks(self) -> tuple[str, ...]:
        kind, message = self.host.latency.state()
        probing = self.host.settings.latency is not None
        own = [f"the prober: {message} ({kind})"] if probing and kind != "ok" else []
        return (*own, *(f"{path}: {why}" for path, why in sorted(self._failures.items())), *super().remarks())

    def _fold(self, found: Result, now: float) -> None:
        if isinstance(found, Rejections):
            self._rejected[found.peer, found.reason] += found.count
            return
        path = f"{found.transport} to {found.peer}"
        if isinstance(found, Skipped):
            self._skipped[found.peer, found.transport, found.reason] += 1
            if found.why:
                self._failures[path] = found.why
        else:
            self._failures.pop(path, None)
            self._paths.setdefault((found.peer, found.transport), _Path(self._lasts)).add(found, now)

    def _take_collective(self, now: float) -> None:
        """A result that was there before this process has been counted by the one before it."""
        state = self.host.state
        state.retry()  # another process writes it
        found = parse(state.load(SUBJECT))
        if found is None or (self._collective and found.at == self._collective.at):
            return
        self._collective = found
        if found.at >= self._began:
            path = self._paths.setdefault((ALL_PEERS, MPI), _Path(lasts=None))
            path.add(Round(ALL_PEERS, MPI, found.seconds, 0, 0, found.at), now)
