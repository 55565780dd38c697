"""What one GPU did in one stretch of time, and what its jobs' processes did meanwhile: the ledger's input.

Both are made from readings by functions without state; nothing here reads anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from gpuhost_exporter.ledger.thresholds import Thresholds
from gpuhost_exporter.sources.evidence import Evidence, MountIo, ProcessSample
from gpuhost_exporter.sources.nvml.readings import Activity

# Heat and the power brake. 0x4, the power cap, is normal at full load; 0x8 may be any slowdown of the hardware.
_HELD_BACK = 0x20 | 0x40 | 0x80
_THERMAL = "thermal"
# How the bytes of a job are known, best first.
Rung = Literal["process", "cgroup", "host", "none"]
RUNGS: tuple[Rung, ...] = get_args(Rung)
HOST = "host"  # the one job of a host whose processes are not told


@dataclass(frozen=True, slots=True)
class Piece:
    """Ratios are of the stretch from `since` to `at`. A lost or unknown one tells nothing more."""

    since: float
    at: float
    state: Literal["read", "lost", "unknown"] = "read"
    held: bool = False  # some process has the GPU
    busy: float = 0.0
    profiled: bool = False  # by GPM; else by NVML's utilization
    density: float | None = None  # SM activity while busy
    working: bool = False  # tensor cores in use; without GPM, busy at all
    lone: bool = False  # busy on few SMs without math, or without GPM at low power
    spinning: bool = False  # that, and no memory, no traffic
    exchanging: bool = False  # that, and traffic over links or network adapters
    copied: float = 0.0  # bytes that left the GPU over PCIe while it was idle
    out: float | None = None  # bytes per second over PCIe, whatever for
    usual_idle: float = 0.0  # of the GPU while it has work
    clock: float | None = None  # hertz
    held_back: bool = False  # by heat or the power brake
    jobs: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()  # of its processes, where these are told
    unowned: bool = False  # nobody has told whose they are, yet

    @property
    def seconds(self) -> float:
        return self.at - self.since

    @property
    def idle(self) -> float:
        return 1.0 - self.busy

    @property
    def copying(self) -> bool:
        return self.copied > 0

    def networked(self, rate: float, limits: Thresholds) -> Piece:
        """The lone piece, knowing what its GPU's network adapters carry: bytes per second."""
        return replace(
            self,
            spinning=self.spinning and rate < limits.quiet_bytes_per_second,
            exchanging=self.exchanging or (self.profiled and rate >= limits.network_bytes_per_second),
        )

    def owned(self, owners: Mapping[int, str], pids: tuple[int, ...]) -> Piece:
        """The piece with the jobs of the processes that have the GPU."""
        jobs = tuple(sorted({owners[pid] for pid in pids if pid in owners}))
        # Whose copies leave a GPU that several have, nobody can tell.
        copied = self.copied if len(jobs) <= 1 else 0.0
        return replace(self, jobs=jobs or (HOST,), pids=pids, unowned=not jobs, copied=copied)

    def cut(self, at: float) -> tuple[Piece, Piece]:
        """What was before that moment and what after; copied bytes go by time."""
        part = (at - self.since) / self.seconds
        return (
            replace(self, at=at, copied=self.copied * part),
            replace(self, since=at, copied=self.copied * (1 - part)),
        )


@dataclass(frozen=True, slots=True)
class Usual:
    """What else is known of a GPU: `out` is what it sends over PCIe while it works, bytes per second; `idle` its idle
    share then."""

    power_limit: float | None = None
    out: float | None = None
    idle: float = 0.0


