"""An hour of a simulated host in seconds: the real collectors and ledger below a clock that is moved by hand.

The state of a simulated host is a function of its scenario and the time, so one walk through the scenarios serves
every host of the demo: each gets another hour of it.
"""

from __future__ import annotations

import itertools
import json
import mmap
import socket
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from gpuhost_exporter.collectors import ALL
from gpuhost_exporter.config import Settings
from gpuhost_exporter.errors import SourceError
from gpuhost_exporter.exposition import BUILD, SIMULATED, Exposition, Renderer
from gpuhost_exporter.host import Host
from gpuhost_exporter.latency.settings import LatencySettings, Rdma
from gpuhost_exporter.runner import Runner
from gpuhost_exporter.sim import control
from gpuhost_exporter.sim.folder import memory
from gpuhost_exporter.sim.ioctl import Interfaces, ioctl
from gpuhost_exporter.sim.latency import Prober
from gpuhost_exporter.sim.mounts import Statvfs
from gpuhost_exporter.sim.nvml import SimNvml
from gpuhost_exporter.sim.tree import Tree
from gpuhost_exporter.sources.contention import Wait
from gpuhost_exporter.sources.ethtool import Network
from gpuhost_exporter.sources.files import Root
from gpuhost_exporter.sources.follow import Follower
from gpuhost_exporter.sources.kmsg import KernelLog, KernelLogReader
from gpuhost_exporter.sources.mounts import Capacities
from gpuhost_exporter.sources.nvme_health import DriveReader
from gpuhost_exporter.sources.nvml.client import NvmlClient
from gpuhost_exporter.sources.nvml.reader import Reader
from gpuhost_exporter.sources.pipe import Pipe, recv_request, send_answer
from gpuhost_exporter.sources.placement import Registers, switch_ports
from gpuhost_exporter.sources.processes import Processes
from gpuhost_exporter.sources.state import State
from gpuhost_exporter.sources.traffic import Adapters
from gpuhost_exporter.specs import Sample
from gpuhost_exporter.targets import Targets

# A call that hangs or a library that crashes takes real time, or the process: those are seen live only.
LEFT_OUT = frozenset({"driver-hung", "driver-crash"})
_UPTIME = 86400.0 * 20
_QUIET_CPU = Wait(seconds=20e-6, times=50)
_LATENCY_SECONDS = 10
# Whom the host probes: each host of the demo has another one there. The addresses are never used.
NEXT = "next"
_LATENCY = LatencySettings(
    name="this",
    listen=("127.0.0.1", 1),
    key_file="",
    hosts={"this": ("127.0.0.1", 1), NEXT: ("127.0.0.1", 2)},
    interval=_LATENCY_SECONDS,
    rdma=Rdma("mlx5_0"),
)


class MovedClock:
    def __init__(self, wall: float) -> None:
        self.elapsed = 0.0
        self._wall = wall

    def now(self) -> float:
        return _UPTIME + self.elapsed

    def wall(self) -> float:
        return self._wall + self.elapsed


class _Rendering:
    """The moved clock going on for as long as the processor works: so a page has its cost."""

    def __init__(self, clock: MovedClock) -> None:
        self._clock = clock
        self._began = 0.0

    def begin(self) -> None:
        self._began = time.thread_time()

    def now(self) -> float:
        return self._clock.now() + time.thread_time() - self._began

    def wall(self) -> float:
        return self._clock.wall()


class _Thread:
    """In place of the launcher: the NVML reader as a thread of this process, below the same clock."""

    def __init__(self, binding: SimNvml, clock: MovedClock) -> None:
        self.marks = mmap.mmap(-1, mmap.PAGESIZE)
        self._binding = binding
        self._clock = clock

    def spawn(self, _kind: str, _arguments: object, sockets: Sequence[socket.socket]) -> int:
        threading.Thread(target=self._serve, args=(Pipe(sockets[0]), sockets[1]), daemon=True).start()
        return 1

    def _serve(self, pipe: Pipe, events: socket.socket) -> None:
        reader = Reader(self._binding, self._clock, lambda _device, _function: None)
        try:
            send_answer(pipe, reader.open())
            while True:
                request = recv_request(pipe)
                send_answer(pipe, reader.read(request["subject"], frozenset(request["skip"])))
        except SourceError:
            pipe.close()
            events.close()

    def kill(self, _pid: int) -> None:
        """It ends with its socket."""

    def exit_status(self, _pid: int, _wait: float = 0.0) -> int:
        return 0


