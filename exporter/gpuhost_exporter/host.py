"""The handles a collector works with. app.py fills it; nothing else knows what is real and what simulated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpuhost_exporter.board import Board
from gpuhost_exporter.clock import Clock
from gpuhost_exporter.sources.contention import Waits
from gpuhost_exporter.sources.ethtool import Network
from gpuhost_exporter.sources.latency.results import Results
from gpuhost_exporter.sources.mounts import Capacities
from gpuhost_exporter.sources.nvme_health import DriveHealth
from gpuhost_exporter.sources.placement import PrivilegedRegisters
from gpuhost_exporter.sources.traffic import NetworkTraffic

if TYPE_CHECKING:
    from gpuhost_exporter.config import Settings
    from gpuhost_exporter.sources.files import Root
    from gpuhost_exporter.sources.kmsg import KernelLog
    from gpuhost_exporter.sources.marker import Marker
    from gpuhost_exporter.sources.nvml.client import NvmlClient
    from gpuhost_exporter.sources.processes import Processes
    from gpuhost_exporter.sources.state import State
    from gpuhost_exporter.targets import Targets


@dataclass(slots=True)
class Host:
    clock: Clock
    root: Root
    settings: Settings
    targets: Targets
    nvml: NvmlClient
    kernel_log: KernelLog
    processes: Processes
    state: State
    simulated: str = ""  # HOST:SCENARIO, empty on a real host
    capacities: Capacities = field(default_factory=Capacities)
    network: Network = field(default_factory=Network)
    waits: Waits = field(default_factory=Waits)
    registers: PrivilegedRegisters = field(default_factory=PrivilegedRegisters)
    traffic: NetworkTraffic = field(default_factory=NetworkTraffic)
    board: Board = field(default_factory=Board)
    drive_health: DriveHealth = field(default_factory=DriveHealth)
    marker: Marker | None = None  # where training scripts mark their checkpoints; none unless the ledger serves
    latency: Results = field(default_factory=Results)
