"""What the storage collectors cost on a host with 24 drives in 3 arrays, and what a drive that hangs costs the rest.

    make bench [BENCH_SECONDS=30]

The collectors run as in the exporter, on files of such a host; the drives' health logs are answered by an ioctl that
waits 60 s at one drive in the second half. In one process here, so its CPU is all of it: collectors and reader.
"""

from __future__ import annotations

import logging
import os
import resource
import statistics
import tempfile
import threading
import time
from pathlib import Path

from support.drives import Controllers, many_drives
from trees import plant

from gpuhost_exporter.clock import SystemClock
from gpuhost_exporter.collectors import ALL
from gpuhost_exporter.config import Settings
from gpuhost_exporter.host import Host
from gpuhost_exporter.runner import Runner
from gpuhost_exporter.sources.kmsg import KernelLog
from gpuhost_exporter.sources.nvme_health import DriveReader
from gpuhost_exporter.sources.state import State
from gpuhost_exporter.targets import Targets

SECONDS = float(os.environ.get("BENCH_SECONDS", "30"))
SUBJECTS = ("block", "storage", "nvme", "nvme_health", "raid")
HANGS = "nvme7"
HANGS_SECONDS = 60.0


class Timed(Controllers):
    """Controllers that answer as fast as real ones, about 0.2 ms."""

    def __call__(self, descriptor, request, argument):
        time.sleep(0.0002)
        return super().__call__(descriptor, request, argument)


class Reader(threading.Thread):
    """The privileged reader's job, without the process and pipe around it."""

    def __init__(self, host: Host, runner: Runner, controllers: Controllers) -> None:
        super().__init__(daemon=True)
        self.host, self.runner = host, runner
        self.reader = DriveReader(host.root, 60.0, host.clock, controllers)
        self.looks: list[float] = []
        self.answered: dict[str, float] = {}

    def run(self) -> None:
        while True:
            begin = time.perf_counter()
            reports = self.reader.look()
            self.looks.append(time.perf_counter() - begin)
            self.answered |= {report.device: report.answered_at for report in reports if report.answer is not None}
            if reports:
                self.host.drive_health.put(reports)
                self.runner.hurry({"nvme_health"})
            time.sleep(2.0)


def main() -> None:
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        root = plant(Path(folder), many_drives())
        host = Host(
            clock=SystemClock(), root=root, settings=Settings(), targets=Targets.load({}), nvml=None,
            kernel_log=KernelLog(), state=State(f"{folder}/state"),
        )  # fmt: skip
        kinds = [kind for kind in ALL if kind.name in SUBJECTS]
        runner = Runner([(kind(host), kind.interval) for kind in kinds], host.clock)
        controllers = Timed()
        reader = Reader(host, runner, controllers)
        runner.start()
        reader.start()
        time.sleep(3)
        print(f"24 drives, 3 arrays, {sum(1 for _ in runner.samples())} series, {SECONDS:.0f} s each")
        print("| | CPU s/min | " + " | ".join(f"{kind.name} ms" for kind in kinds) + " | slowest look ms | late |")
        print("|---" * (len(kinds) + 4) + "|")
        measure("all answer", runner, reader)
        controllers.hanging[HANGS] = threading.Event()
        threading.Timer(HANGS_SECONDS, controllers.hanging[HANGS].set).start()
        reader.reader._due = dict.fromkeys(reader.reader._due, 0.0)  # all are due now, the one that hangs too
        before = dict(reader.answered)
        measure(f"{HANGS} hangs", runner, reader)
        silent = [name for name in before if reader.answered[name] == before[name]]
        print(f"\nNot answered anew in the second half: {', '.join(silent) or 'none'}.")
        controllers.hanging[HANGS].set()
        runner.stop()
        failures = {task.collector.name: dict(task.collector.errors) for task in runner.tasks if task.collector.errors}
        if failures:
            raise SystemExit(f"collectors failed: {failures}")


def measure(name: str, runner: Runner, reader: Reader) -> None:
    """CPU of the process, the median duration of each collector's polls, and ticks that came late."""
    begin, missed = _cpu(), sum(task.missed for task in runner.tasks)
    durations: dict[str, list[float]] = {task.collector.name: [] for task in runner.tasks}
    looks = len(reader.looks)
    seen = dict.fromkeys(durations, 0)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for task in runner.tasks:
            if task.polls != seen[task.collector.name] and task.duration is not None:
                seen[task.collector.name] = task.polls
                durations[task.collector.name].append(task.duration)
        time.sleep(0.2)
    cpu = (_cpu() - begin) * 60 / SECONDS
    late = sum(task.missed for task in runner.tasks) - missed
    polls = " | ".join(f"{1000 * statistics.median(found):.2f}" if found else "-" for found in durations.values())
    print(f"| {name} | {cpu:.2f} | {polls} | {1000 * max(reader.looks[looks:]):.1f} | {late} |")


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
