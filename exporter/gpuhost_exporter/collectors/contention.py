"""What keeps the job from running when it could: stolen CPU time, waits for a CPU, OOM kills."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from gpuhost_exporter.collector import Collector
from gpuhost_exporter.errors import SourceError, Unavailable
from gpuhost_exporter.host import Host
from gpuhost_exporter.ledger.histogram import Histogram
from gpuhost_exporter.sources import contention
from gpuhost_exporter.sources.kmsg import LoggedKill
from gpuhost_exporter.sources.nvml.readings import Activity
from gpuhost_exporter.specs import Sample, Spec, counter, histogram

STEAL = counter(
    "gpuhost_cpu_steal_seconds_total",
    "CPU seconds that the hypervisor gave to others while this machine wanted them, all CPUs together. 0 on metal, "
    "where nobody can; any increase proves a virtual machine.",
)
DELAY = histogram(
    "gpuhost_cpu_run_queue_delay_seconds",
    "How long a thread that slept had to wait for a CPU once it was due, in seconds, measured about five times a "
    "second on one of the exporter's own. Good is below 0.0001 nearly always: what a collective's rank meets, too.",
)
OOM_KILLS = counter(
    "gpuhost_oom_kills_total",
    "Processes that the kernel has killed since boot because memory ran out, on the host or in a control group. Good "
    "is no increase.",
)
GPU_OOM_KILLS = counter(
    "gpuhost_gpu_job_oom_kills_total",
    "Processes that the kernel killed for lack of memory in a job that held this GPU: the process itself, or one in "
    "the same control group, such as a data loader. Counted since the exporter started. Good is 0.",
    "gpu",
    "uuid",
)


_BOUNDS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1)
_REMEMBERED = 60.0  # a kill is told within seconds of the process' end
_PROBE = "run queue probe"


@dataclass(slots=True)
class _Holder:
    """A process that holds GPUs, or did until just now."""

    uuids: frozenset[str]
    group: str | None
    seen_at: float


class ContentionCollector(Collector):
    name: ClassVar[str] = "contention"
    help: ClassVar[str] = "Stolen CPU time, waits for a CPU, OOM kills"
    source: ClassVar[str] = (
        "/proc/stat, /proc/vmstat, /proc/thread-self/schedstat; OOM kills of GPU jobs from /dev/kmsg"
    )
    privilege: ClassVar[str] = "CAP_SYSLOG for the OOM kills of GPU jobs, where kernel.dmesg_restrict is 1"
    interval: ClassVar[float] = 10.0
    specs: ClassVar[tuple[Spec, ...]] = (STEAL, DELAY, OOM_KILLS, GPU_OOM_KILLS)

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._delays = Histogram(_BOUNDS)
        self._holders: dict[int, _Holder] = {}
        self._began: float | None = None
        self._killed: dict[int, float] = {}
        self._kills: dict[str, int] = {}

    def poll(self, now: float) -> Iterator[Sample]:
        with self.guard("stat"):
            stolen = contention.steal_seconds(self.host.root)
            if stolen is not None:
                yield STEAL(value=stolen)
        with self.guard("vmstat"):
            kills = contention.oom_kills(self.host.root)
            if kills is not None:
                yield OOM_KILLS(value=kills)
        yield from self._waits()
        yield from self._gpu_kills(now)

    def _waits(self) -> Iterator[Sample]:
        state, message = self.host.waits.state()
        for wait in self.host.waits.take():
            self._delays.add(wait.seconds, wait.times)
        if state == "ok":
            self.recovered(_PROBE)
            yield from self._delays.samples(DELAY)
        elif state != "starting":
            kinds: dict[str, type[SourceError]] = {kind.kind: kind for kind in SourceError.__subclasses__()}
            self.fault(_PROBE, kinds.get(state, Unavailable)(message))

    def _gpu_kills(self, now: float) -> Iterator[Sample]:
        self._began = self.host.clock.wall() if self._began is None else self._began
        self._follow(now)
        for kill in self.host.kernel_log.take_kills():
            if kill.wall >= self._began and not self._told(kill):
                for uuid in self._concerned(kill):
                    self._kills[uuid] = self._kills.get(uuid, 0) + 1
        if self.host.kernel_log.state()[0] == "ok":
            for gpu in self.host.nvml.gpus():
                yield GPU_OOM_KILLS(str(gpu.index), gpu.uuid, value=self._kills.get(gpu.uuid, 0))

    def _follow(self, now: float) -> None:
        holding: dict[int, set[str]] = {}
        for reading in self.host.board.last("activity", tuple, now) or ():
            if isinstance(reading, Activity):
                for process in reading.processes or ():
                    holding.setdefault(process.pid, set()).add(reading.uuid)
        for pid, uuids in holding.items():
            known = self._holders.get(pid)
            group = known.group if known else contention.memory_group(self.host.root, pid)
            self._holders[pid] = _Holder(frozenset(uuids), group, now)
        self._holders = {pid: holder for pid, holder in self._holders.items() if now - holder.seen_at <= _REMEMBERED}

    def _told(self, kill: LoggedKill) -> bool:
        """Whether this is the second line of a kill."""
        before = self._killed.get(kill.pid)
        self._killed = {pid: wall for pid, wall in self._killed.items() if kill.wall - wall <= _REMEMBERED}
        self._killed[kill.pid] = kill.wall
        return before is not None and kill.wall - before <= _REMEMBERED

    def _concerned(self, kill: LoggedKill) -> frozenset[str]:
        return frozenset().union(
            *(
                holder.uuids
                for pid, holder in self._holders.items()
                if pid == kill.pid or (kill.group is not None and holder.group == kill.group)
            )
        )
