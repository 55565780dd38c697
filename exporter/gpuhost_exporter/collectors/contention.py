"""What keeps the job from running when it could: stolen CPU time, waits for a CPU, OOM kills."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from gpuhost_exporter.collector import Collector
from gpuhost_exporter.specs import Sample, Spec, counter, histogram

STEAL = counter(
    "gpuhost_cpu_steal_seconds_total",
    "CPU seconds that the hypervisor gave to others while this machine wanted them, all CPUs together. 0 on metal, "
    "where nobody can; any increase proves a virtual machine.",
)
DELAY = histogram(
    "gpuhost_cpu_run_queue_delay_seconds",
    "How long a thread that slept had to wait for a CPU once it was due, in seconds, measured about ten times a "
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


class ContentionCollector(Collector):
    name: ClassVar[str] = "contention"
    help: ClassVar[str] = "Stolen CPU time, waits for a CPU, OOM kills"
    source: ClassVar[str] = "/proc/stat, /proc/vmstat, /proc/PID/schedstat; OOM kills of GPU jobs from /dev/kmsg"
    privilege: ClassVar[str] = "CAP_SYSLOG for the OOM kills of GPU jobs, where kernel.dmesg_restrict is 1"
    interval: ClassVar[float] = 10.0
    specs: ClassVar[tuple[Spec, ...]] = (STEAL, DELAY, OOM_KILLS, GPU_OOM_KILLS)

    def poll(self, now: float) -> Iterator[Sample]:
        yield from ()
