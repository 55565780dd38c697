"""Where every GPU-second went: accounts, checkpoints, culprits. Folds what the other readers told; reads nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gpuhost_exporter.collector import Collector, lifetime
from gpuhost_exporter.collectors import checkpoints, jobs
from gpuhost_exporter.collectors.per_gpu import gpu_counter, gpu_gauge, gpu_info, gpu_labels, one_of
from gpuhost_exporter.host import Host
from gpuhost_exporter.ledger.accounts import ACCOUNTS
from gpuhost_exporter.sources import placement
from gpuhost_exporter.sources.nvml.readings import NAMELESS, Activity, Gpu, Health
from gpuhost_exporter.specs import Sample, gauge

if TYPE_CHECKING:
    from gpuhost_exporter.ledger.checkpoint import Checkpoint
    from gpuhost_exporter.ledger.ledger import Seen
    from gpuhost_exporter.ledger.network import Network
    from gpuhost_exporter.ledger.piece import Piece
    from gpuhost_exporter.sources.evidence import Evidence
    from gpuhost_exporter.sources.traffic import Traffic

log = logging.getLogger(__name__)

SAVE_SECONDS = 15.0
_FIRST_SAVE_SECONDS = 5.0  # a short run leaves its trace too
# What two clocks differ by from poll to poll is not told: a time that stands would have another value at each scrape.
_WALL_MOVED = 0.1
PHASES = (
    "computing",
    "communicating",
    "waiting",
    "checkpointing",
    "idle",
    "unallocated",
    "lost",
    "unknown",
)

TIME = gpu_counter(
    "gpuhost_gpu_time_seconds_total",
    "Wall time of the GPU since the exporter first saw it, each second booked to exactly one account, about 4 s late "
    "(gpuhost_ledger_pending_seconds is not booked yet). compute: work, overlapped communication included. busy: the "
    "same without profiling counters. communication: NVLink, PCIe both ways or the nearest network adapters move data "
    "and nothing computes; overlapped communication never shows here. waiting: kernels spin without math or traffic "
    "for 2 s or more, as in a collective that somebody did not join; any kernel on few SMs without memory traffic "
    "looks the same, unless others keep its network adapters busy. checkpoint: its job writes, or copies out of its "
    "GPUs, while they stand, or marks one, in another pod too where ranks meet at one MASTER_ADDR; before a new job's "
    "first work only a marked one. "
    "startup and restore: until 10 s of tensor work, at most 10 min; restore while files are read. "
    "data: idle while the job reads, or its loaders block or burn CPU; any process below the holder that burns CPU and "
    "does not write counts as a loader, before host. host: idle while the holder burns CPU, the gaps between kernels "
    "too. held_idle: idle with none of these, or where nothing is told of processes. "
    "throttled: an estimate, busy time lost to heat or power brake, by the clock of GPUs of the same product that "
    "neither holds back, or the last such clock seen where all are held back; none before one was seen. "
    "unallocated: no process. lost: the GPU does not answer or needs a reset. unknown: nothing told, as in a driver "
    "upgrade. A GPU in MIG instances is unknown while any has a process: nothing tells the whole GPU's activity. Of "
    "several jobs on a GPU the evidence of any counts, copies tell nothing, and a checkpoint of one is booked though "
    "the others may have idled.",
    "account",
)
PENDING = gpu_gauge(
    "gpuhost_ledger_pending_seconds",
    "The newest seconds, not yet booked: what follows decides what they were. At most 5; with the booked ones they "
    "are all of the time since the exporter first saw the GPU.",
)
GAP = gauge(
    "gpuhost_ledger_gap_seconds",
    "Seconds between the last time that an earlier run of the exporter booked and the start of this one. Nothing is "
    "booked for them. Absent where there was no earlier run.",
)
EVIDENCE = gpu_info(
    "gpuhost_ledger_evidence_info",
    "What the GPU's accounts are judged by: activity gpm or nvml, and how the bytes of its job are known: process, "
    "cgroup, host (everybody's, shared out) or none; of several jobs the one known worst. Below process checkpoints "
    "and data stalls are less certain; at none only copies and marks tell of checkpoints, and data is held_idle.",
    "activity",
    "processes",
)
PRICE = gpu_gauge(
    "gpuhost_price_dollars_per_gpu_hour",
    "Dollars for an hour of this GPU, from the configuration's [price]; 3 where nothing is set.",
)
PHASE = gpu_gauge(
    "gpuhost_gpu_phase",
    "What the GPU does now, 1 for the current one: a first look, without what comes after it.",
    "phase",
)
PHASE_SINCE = gpu_gauge("gpuhost_gpu_phase_since_timestamp_seconds", "Since when the GPU's phase has been what it is.")
STEP = gpu_gauge(
    "gpuhost_gpu_step_seconds",
    "Seconds of a training step of the GPU's job, by the rhythm of tensor work, or of NVLink where that is not told, "
    "of this host's GPUs in the last 96 s. Told only where it shows plainly at a reading a second: steps of 3 to 30 s "
    "with a pause in each. A step under 2 s that is mostly pause may show as a multiple.",
)
DENSITY = gpu_gauge(
    "gpuhost_gpu_busy_sm_ratio",
    "SM activity while the GPU is busy with math, averaged over about 10 s. Within a synchronous job the one with "
    "the most waits least: its siblings wait for it. Pipeline stages of unequal size show the same.",
)
HANG = gpu_gauge(
    "gpuhost_gpu_hang_seconds",
    "Seconds for which GPUs of the job on this host have spun without math or traffic while the others stand (idle, "
    "lost, unknown, without a process): two or more, at least half where jobs cannot be told apart, or all but one "
    "whatever that does. 0 below 30, below 60 without profiling counters (where a service at low power looks the "
    "same), during a checkpoint, and for a lone GPU unless its job is known to have more elsewhere. A job that stands "
    "here and has no culprit on this host waits for another one.",
)
CULPRIT = gpu_gauge(
    "gpuhost_gpu_culprit",
    "1 for a GPU that holds its job up: not_joined (its siblings hang in a collective that it did not join) or "
    "straggler (its siblings have waited for it for half a minute).",
    "kind",
)
CULPRIT_INFO = gpu_info(
    "gpuhost_gpu_culprit_info",
    "Why the GPU is a culprit. Of not_joined: lost, unknown, no_process, blocked (its process, or one below it, waits "
    "for the disk), idle or busy; xid is the GPU's last XID error, if it came later than 5 min before the hang began. "
    "Of straggler: heat, clock or unexplained.",
    "kind",
    "evidence",
    "xid",
)


class LedgerCollector(Collector):
    name = "ledger"
    help = "Where every GPU-second went, what checkpoints cost, who holds a job up"
    source = (
        "what the gpu and gpu_health collectors and the privileged reader told; /proc of GPU processes; bytes of RDMA "
        "ports and network interfaces while they decide something"
    )
    privilege = "CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH for the I/O of other users' processes; cgroups need nothing"
    interval = 1.0
    specs = (
        TIME,
        PENDING,
        GAP,
        EVIDENCE,
        PRICE,
        *checkpoints.SPECS,
        PHASE,
        PHASE_SINCE,
        STEP,
        DENSITY,
        HANG,
        CULPRIT,
        CULPRIT_INFO,
        *jobs.SPECS,
    )

    def __init__(self, host: Host) -> None:
        # Imported by who runs it: its memory is not for hosts where it is off.
        from gpuhost_exporter.ledger import hours
        from gpuhost_exporter.ledger.cost import per_gpu
        from gpuhost_exporter.ledger.culprit import Culprits
        from gpuhost_exporter.ledger.ledger import Ledger, Seen
        from gpuhost_exporter.ledger.network import Network
        from gpuhost_exporter.ledger.rhythm import Rhythm
        from gpuhost_exporter.ledger.thresholds import Thresholds, check_intervals

        super().__init__(host)
        limits = Thresholds.load(host.settings.ledger)
        check_intervals(host.settings.collectors)
        self._seen_of = Seen
        self._network_of = Network
        self._nearness = placement.Nearness(host.root)
        self._per_gpu = per_gpu
        self._limits = limits
        self._ledger = Ledger(limits, self._spend)
        self._culprits = Culprits(limits)
        self._rhythm = Rhythm()
        self._hours = hours.Hours(host.state)
        self._saved_at: float | None = None
        self._gap: float | None = None
        self._wall = 0.0  # of the moment 0 of Clock.now(), give or take _WALL_MOVED
        self._checkpoints = checkpoints.Checkpoints()
        self._jobs = jobs.Jobs(host.settings.job)
        self._phases: dict[str, tuple[str, float]] = {}
        self._nameless: dict[str, str] = {}  # of GPUs that were lost before they told a UUID: name -> state

    def poll(self, now: float) -> Iterator[Sample]:
        wall = self.host.clock.wall() - now
        if abs(wall - self._wall) > _WALL_MOVED:
            self._wall = wall
        if self._saved_at is None:
            self._saved_at = now - SAVE_SECONDS + _FIRST_SAVE_SECONDS
            before = self._hours.last_booked()
            self._hours.load(self._wall + now)
            self._gap = None if before is None else max(0.0, self._wall + now - before)
        gpus = (*self.host.nvml.gpus(), *self._unnamed())
        seen = self._seen(now)
        for checkpoint in self._ledger.tick(now, seen):
            self._checkpoints.add(checkpoint, now)
            _log(checkpoint)
        if self._ledger.wants_network(now):
            self.host.traffic.look()
        latest, works = self._ledger.latest, self._ledger.works
        self._rhythm.tick(now, {uuid: piece.jobs[0] for uuid, piece in latest.items() if piece.jobs}, seen.activities)
        running, worlds = self._ledger.checkpoints_running(), self._ledger.worlds
        self._culprits.tick(now, latest, works, running, worlds, self._xids(now))
        if now - self._saved_at >= SAVE_SECONDS:
            self._saved_at = now
            prices = {gpu.uuid: self._price(gpu) for gpu in gpus}
            self._hours.save(self._wall + now, gpus, prices)
            self.post("spent", self._per_gpu(self._hours.day(self._wall + now, gpus, prices)))
        if self._gap is not None:
            yield GAP(value=self._gap)
        for gpu in gpus:
            yield from self._accounts(now, gpu)
            if piece := latest.get(gpu.uuid):
                yield from self._present(gpu, piece)
        yield from self._blame(gpus)
        yield from self._checkpoints.progress(self._ledger.in_progress())
        yield from self._checkpoints.samples(now, self._wall)
        yield from self._marks()
        evidence = self.host.processes.last()
        if evidence and now - evidence.at <= lifetime(self.interval):
            yield from self._who(seen.activities, evidence)

    def remarks(self) -> tuple[str, ...]:
        state, _ = self.host.processes.state()
        told = [] if state in ("ok", "starting") else [f"I/O of GPU processes: {state}"]
        if self.host.marker and self.host.marker.reason:
            told.append(f"marker: {self.host.marker.reason}")
        return (*super().remarks(), *told)

    def _unnamed(self) -> list[Gpu]:
        """GPUs that were lost before they told a UUID: their time passes, too."""
        nvml = self.host.nvml
        told = {f"{NAMELESS}{index}": state for index, state in sorted(nvml.unopened().items())}
        # While the driver cannot be read they are what all are.
        self._nameless = told if nvml.state() == "ok" else dict.fromkeys(self._nameless, "unknown") | told
        return [Gpu(int(name.removeprefix(NAMELESS)), name, "", "", *(None,) * 9) for name in self._nameless]

    def _seen(self, now: float) -> Seen:
        board, nvml = self.host.board, self.host.nvml
        posted = [reading for readings in board.recent("activity", tuple, now) for reading in readings]
        activities = [reading for reading in posted if isinstance(reading, Activity)]
        healths = [reading for reading in board.last("health", tuple, now) or () if isinstance(reading, Health)]
        return self._seen_of(
            states=nvml.gpu_states() | self._nameless,
            activities=activities,
            windows=self.host.processes.take(),
            power_limits={health.uuid: health.power_limit_watts for health in healths if health.power_limit_watts},
            marks=self.host.marker.take() if self.host.marker else (),
            networks=[self._network(traffic) for traffic in self.host.traffic.take()],
            products={gpu.uuid: gpu.name for gpu in nvml.gpus()},
        )

    def _xids(self, now: float) -> dict[str, tuple[str, float]]:
        told = self.host.board.last("xids", dict, now) or {}
        return {uuid: (xid, wall - self._wall) for uuid, (xid, wall) in told.items()}

    def _network(self, traffic: Traffic) -> Network:
        carried = {each.address: each for each in traffic.adapters}
        rates = {}
        for gpu in self.host.nvml.gpus():
            near = [carried[address] for address in self._nearness.nearest(gpu.bdf, carried)[1]]
            moved = max(sum(each.received for each in near), sum(each.sent for each in near))
            rates[gpu.uuid] = moved / traffic.seconds
        sent = sum(each.sent for each in traffic.adapters) / traffic.seconds
        kernel = None if traffic.sent is None else traffic.sent / traffic.seconds
        return self._network_of(traffic.since, traffic.at, rates, sent, kernel)

    def _spend(self, at: float, uuid: str, account: str, seconds: float) -> None:
        self._hours.add(self._wall + at, uuid, account, seconds)

    def _price(self, gpu: Gpu) -> float:
        return self.host.settings.price.of(gpu.name)

    def _accounts(self, now: float, gpu: Gpu) -> Iterator[Sample]:
        labels = gpu_labels(gpu)
        yield PRICE(*labels, value=self._price(gpu))
        book = self._ledger.books.get(gpu.uuid)
        if book:
            for account in ACCOUNTS:
                yield TIME(*labels, account, value=book.totals[account])
            yield PENDING(*labels, value=max(0.0, now - book.booked))

    def _present(self, gpu: Gpu, piece: Piece) -> Iterator[Sample]:
        labels = gpu_labels(gpu)
        yield EVIDENCE(*labels, "gpm" if piece.profiled else "nvml", self._ledger.rung(piece))
        for job in piece.jobs[:1]:
            if job in self._rhythm.periods:
                yield STEP(*labels, value=self._rhythm.periods[job])
        phase = self._phase(piece)
        known, since = self._phases.get(gpu.uuid, ("", 0.0))
        if phase != known:
            since = piece.since
            self._phases[gpu.uuid] = (phase, since)
        yield from one_of(PHASE, labels, PHASES, phase)
        yield PHASE_SINCE(*labels, value=self._wall + since)

    def _phase(self, piece: Piece) -> str:
        if piece.state != "read":
            return piece.state
        standing = piece.idle > 0.5 or piece.spinning
        if standing and any(job in self._ledger.checkpoints_running() for job in piece.jobs):
            return "checkpointing"
        if piece.spinning:
            return "waiting"
        if piece.exchanging:
            return "communicating"
        if piece.busy >= 0.5:
            return "computing"
        return "idle" if piece.held else "unallocated"

    def _blame(self, gpus: tuple[Gpu, ...]) -> Iterator[Sample]:
        found = {(culprit.uuid, culprit.kind): culprit for culprit in self._culprits.found}
        densities = self._culprits.densities
        for gpu in gpus:
            labels = gpu_labels(gpu)
            yield HANG(*labels, value=self._culprits.hung.get(gpu.uuid, 0.0))
            if gpu.uuid in densities:
                yield DENSITY(*labels, value=densities[gpu.uuid])
            for kind in self._culprits.kinds:
                culprit = found.get((gpu.uuid, kind))
                yield CULPRIT(*labels, kind, value=float(culprit is not None))
                if culprit:
                    yield CULPRIT_INFO(*labels, kind, culprit.evidence, culprit.xid)

    def _marks(self) -> Iterator[Sample]:
        marker = self.host.marker
        if marker and not marker.reason:
            counts = marker.counts + self._ledger.marks
            for result in checkpoints.RESULTS:
                yield checkpoints.MARKS(result, value=counts[result])

    def _who(self, activities: Sequence[Activity], evidence: Evidence) -> Iterator[Sample]:
        held = {activity.uuid: activity.processes for activity in activities}
        for gpu in self.host.nvml.gpus():
            processes = held.get(gpu.uuid)
            if processes is not None:
                yield from self._jobs.samples(gpu_labels(gpu), processes, evidence)


def _log(checkpoint: Checkpoint) -> None:
    if checkpoint.name:
        log.info(
            "checkpoint %s of %s: %.1f s, %.1f GB",
            checkpoint.name,
            checkpoint.job,
            checkpoint.seconds,
            checkpoint.bytes / 1e9,
        )
