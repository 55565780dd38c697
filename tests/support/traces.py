"""What the readers would tell of a simulated host, tick by tick, without any of them: for the ledger's folds."""

from __future__ import annotations

from collections.abc import Iterable

from gpuhost_exporter.ledger.ledger import Ledger, Seen
from gpuhost_exporter.ledger.network import Network
from gpuhost_exporter.ledger.thresholds import Thresholds
from gpuhost_exporter.sim.control import Control, Segment
from gpuhost_exporter.sim.timeline import Timeline
from gpuhost_exporter.sources.evidence import Evidence, HostIo, JobIdentity, ProcessSample
from gpuhost_exporter.sources.nvml.readings import Activity, Process
from support.gpus import reading

START = 1000.0
_BROKEN = {"gpu_lost": "lost", "reset_required": "needs_reset"}


class Trace:
    """A scenario, or several one after the other, on a host of H100s of which a ledger watches the first `count`.

    `profiled`: with GPM. `processes`: with the privileged reader's evidence, whose windows begin `skew` s earlier.
    `pcie`: with the GPUs' own traffic. `network`: with their adapters', looked at while the ledger wants it and told a
    tick later.
    """

    def __init__(self, *history, count=2, profiled=True, processes=True, skew=0.0, pcie=True, network=False):
        segments, at = [], START
        for name, seconds in history:
            segments.append(Segment(name, at))
            at += seconds
        self.end = at
        self.timeline = Timeline(Control("h100x8", tuple(segments), None, "boot", 1.76e9))
        self.profiled = profiled
        self.processes = processes
        self.skew = skew
        self.pcie = pcie
        self.network = network
        self.looks = []
        self.spent = []
        self.ledger = Ledger(Thresholds(), lambda *spent: self.spent.append(spent))
        self.checkpoints = []
        self.now = None
        self.gpus = self.timeline.host.gpus[:count]

    def run(self, ticks: Iterable[float] | None = None) -> Trace:
        """Tick at these moments after the start; each second until the end of the history without them."""
        moments = [START + tick for tick in (ticks if ticks is not None else range(int(self.end - START) + 1))]
        for now in moments:
            self.tick(now)
        return self

    def tick(self, now):
        before, self.now = self.before, self.now = self.now, now
        seen = Seen(
            states={gpu.uuid: self.state(gpu.index, now) for gpu in self.gpus},
            activities=[self.activity(gpu, before, now) for gpu in self.gpus if self.state(gpu.index, now) == "ok"],
            windows=self.windows(before, now) if self.processes and before is not None else (),
            power_limits={gpu.uuid: self.timeline.host.model.limit_watts for gpu in self.gpus},
            networks=self.networks(),
            products=dict.fromkeys([gpu.uuid for gpu in self.gpus], self.timeline.host.model.name),
        )
        self.checkpoints += self.ledger.tick(now, self.change(seen))
        if self.network and self.ledger.wants_network(now):
            self.looks.append(now)

    def change(self, seen):
        """For those who make something of it."""
        return seen

    def networks(self):
        """What the look of the last tick told, if it was not the first for a while."""
        if len(self.looks) < 2 or self.looks[-1] != self.before or self.looks[-1] - self.looks[-2] > 3.0:
            return ()
        since, at = self.looks[-2:]
        old, new = (self.timeline.host_levels(moment - START)[1] for moment in (since, at))
        rate = (new.nic - old.nic) / (at - since)
        return (Network(since, at, {gpu.uuid: rate for gpu in self.gpus}),)

    def state(self, index, now):
        for fault in self.timeline.faults(now - START):
            if fault.kind in _BROKEN and fault.gpu == index:
                return _BROKEN[fault.kind]
        return "ok"

    def activity(self, gpu, before, now):
        moment = self.timeline.gpu(gpu.index, now - START)
        told = {}
        if before is not None and self.profiled:
            old = self.timeline.gpu(gpu.index, before - START).totals
            mean = {
                name: (new - earlier) / (now - before)
                for name, new, earlier in zip(old._fields, moment.totals, old, strict=True)
            }
            told = {
                "graphics_ratio": min(1.0, mean["graphics"]),
                "sm_active_ratio": mean["sm"],
                "tensor_ratio": mean["tensor"],
                "memory_bandwidth_ratio": mean["dram"],
            }
            if self.pcie:
                told["pcie_tx_bytes_per_second"] = mean["pcie_tx"]
                told["pcie_rx_bytes_per_second"] = mean["pcie_rx"]
        return reading(
            Activity,
            uuid=gpu.uuid,
            since=now if before is None else before,
            at=now,
            gpm=("warming_up" if before is None else "ok") if self.profiled else "unsupported",
            utilization_ratio=min(1.0, round(moment.levels.graphics, 2)),
            power_watts=moment.watts,
            sm_clock_hertz=moment.sm_clock_mhz * 1e6,
            throttled_seconds=(("thermal", moment.thermal_slowdown_seconds),),
            nvlink_tx_bytes=int(moment.nvlink_bytes),
            nvlink_rx_bytes=int(moment.nvlink_bytes),
            processes=tuple(Process(pid, None) for pid in gpu.pids) if moment.processes else (),
            **told,
        )

    def job(self, index):
        """Which job has the GPU."""
        return "90017"

    def windows(self, before, now):
        since, at = max(0.0, before - START - self.skew), max(0.0, now - START - self.skew)
        if at <= since:
            return ()
        levels, new = self.timeline.host_levels(at)
        old = self.timeline.host_levels(since)[1]
        holders = [gpu for gpu in self.gpus if self.timeline.gpu_levels(gpu.index, at)[0].processes]
        share = 1 / max(1, len(self.gpus))
        samples = [
            ProcessSample(
                pid=gpu.pids[0],
                start=START,
                ppid=1,
                holder=gpu.pids[0],
                gpus=(gpu.uuid,),
                role="holder",
                role_evidence="nvml",
                job=f"slurm:{self.job(gpu.index)}",
                comm="python3",
                state="R",
                threads=1,
                threads_looked=1,
                threads_blocked=int(gpu.index < levels.blocked),
                blocked_seconds=None,
                cpu_seconds=share * self.timeline.host.system.threads * (new.cpu - old.cpu),
                denied=False,
                read_chars=int(share * (new.job_read - old.job_read)),
                read_bytes=0,
                written_chars=int(share * (new.job_write - old.job_write)),
                write_bytes=0,
                cancelled_bytes=0,
                made_bytes=int(share * (new.job_write - old.job_write)),
                mount="/data",
            )
            for gpu in holders
        ]
        jobs = tuple(JobIdentity("slurm", self.job(gpu.index)) for gpu in holders)
        window = Evidence(
            since=START + since,
            at=START + at,
            processes=tuple(samples),
            jobs=jobs,
            holders=tuple((gpu.pids[0], number) for number, gpu in enumerate(holders)),
            cgroups=(),
            host=HostIo(None, None, None),
            unseen=(),
            left_out=frozenset(),
        )
        return (window,)

    def shares(self, index=0):
        """Account -> share of the time booked, of those that got any."""
        book = self.ledger.books[self.gpus[index].uuid]
        whole = book.booked - book.began
        return {account: seconds / whole for account, seconds in book.totals.items() if seconds}
