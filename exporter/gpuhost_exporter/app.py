"""The composition root: the only place that knows a real host from a simulated one."""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ParamSpec

from gpuhost_exporter import __version__
from gpuhost_exporter.clock import SystemClock
from gpuhost_exporter.collector import Collector
from gpuhost_exporter.collectors import ALL, nvme_health
from gpuhost_exporter.collectors.contention import ContentionCollector
from gpuhost_exporter.collectors.inventory import InventoryCollector
from gpuhost_exporter.collectors.ledger import LedgerCollector
from gpuhost_exporter.collectors.platform import PlatformCollector
from gpuhost_exporter.collectors.raid import RaidCollector
from gpuhost_exporter.config import Settings, default_storage_path
from gpuhost_exporter.errors import ConfigError, Gone, Hung, SourceError
from gpuhost_exporter.exposition import BUILD, READER_RESTARTS, READER_STUCK, SIMULATED, Exposition
from gpuhost_exporter.host import Host
from gpuhost_exporter.runner import Runner
from gpuhost_exporter.sources import linux, pci, pipe
from gpuhost_exporter.sources.contention import Wait
from gpuhost_exporter.sources.ethtool import Network
from gpuhost_exporter.sources.files import Root
from gpuhost_exporter.sources.kmsg import KernelLog
from gpuhost_exporter.sources.launcher import Launcher
from gpuhost_exporter.sources.mounts import Capacities
from gpuhost_exporter.sources.nvml.client import NvmlClient
from gpuhost_exporter.sources.privileged import Job, PrivilegedReader
from gpuhost_exporter.sources.processes import Processes
from gpuhost_exporter.sources.state import State
from gpuhost_exporter.sources.udev import Event, UdevWatcher, listen
from gpuhost_exporter.specs import Sample
from gpuhost_exporter.targets import Targets

if TYPE_CHECKING:
    from gpuhost_exporter.compat import Dcgm
    from gpuhost_exporter.sim.latency import Prober
    from gpuhost_exporter.sources.latency.client import LatencyClient

log = logging.getLogger(__name__)

P = ParamSpec("P")

_SETTLING_SECONDS = 0.5
_FAULTS_SECONDS = 30.0  # into a scenario: every fault has come, and none has gone
_STORAGE = frozenset({"nvme", "block"})


@dataclass(frozen=True, slots=True)
class Simulation:
    control: str
    folder: str  # of its /proc and /sys; empty when they are the machine's own
    temporary: str