class Walk:
    """A simulated host that is led through scenarios. `stops`: scenario and seconds; looked at from `start` on."""

    def __init__(self, folder: str, host: str, stops: Sequence[tuple[str, float]], wall: float, start: int) -> None:
        self.clock = clock = MovedClock(wall)
        path = f"{folder}/control.json"
        control.create(path, host, stops[0][0], clock)
        for (_, seconds), (scenario, _) in itertools.pairwise(stops):
            clock.elapsed += seconds
            control.switch(path, scenario, clock)
        clock.elapsed = float(start)
        tree = f"{folder}/root"
        self._tree = Tree(path, tree, clock)
        self._tree.write()
        settings = Settings(simulate=f"{host}:tour", latency=_LATENCY)
        self._launcher = _Thread(SimNvml(path, clock), clock)
        launcher: Any = self._launcher
        root = Root.below(tree)
        self.host = Host(
            clock=clock,
            root=root,
            settings=settings,
            targets=Targets.load(settings.target),
            nvml=NvmlClient(launcher, clock, {}),
            kernel_log=KernelLog(),
            processes=Processes(clock),
            state=State(f"{folder}/state"),
            simulated=f"{host}:tour",
            capacities=Capacities(Statvfs(tree)),
            network=Network(Interfaces(tree)),
        )
        self._kernel_log = KernelLogReader(root, None)
        self._drives = DriveReader(root, 60.0, clock, ioctl)
        follower = Follower(root, clock)
        self.host.processes.connect(lambda request: self._look(follower, request))
        adapters = Adapters(root, clock)
        self.host.traffic.connect(lambda: self._carried(adapters))
        self.host.registers.put(Registers(switch_ports(root)))
        self._prober = Prober(_LATENCY, self.host.latency, clock, path)
        collectors = tuple(kind(self.host) for kind in ALL)
        self._runner = Runner(tuple((each, each.seconds_between_polls()) for each in collectors), clock)
        self._rendering = _Rendering(clock)
        self._exposition = Exposition(self._runner, self._rendering, tuple)

    def _look(self, follower: Follower, request: dict[str, Any]) -> bool:
        self.host.processes.put(follower.look(request["holding"]))
        return True

    def _carried(self, adapters: Adapters) -> bool:
        self.host.traffic.put(adapters.look())
        return True

    def tick(self, second: int) -> None:
        """One second later: the files of then, and the polls that are due."""
        self.clock.elapsed = float(second)
        self._tree.write()
        self.host.kernel_log.put(self._kernel_log.read_new())
        if reports := self._drives.look():
            self.host.drive_health.put(reports)
        if second % 5 == 0:
            self.host.waits.put((_QUIET_CPU,))
        if second % _LATENCY_SECONDS == 0:
            self._prober.look()
        for task in self._runner.tasks:
            if second % max(task.interval, 1) == 0:
                task.poll()

    def samples(self) -> Iterator[Sample]:
        """What a scrape finds."""
        self._rendering.begin()
        self._exposition.render(openmetrics=False, gzip=True)
        yield from self._exposition.own_samples()
        yield from self._runner.samples()
        yield BUILD("history", "3")
        yield SIMULATED(self.host.simulated)

    def close(self) -> None:
        self.host.nvml.release(0.0)
        self.host.state.close()


def record(
    stops: Sequence[tuple[str, float]],
    *,
    host: str,
    wall: float,
    every: int,
    step: int,
    start: int = 0,
    end: int,
    names: Collection[str],
    folder: str | None = None,
) -> list[tuple[float, str]]:
    """The walk's expositions from `start` to `end`, one `every` so many seconds: seconds since the walk began, and the
    text of the metrics named.

    `wall`: time of day at the walk's beginning. `step`: seconds between looks; more is faster, the ledger coarser.
    `folder`: where the host's files are for as long, and stay when this process is killed.
    """
    found = []
    # The thread that keeps the state may still write when it is told to end.
    with tempfile.TemporaryDirectory(dir=folder or memory(), ignore_cleanup_errors=True) as below:
        walk = Walk(below, host, stops, wall, start)
        try:
            for second in range(start, end, step):
                walk.tick(second)
                if second % every == 0:
                    wanted = [sample for sample in walk.samples() if sample.spec.name in names]
                    found.append((float(second), Renderer().block(wanted, openmetrics=False)[0].decode()))
        finally:
            walk.close()
    return found


def main() -> None:
    """For a look: python history.py SCENARIO SECONDS STEP"""
    import sys

    began = time.process_time()
    names = {"gpuhost_gpu_time_seconds_total", "gpuhost_checkpoint_last_duration_seconds"}
    stops = [(sys.argv[1], 60.0)]
    found = record(stops, host="h100x8", wall=1.7e9, every=30, step=int(sys.argv[3]), end=int(sys.argv[2]), names=names)
    print(found[-1][1])
    print(json.dumps({"points": len(found), "cpu": time.process_time() - began}))


if __name__ == "__main__":
    main()