def of_activity(now: Activity, before: Activity | None, since: float, limits: Thresholds, usual: Usual) -> Piece:
    """The piece from `since` to the reading's moment; `before` is the reading before it, for what is counted.

    A GPU of which nothing tells how busy it is (cut into MIG instances) and that some process has is unknown.
    """
    profiled = now.graphics_ratio is not None
    busy = now.graphics_ratio if profiled else now.utilization_ratio
    held = now.processes is None or bool(now.processes)
    if busy is None:
        return Piece(since, now.at, state="unknown" if held else "read")
    rates = [_link_rate(now, before, "nvlink_tx_bytes"), _link_rate(now, before, "nvlink_rx_bytes")]
    link = max((rate for rate in rates if rate is not None), default=0.0)
    out, into = _pcie(now, before, "tx"), _pcie(now, before, "rx")
    network = min(out or 0.0, into or 0.0)  # an exchange goes both ways
    quiet = max(link, network) < limits.quiet_bytes_per_second
    lone = spinning = exchanging = False
    density = None
    if profiled:
        working = (now.tensor_ratio or 0.0) >= limits.math_tensor_ratio
        if now.sm_active_ratio is not None and busy > limits.gap_ratio:
            density = min(1.0, now.sm_active_ratio / busy)
            lone = density <= limits.spin_sm_ratio and not working
            exchanging = lone and (link >= limits.link_bytes_per_second or network >= limits.network_bytes_per_second)
            spinning = lone and quiet and (now.memory_bandwidth_ratio or 0.0) < limits.spin_memory_ratio
    else:
        working = busy > 0.5
        watts, limit = now.power_watts, usual.power_limit
        low = watts is not None and limit is not None and watts < limits.classic_power_ratio * limit
        lone = low and busy >= limits.classic_busy_ratio
        spinning = lone and quiet
    copied = _copied(out, busy, usual.out, limits)
    return Piece(
        since=since,
        at=now.at,
        held=held,
        busy=busy,
        profiled=profiled,
        density=density,
        working=working,
        lone=lone,
        spinning=spinning,
        exchanging=exchanging,
        copied=copied * (now.at - since),
        out=out,
        usual_idle=usual.idle,
        clock=now.sm_clock_hertz,
        held_back=bool((now.clock_event_reasons or 0) & _HELD_BACK) or _heat_counted(now, before),
    )


def _link_rate(now: Activity, before: Activity | None, field: str) -> float | None:
    new, old = getattr(now, field), getattr(before, field, None)
    if before is None or new is None or old is None or now.at <= before.at or new < old:
        return None
    return float(new - old) / (now.at - before.at)


def _pcie(now: Activity, before: Activity | None, direction: str) -> float | None:
    rate: float | None = getattr(now, f"pcie_{direction}_bytes_per_second")
    return rate if rate is not None else _link_rate(now, before, f"pcie_{direction}_bytes")


def _copied(out: float | None, busy: float, usual: float | None, limits: Thresholds) -> float:
    """Bytes per second that left for another reason than work: what work sends is taken off by its share of the time.

    Only a GPU that stands most of the time copies, and only what is more than work ever sends.
    """
    idle = 1.0 - busy
    if out is None or idle < 0.5:
        return 0.0
    beyond = out - busy * (usual or 0.0)
    return beyond if beyond >= idle * max(limits.copy_bytes_per_second, usual or 0.0) else 0.0


def _heat_counted(now: Activity, before: Activity | None) -> bool:
    if before is None:
        return False
    old = dict(before.throttled_seconds).get(_THERMAL)
    new = dict(now.throttled_seconds).get(_THERMAL)
    return old is not None and new is not None and new > old


@dataclass(frozen=True, slots=True)
class Work:
    """What a job's processes did between `since` and `at`. Bytes; cores by the GPU whose holder burned them; `blocked`:
    GPUs whose holder, or a process below it, waits for the disk.

    `made`: of the bytes written, without those that were only copied, where that is told; negative where it is told
    late. On rung none the bytes are not known.
    """

    since: float
    at: float
    rung: Rung
    wrote: float
    made: float
    read: float
    writer_blocked: bool
    loading: bool  # loaders wait for the disk or burn CPU
    cores: Mapping[str, float]
    mount: str
    blocked: frozenset[str] = frozenset()

    @property
    def seconds(self) -> float:
        return self.at - self.since


def jobs_of(evidence: Evidence) -> dict[int, str]:
    """pid of a GPU holder -> its job's key."""
    return {pid: evidence.jobs[place].key for pid, place in evidence.holders}