class App:
    """A host with its readers and collectors. Build it before any thread starts; close it whatever happens.

    `accepting`: for `verify`, which serves nobody. It keeps this process's capabilities, for it starts programs that
    shall be able to do what the user is; else they are given up for good. It takes the kernel log from its beginning,
    and a simulated host where its scenario's faults have come.
    """

    def __init__(self, settings: Settings, launcher: Launcher, *, accepting: bool = False) -> None:
        self.settings = settings
        self.clock = SystemClock()
        targets = Targets.load(settings.target)
        self.launcher = launcher
        self._simulation: Simulation | None = None
        self._sockets: list[pipe.Pipe] = []
        self._changing = threading.Lock()
        self._changed: set[str] = set()
        if not accepting:
            linux.keep_capabilities(frozenset())
        try:
            root = Root(settings.procfs, settings.sysfs)
            arguments: dict[str, str] = {}
            if settings.simulate:
                into = _FAULTS_SECONDS if accepting else 0.0
                simulation = self._simulate(settings.simulate, settings.simulate_control, into)
                if simulation.folder:
                    root = replace(Root.below(simulation.folder), stamped=True)
                arguments = {"simulate": simulation.control}
            nvml = NvmlClient(self.launcher, self.clock, arguments, timeout=settings.nvml_call_timeout)
            storage = None if settings.simulate and not settings.storage_path else settings.storage_path
            self.host = Host(
                clock=self.clock,
                root=root,
                settings=settings,
                targets=targets,
                nvml=nvml,
                kernel_log=KernelLog(resumes=not accepting),
                processes=Processes(self.clock),
                state=State(storage or self._default_storage()),
                simulated=settings.simulate or "",
                capacities=self._capacities(),
                network=self._network(),
            )
            collectors = tuple(self._collectors())
            self.runner = Runner(collectors, self.clock)
            nvml.on_open = self.runner.hurry  # slow subjects need not wait for their next tick
        except BaseException:
            self.close()
            raise
        self.exposition = Exposition(self.runner, self.clock, self.own_samples, self._compat())
        self.server_samples: Callable[[], Iterable[Sample]] = lambda: ()
        self._udev = UdevWatcher(self._hardware_changed, self._simulated_events if self._simulated_folder else listen)
        self._privileged = PrivilegedReader(launcher, tuple(self._jobs({each.name for each, _ in collectors})))
        self._latency = self._latency_client() if "latency" in {each.name for each, _ in collectors} else None
        self.host.processes.connect(lambda request: self._privileged.ask("processes", request))
        self.host.traffic.connect(lambda: self._privileged.ask("traffic", {}))

    def start(self, *, probing: bool = False) -> None:
        """Start reading, and `probing` other hosts where that is configured. Returns at once."""
        if self._simulation:
            log.info(
                "simulating %s; steer it with: gpuhost-exporter simulate SCENARIO --control %s",
                self.settings.simulate,
                self._simulation.control,
            )
        self.runner.start()
        self._privileged.start()
        self._udev.start()
        if self._latency and probing:
            self._latency.start()

    def hear_marks(self, folder: str) -> None:
        """Let training scripts mark their checkpoints, by a socket below this folder. Nothing without a ledger."""
        if any(task.collector.name == LedgerCollector.name for task in self.runner.tasks):
            from gpuhost_exporter.sources.marker import Marker

            self.host.marker = Marker(folder, self.clock)
            self.host.marker.start()

    def close(self) -> None:
        if hasattr(self, "_privileged"):
            self._privileged.stop()
            if self._latency:
                self._latency.stop()
        if hasattr(self, "runner"):
            self.runner.stop()
            self.host.state.close()
            if self.host.marker:
                self.host.marker.close()
        self.launcher.close()
        if self._simulation:
            from gpuhost_exporter.sim import folder

            folder.remove(self._simulation.temporary)

    def own_samples(self) -> Iterator[Sample]:
        yield BUILD(__version__, platform.python_version())
        yield SIMULATED(self.host.simulated, value=bool(self.host.simulated))
        for reader, restarts, stuck in (
            ("nvml", sum(self.host.nvml.restarts().values()), self.host.nvml.stuck()),
            ("privileged", self._privileged.restarts(), self._privileged.stuck()),
        ):
            yield READER_RESTARTS(reader, value=restarts)
            yield READER_STUCK(reader, value=stuck)
        yield from self.server_samples()

    def _collectors(self) -> Iterator[tuple[Collector, float]]:
        for kind in ALL:
            chosen = self.settings.collectors.get(kind.name)
            enabled = chosen.enabled if chosen else None
            if kind.on_by_default if enabled is None else enabled:
                collector = kind(self.host)
                yield collector, collector.seconds_between_polls()

    def _jobs(self, collectors: set[str]) -> Iterator[Job]:
        """The privileged reader's, with no more privilege than the collectors that run can use."""
        kernel_log, processes = self.host.kernel_log, self.host.processes
        yield Job("kernel_log", self._kernel_log_arguments, kernel_log.put, kernel_log.fail)
        if "nvme_health" in collectors:
            health, name = self.host.drive_health, nvme_health.NvmeHealthCollector.name
            put, fail = self._then_hurry(name, health.put), self._then_hurry(name, health.fail)
            yield Job("drives", self._drives_arguments, put, fail)
        if "platform" in collectors:
            registers, name = self.host.registers, PlatformCollector.name
            yield Job("registers", self._root_arguments, self._then_hurry(name, registers.put), registers.fail)
        if "contention" in collectors:
            yield Job("waits", self._root_arguments, self._waits_told, self.host.waits.fail)
        if LedgerCollector.name in collectors:
            yield Job("processes", self._root_arguments, processes.put, processes.fail)
            yield Job("traffic", self._root_arguments, self.host.traffic.put, self.host.traffic.fail)

    def _latency_client(self) -> LatencyClient | Prober | None:
        """None where no host is to be probed. A host that is not what it seems probes nobody: it tells what it would
        have found."""
        if self.settings.latency is None:
            return None
        if self._simulation:
            from gpuhost_exporter.sim.latency import Prober

            return Prober(self.settings.latency, self.host.latency, self.clock, self._simulation.control)
        from gpuhost_exporter.sources.latency.client import LatencyClient

        return LatencyClient(self.launcher, self.settings.latency, self.host.latency, self.clock)

    def _default_storage(self) -> str:
        # A simulated host must not teach the real one's inventory.
        return f"{self._simulation.temporary}/state" if self._simulation else default_storage_path(os.environ)

    @property
    def _simulated_folder(self) -> str:
        """Of the simulated /proc and /sys; empty where they are the machine's own."""
        return self._simulation.folder if self._simulation else ""

    def _capacities(self) -> Capacities:
        if not self._simulated_folder:
            return Capacities()
        from gpuhost_exporter.sim.mounts import Statvfs

        return Capacities(Statvfs(self._simulated_folder))

    def _compat(self) -> Dcgm | None:
        if self.settings.compat is None:
            return None
        from gpuhost_exporter.compat import Dcgm

        return Dcgm(self.settings.compat, platform.node())

    def _network(self) -> Network:
        if not self._simulated_folder:
            return Network()
        from gpuhost_exporter.sim.ioctl import Interfaces

        return Network(Interfaces(self._simulated_folder))

    def _simulate(self, target: str, control: str | None, elapsed: float) -> Simulation:
        from gpuhost_exporter.sim import control as simulated
        from gpuhost_exporter.sim import folder

        host, scenario = simulated.parse_target(target)
        temporary = folder.create()
        simulation = Simulation(control or f"{temporary}/control.json", f"{temporary}/root", temporary)
        self._simulation = simulation  # from here on close() removes the folder
        if control and os.path.exists(control):
            if simulated.load(control).real_roots:  # a prepared history, a frozen clock, only GPUs
                self._simulation = replace(simulation, folder="")
                return self._simulation
        else:
            simulated.create(simulation.control, host, scenario, self.clock, elapsed=elapsed)
        ours, theirs = pipe.pair()
        arguments = {"control": simulation.control, "folder": simulation.folder}
        self.launcher.spawn("simulator", arguments, [theirs])
        self._sockets.append(pipe.Pipe(ours))
        try:
            pipe.recv_answer(self._sockets[-1], 30.0)
        except (Gone, Hung) as error:
            raise ConfigError(f"--simulate {target}: the simulator did not start: {error}") from error
        return simulation

    def _hardware_changed(self, action: str, subsystem: str, device: str) -> None:
        if action == "change":
            return
        log.info("udev: %s %s %s", action, subsystem, device)
        if subsystem == "pci":
            self.host.nvml.recheck(self._arrived(device) if action in ("add", "bind") else "")
        # A device announces each of its parts: one early poll for all of them, and again if they take longer.
        with self._changing:
            begins = not self._changed
            self._changed.add(subsystem)
        if begins:
            timer = threading.Timer(_SETTLING_SECONDS, self._settled)
            timer.daemon = True
            timer.start()

    def _arrived(self, device: str) -> str:
        """The PCI address of a GPU that the kernel announced; empty where it is another device."""
        with suppress(SourceError):
            if device in pci.gpus(self.host.root):
                return device
        return ""

    def _settled(self) -> None:
        with self._changing:
            changed, self._changed = self._changed, set()
        hurried = {
            task.collector.name
            for task in self.runner.tasks
            if changed - _STORAGE or task.collector.subsystems & changed
        }
        self.runner.hurry(hurried - {InventoryCollector.name})
        time.sleep(_SETTLING_SECONDS)
        self.runner.hurry({InventoryCollector.name})  # it goes by what the others have found
        if "block" in changed:
            time.sleep(_SETTLING_SECONDS)
            self.runner.hurry({RaidCollector.name})  # which says of an array that inventory misses that it is down

    def _simulated_events(self) -> Iterator[Event]:
        with suppress(Gone):
            while True:
                yield pipe.recv_answer(self._sockets[0], None)

    def _drives_arguments(self) -> Mapping[str, Any]:
        return {
            "root": self._trees(),
            "interval": nvme_health.reading_interval(self.settings),
            "simulated": bool(self._simulated_folder),
        }

    def _then_hurry(self, collector: str, receive: Callable[P, None]) -> Callable[P, None]:
        """Receive what a job says, and have its collector tell it now."""

        def received(*said: P.args, **named: P.kwargs) -> None:
            receive(*said, **named)
            self.runner.hurry({collector})

        return received

    def _waits_told(self, waits: tuple[Wait, ...]) -> None:
        first = self.host.waits.state()[0] != "ok"
        self.host.waits.put(waits)
        if first:
            self.runner.hurry({ContentionCollector.name})

    def _kernel_log_arguments(self) -> Mapping[str, Any]:
        return {
            "root": self._trees(),
            "cursor": self.host.kernel_log.cursor(self.host.state),
        }

    def _root_arguments(self) -> Mapping[str, Any]:
        return {"root": self._trees()}

    def _trees(self) -> dict[str, str]:
        root = self.host.root
        return {"proc": root.proc, "sys": root.sys, "dev": root.dev}
