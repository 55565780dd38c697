"""Where every GPU-second went: each second of each GPU's wall time is booked to exactly one account.

ledger.tick(now, seen)      what was read since the last tick
ledger.books[uuid].totals   account -> seconds, never going back

Time is booked a few seconds late, when what came after it is known. Time that nobody could tell anything of is
unknown; while the driver does not answer it is booked so as it passes.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gpuhost_exporter.ledger.book import Book
from gpuhost_exporter.ledger.checkpoint import Checkpoint, Mode, Watch
from gpuhost_exporter.ledger.classify import Around, shares, waits
from gpuhost_exporter.ledger.clocks import Clocks
from gpuhost_exporter.ledger.holder import Holder
from gpuhost_exporter.ledger.marks import Marks
from gpuhost_exporter.ledger.network import Network, Networks
from gpuhost_exporter.ledger.piece import HOST, RUNGS, Piece, Rung, Usual, Work, companions, jobs_of, of_activity, works
from gpuhost_exporter.ledger.thresholds import Thresholds
from gpuhost_exporter.sources.evidence import Evidence
from gpuhost_exporter.sources.marker import Mark
from gpuhost_exporter.sources.nvml.readings import NAMELESS, Activity

HOLD_SECONDS = 3.5  # time is settled so late
_SILENCE_SECONDS = 2.5  # a GPU that has told nothing for so long is unknown
_EMPTY_SECONDS = 20.0  # one without processes is read every 15 s
_KEPT_SECONDS = 10.0
_LONGEST_STEP = 1.4  # a tick that is somewhat late
_AT_REST = 0.9  # an idle share from which on a GPU has no work
_IDLE_PACE = 0.003  # by so much a second what is usual follows: stalls leave next to no trace
_LOST = frozenset({"lost", "needs_reset", "missing"})


@dataclass(frozen=True, slots=True)
class Seen:
    """What the host's readers have told. `states`: uuid -> one of GPU_STATES; `activities`: the last few of each GPU,
    oldest first; `windows` of processes, `marks` and `networks`: those that are new; `power_limits` in watts;
    `products`: uuid -> the GPU's name."""

    states: Mapping[str, str]
    activities: Sequence[Activity]
    windows: Sequence[Evidence] = ()
    power_limits: Mapping[str, float] = field(default_factory=dict)
    marks: Sequence[Mark] = ()
    networks: Sequence[Network] = ()
    products: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Gpu:
    book: Book
    activity: Activity | None = None
    usual_out: float | None = None
    usual_idle: float = 0.0
    latest: Piece | None = None
    # As of the time that is booked.
    holder: Holder = field(default_factory=Holder)
    spun: float = 0.0
    idle_since: float = 0.0


@dataclass(slots=True)
class _Job:
    watch: Watch
    marks: Marks
    works: deque[Work] = field(default_factory=deque)