def companions(evidence: Evidence) -> dict[str, frozenset[str]]:
    """A job's key -> the keys of those that are the same job in other pods or containers: they meet at one place and
    have other ranks."""
    ranks: dict[tuple[str, int | None, str | None], dict[str, set[int]]] = {}
    for each in evidence.jobs:
        if each.meeting and ":" in each.meeting and each.rank is not None:
            met = ranks.setdefault((each.meeting, each.world_size, each.account), {})
            met.setdefault(each.key, set()).add(each.rank)
    return {
        key: frozenset(of.keys() - {key})
        for of in ranks.values()
        if len(of) > 1 and len(set().union(*of.values())) == sum(map(len, of.values()))
        for key in of
    }


def works(evidence: Evidence, limits: Thresholds) -> dict[str, Work]:
    """Each job's work in the window, on the best rung of the ladder that tells it.

    HOST's is everybody's: for GPUs whose processes /proc does not show.
    """
    jobs = sorted({identity.key for identity in evidence.jobs})
    return {job: _work(evidence, job, len(jobs), limits) for job in (*jobs, HOST)}


def _work(evidence: Evidence, job: str, jobs: int, limits: Thresholds) -> Work:
    seconds = evidence.at - evidence.since
    processes = [process for process in evidence.processes if process.job == job]
    wrote, made, read, rung = _bytes(evidence, job, processes, jobs)
    loaders = [process for process in processes if process.role == "loader"]
    burned = sum(process.cpu_seconds or 0.0 for process in loaders)
    cores: dict[str, float] = {}
    stuck = {process.holder for process in processes if process.threads_blocked}
    for process in processes:
        for uuid in process.gpus:
            used = (process.cpu_seconds or 0.0) / seconds if seconds > 0 else 0.0
            cores[uuid] = cores.get(uuid, 0.0) + used
    return Work(
        since=evidence.since,
        at=evidence.at,
        rung=rung,
        wrote=wrote,
        made=made,
        read=read,
        writer_blocked=any(process.role != "loader" and process.threads_blocked for process in processes),
        loading=any(process.threads_blocked for process in loaders) or burned >= limits.holder_cores * seconds,
        cores=cores,
        mount=_mount(processes, evidence.host.most_written, wrote),
        blocked=frozenset(uuid for process in processes if process.pid in stuck for uuid in process.gpus),
    )


def _bytes(
    evidence: Evidence, job: str, processes: Sequence[ProcessSample], jobs: int
) -> tuple[float, float, float, Rung]:
    """(written, made, read, how that is known)."""
    if processes and job not in evidence.left_out and not any(process.denied for process in processes):
        return (
            float(sum(process.wrote or 0 for process in processes)),
            float(sum(process.made_bytes or 0 for process in processes)),
            float(sum(process.read or 0 for process in processes)),
            "process",
        )
    groups = [group for group in evidence.cgroups if group.job == job and group.write_bytes is not None]
    if groups:
        # Dirtied has the direct writes too, and counts page cache once: as it comes, not again as it goes.
        told = (group.write_bytes if group.dirtied_bytes is None else group.dirtied_bytes for group in groups)
        wrote = float(sum(max(0, each or 0) for each in told))
        return wrote, wrote, float(sum(group.read_bytes or 0 for group in groups)), "cgroup"
    host = evidence.host
    if host.dirtied_bytes is None and host.devices is None:
        return 0.0, 0.0, 0.0, "none"
    devices = host.devices or ()
    # What devices took beyond what came out of the page cache was written directly.
    moved = sum(device.write_bytes for device in devices)
    direct = max(0, moved - (host.written_bytes or 0))
    wrote = ((host.dirtied_bytes or 0) + direct) / max(1, jobs)
    # Of several jobs on the host nobody knows whose bytes these are.
    return wrote, wrote, sum(device.read_bytes for device in devices) / max(1, jobs), "host"


def _mount(processes: Iterable[ProcessSample], moved: MountIo | None, wrote: float) -> str:
    """Where the one that wrote most writes to; where that is not told, whose device took most of it, whoever wrote.
    Empty where neither is plain.
    """
    writing = [process for process in processes if process.mount and process.wrote]
    if writing:
        return max(writing, key=lambda process: process.wrote or 0).mount or ""
    return moved.point if moved and moved.write_bytes and 2 * moved.write_bytes >= wrote else ""