class Ledger:
    """`spend(at, uuid, account, seconds)` hears of all that is booked."""

    def __init__(self, limits: Thresholds, spend: Callable[[float, str, str, float], None] = lambda *_: None) -> None:
        self._limits = limits
        self._spend = spend
        self._gpus: dict[str, _Gpu] = {}
        self._jobs: dict[str, _Job] = {}
        self._evidence_at = float("-inf")
        self._owners: dict[int, str] = {}  # pid of a GPU holder -> its job
        self._members: dict[int, str] = {}  # the same of every process that is followed
        self.worlds: dict[str, int] = {}  # ranks of a job on all its hosts, where its environment tells
        self._companions: dict[str, frozenset[str]] = {}  # a job's ranks in other pods or containers
        self._marks: list[Mark] = []  # of processes that no job is known of, yet
        self.marks: Counter[str] = Counter()  # "taken" and "unowned"
        self._settled: float | None = None
        self._networks = Networks(limits)
        self._clocks = Clocks()

    @property
    def books(self) -> dict[str, Book]:
        return {uuid: gpu.book for uuid, gpu in self._gpus.items()}

    @property
    def latest(self) -> dict[str, Piece]:
        """What each GPU told last."""
        return {uuid: self._networks.beside(uuid, gpu.latest) for uuid, gpu in self._gpus.items() if gpu.latest}

    @property
    def works(self) -> dict[str, Work]:
        """What each job's processes did last, where that is told."""
        return {name: job.works[-1] for name, job in self._jobs.items() if job.works}

    def rung(self, piece: Piece) -> Rung:
        """How the bytes of the GPU's job are known; of several jobs, those that are known worst."""
        works = self.works
        known = [works[job].rung for job in piece.jobs if job in works]
        return max(known, key=RUNGS.index) if known and len(known) == len(piece.jobs) else "none"

    def wants_network(self, now: float) -> bool:
        """Whether what the network adapters carry now would decide anything."""
        saving = any(job.watch.may_upload for job in self._jobs.values())
        return self._networks.wanted(now, (gpu.latest for gpu in self._gpus.values() if gpu.latest), saving=saving)

    def checkpoints_running(self) -> dict[str, float]:
        """job -> when the checkpoint that it stands for began."""
        own = {name: job.marks.running_since or job.watch.running_since for name, job in self._jobs.items()}
        found = {name: since for name, since in own.items() if since is not None}
        others = {other: since for name, since in found.items() for other in self._companions.get(name, ())}
        return others | found

    def in_progress(self) -> list[tuple[str, Mode]]:
        """Mount and mode, as far as they are known, of the checkpoints that checkpoints_running() tells of."""
        marked = [job.marks.running for job in self._jobs.values() if job.marks.running_since is not None]
        found = [job.watch.running for job in self._jobs.values() if job.marks.running_since is None]
        return [*marked, *(each for each in found if each)]

    def tick(self, now: float, seen: Seen) -> list[Checkpoint]:
        """Take in what was read and book what is old enough. Returns the checkpoints that have ended."""
        self._take(seen.windows)
        self._networks.take(now, seen.networks)
        activities: dict[str, list[Activity]] = {}
        for activity in seen.activities:
            activities.setdefault(activity.uuid, []).append(activity)
        for uuid, state in seen.states.items():
            gpu = self._gpus.get(uuid)
            if gpu is None:
                gpu = self._gpus[uuid] = _Gpu(Book(now), idle_since=now)
            self._observe(gpu, now, state, activities.get(uuid, ()), seen.power_limits.get(uuid))
        for uuid, gpu in list(self._gpus.items()):
            if uuid in seen.states:
                continue
            if uuid.startswith(NAMELESS):  # it has told its UUID: from now on its time is booked by that
                del self._gpus[uuid]
            else:
                self._tell(gpu, Piece(gpu.book.told, now, state="unknown"))
        self._mark(now, seen.marks)
        ended = self._settle_until(now - HOLD_SECONDS, seen.products)
        self._forget(now)
        return ended

    def _settle_until(self, horizon: float, products: Mapping[str, str]) -> list[Checkpoint]:
        """By steps of a tick, however late this one came: what ended on the way is booked before it is forgotten."""
        if self._settled is None:
            self._settled = horizon
        ended: list[Checkpoint] = []
        while self._settled < horizon:
            since, at = self._settled, horizon
            if at - since > _LONGEST_STEP:
                # In one go through what nothing is told of: a host may have slept for a day.
                same = min((gpu.book.pending[0].at for gpu in self._gpus.values() if gpu.book.pending), default=at)
                at = min(at, max(same, since + 1.0))
            self._settled = at
            ended += self._lead_watches(since, at)
            self._settle(at, products)
        return ended

    def _take(self, windows: Sequence[Evidence]) -> None:
        for evidence in windows:
            if evidence.at > max(self._evidence_at, evidence.since):
                self._evidence_at = evidence.at
                written = sum(device.write_bytes for device in evidence.host.devices or ())
                self._networks.drives(evidence.since, evidence.at, written)
                self._owners = jobs_of(evidence)
                self._members = {each.pid: each.job for each in evidence.processes if each.job} | self._owners
                self.worlds = {each.key: each.world_size for each in evidence.jobs if each.world_size}
                self._companions = companions(evidence)
                self._own()
                for name, work in works(evidence, self._limits).items():
                    if name in self._jobs:
                        self._jobs[name].works.append(work)

    def _mark(self, now: float, marks: Sequence[Mark]) -> None:
        """Hand marks to their jobs. A writer that has just been started is known a few seconds later."""
        holders = {
            process.pid for gpu in self._gpus.values() if gpu.activity for process in gpu.activity.processes or ()
        }
        waiting, self._marks = [*self._marks, *marks], []
        for mark in waiting:
            name = self._members.get(mark.pid) or (HOST if mark.pid in holders else "")
            if name in self._jobs:
                self._jobs[name].marks.take(mark)
                self.marks["taken"] += 1
            elif now - mark.at < HOLD_SECONDS:
                self._marks.append(mark)
            else:
                self.marks["unowned"] += 1
        for job in self._jobs.values():
            if job.marks:
                job.marks.forget(now, holders | self._members.keys())

    def _observe(
        self,
        gpu: _Gpu,
        now: float,
        state: str,
        activities: Sequence[Activity],
        power_limit: float | None,
    ) -> None:
        if state in _LOST:
            self._tell(gpu, Piece(gpu.book.told, now, state="lost"))
            return
        for activity in activities:
            if gpu.activity is None or activity.at > gpu.activity.at:
                self._read(gpu, activity, power_limit)
        last = gpu.activity
        if state == "ok" and last and _seldom_read(last) and now - last.at < _EMPTY_SECONDS:
            self._tell(gpu, Piece(gpu.book.told, now, held=last.processes is None))
        if now - gpu.book.told > _SILENCE_SECONDS:
            self._tell(gpu, Piece(gpu.book.told, now, state="unknown"))

    def _read(self, gpu: _Gpu, activity: Activity, power_limit: float | None) -> None:
        last = gpu.activity
        if activity.since > gpu.book.told and last and _seldom_read(last):
            self._tell(gpu, Piece(gpu.book.told, activity.since, held=last.processes is None))
        since = min(max(gpu.book.told, activity.since), activity.at)
        piece = of_activity(activity, last, since, self._limits, Usual(power_limit, gpu.usual_out, gpu.usual_idle))
        if piece.held:
            pids = tuple(process.pid for process in activity.processes or ())
            piece = self._known(piece.owned(self._owners, pids))
        if gpu.holder.present is None:
            gpu.holder.present = piece.held
        if piece.out is not None and piece.working and piece.idle <= self._limits.gap_ratio:
            gpu.usual_out = piece.out if gpu.usual_out is None else 0.8 * gpu.usual_out + 0.2 * piece.out
        if piece.held and piece.idle < _AT_REST and not piece.spinning:
            pace = _IDLE_PACE * piece.seconds
            gpu.usual_idle += min(pace, max(-pace, piece.idle - gpu.usual_idle))
        self._tell(gpu, piece)
        gpu.activity = activity

    def _own(self) -> None:
        """Give what is not booked yet to the jobs of its processes, now that these are told."""
        for gpu in self._gpus.values():
            for number, piece in enumerate(gpu.book.pending):
                if piece.unowned and not self._owners.keys().isdisjoint(piece.pids):
                    gpu.book.pending[number] = self._known(piece.owned(self._owners, piece.pids))
            if gpu.latest and gpu.latest.unowned and not self._owners.keys().isdisjoint(gpu.latest.pids):
                gpu.latest = gpu.latest.owned(self._owners, gpu.latest.pids)

    def _known(self, piece: Piece) -> Piece:
        for name in piece.jobs:
            if name not in self._jobs:
                self._jobs[name] = _Job(Watch(name, self._limits), Marks(name, self._limits, piece.since))
        return piece

    @staticmethod
    def _tell(gpu: _Gpu, piece: Piece) -> None:
        gpu.book.tell(piece)
        if piece.at > piece.since:
            gpu.latest = piece

    def _lead_watches(self, since: float, horizon: float) -> list[Checkpoint]:
        ended: list[Checkpoint | None] = []
        for name, job in self._jobs.items():
            pieces = [
                [self._networks.beside(uuid, piece) for piece in gpu.book.pending if name in piece.jobs]
                for uuid, gpu in self._gpus.items()
            ]
            works = tuple(job.works)
            having = [gpu for gpu, of_gpu in zip(self._gpus.values(), pieces, strict=True) if of_gpu]
            starting = bool(having) and all(gpu.holder.unworked(name, gpu.book, self._limits) for gpu in having)
            if job.marks:
                ended += (job.watch.interrupt(), job.marks.advance(since, horizon, pieces, works))
            else:
                blind = any(_silent(gpu, since, horizon) for gpu in self._gpus.values() if name in gpu.holder.jobs)
                ended.append(
                    job.watch.advance(since, horizon, pieces, works, self._networks, starting=starting, blind=blind)
                )
        return [found for found in ended if found]

    def _settle(self, horizon: float, products: Mapping[str, str]) -> None:
        unbooked: dict[str, list[Piece]] = {}
        for uuid, gpu in self._gpus.items():
            unbooked.setdefault(products.get(uuid, ""), []).extend(gpu.book.pending)
        self._clocks.take(unbooked)
        for uuid, gpu in self._gpus.items():
            for settled in gpu.book.settled(horizon):
                piece = self._networks.beside(uuid, settled)
                clock = self._clocks.beside(products.get(uuid, ""), piece) if piece.held_back else None
                booked = gpu.book.book(piece, shares(piece, self._around(uuid, gpu, piece, clock), self._limits))
                for account, spent in booked.items():
                    self._spend(piece.at, uuid, account, spent)
                if seconds := booked.get("checkpoint"):
                    self._cost(piece, seconds)

    def _cost(self, piece: Piece, seconds: float) -> None:
        for job in self._saved_for(piece):
            if job.marks:
                job.marks.cost(seconds)
                return
            if job.watch.covers(piece.since, piece.at):
                job.watch.cost(seconds)
                return

    def _saved_for(self, piece: Piece) -> list[_Job]:
        """The jobs for whose checkpoints the GPU may stand: its own first."""
        others = {other for name in piece.jobs for other in self._companions.get(name, ())} - set(piece.jobs)
        return [self._jobs[name] for name in (*piece.jobs, *sorted(others)) if name in self._jobs]

    def _around(self, uuid: str, gpu: _Gpu, piece: Piece, clock: float | None) -> Around:
        """What there is to know about the piece that is booked next; moves the GPU's history on."""
        limits = self._limits
        starting = gpu.holder.follow(piece, limits)
        following = gpu.book.following()
        spins_on = following is not None and self._networks.beside(uuid, following).spinning
        waiting = waits(piece, spins_on, gpu.spun, limits)
        gpu.spun = gpu.spun + piece.seconds if piece.spinning else 0.0
        if piece.state != "read" or piece.busy > limits.gap_ratio:
            gpu.idle_since = piece.at
        jobs = [self._jobs[name] for name in piece.jobs]
        around = tuple(work for job in jobs for work in job.works if work.since < piece.at and piece.since < work.at)
        return Around(
            works=around,
            checkpoint=max((_saving(job, piece) for job in self._saved_for(piece)), default=0.0),
            starting=starting,
            waiting=waiting,
            idle_for=piece.at - gpu.idle_since,
            clock=clock,
            cores=max((work.cores.get(uuid, 0.0) for work in around), default=0.0),
        )

    def _forget(self, now: float) -> None:
        for job in self._jobs.values():
            while job.works and job.works[0].at < now - _KEPT_SECONDS:
                job.works.popleft()
        held = {name for gpu in self._gpus.values() for piece in gpu.book.pending for name in piece.jobs}
        held.update(*(gpu.holder.jobs for gpu in self._gpus.values()))  # nothing may be told of it for a while
        for name, job in list(self._jobs.items()):
            if name not in held and job.watch.running_since is None and not job.marks:
                del self._jobs[name]


def _silent(gpu: _Gpu, since: float, at: float) -> bool:
    """Whether nothing is told of some of that stretch."""
    return any(piece.state == "unknown" and piece.since < at and since < piece.at for piece in gpu.book.pending)


def _saving(job: _Job, piece: Piece) -> float:
    """The share of a piece for which the job stands for a checkpoint."""
    if job.marks:
        return job.marks.share(piece.since, piece.at)
    return float(job.watch.covers(piece.since, piece.at))


def _seldom_read(activity: Activity) -> bool:
    """Whether the GPU was left alone after that reading: nothing was on it."""
    if activity.processes is None:
        return not (activity.graphics_ratio or activity.utilization_ratio)
    return not activity.processes
