"""What a simulated host's probes find, in place of the prober: nobody is sent anything.

Messages take what the software at both ends takes, and wait where the network has the host's ports pause.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from gpuhost_exporter.clock import Clock
from gpuhost_exporter.errors import ConfigError, Gone
from gpuhost_exporter.latency.settings import LatencySettings
from gpuhost_exporter.sim import control
from gpuhost_exporter.sim.timeline import Timeline
from gpuhost_exporter.sources.latency.plan import WARM_UP
from gpuhost_exporter.sources.latency.results import RDMA, TCP, Results, Round

_QUIET_SECONDS = {RDMA: 3.4e-6, TCP: 90e-6}  # there and back
_QUEUED_SECONDS = 70e-6  # more for each share of time that the ports pause
_SPREAD = 0.12  # between the quickest and the slowest message of a round
_GOLDEN = 0.618033988749895  # strews any number of messages evenly


class Prober:
    """In place of LatencyClient, for the same peers."""

    def __init__(self, settings: LatencySettings, results: Results, clock: Clock, control_path: str) -> None:
        self._settings = settings
        self._results = results
        self._clock = clock
        self._path = control_path
        self._control = control.load(control_path)
        self._timeline = Timeline(self._control)
        self._rounds = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="latency", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def look(self) -> None:
        """A round with each peer as of now. ConfigError when the control file is gone."""
        current = control.load(self._path)
        if current != self._control:
            self._control, self._timeline = current, Timeline(current)
        paused = self._timeline.host_levels(current.elapsed(self._clock.now()))[0].paused
        wall = self._clock.wall()
        self._results.tell("ok")
        for peer in self._settings.targets():
            self._rounds += 1
            sent = WARM_UP + self._settings.messages
            self._results.put(Round(peer, TCP, tuple(self._seconds(TCP, paused)), sent, 0, wall))
            if self._settings.rdma:
                self._results.put(Round(peer, RDMA, tuple(self._seconds(RDMA, paused)), 0, 0, wall))

    def _seconds(self, transport: str, paused: float) -> Iterator[float]:
        middle = _QUIET_SECONDS[transport] * (1 + _SPREAD * (_GOLDEN * self._rounds % 1 - 0.5))
        for number in range(self._settings.messages):
            yield middle * (1 + _SPREAD * (_GOLDEN * number % 1)) + _QUEUED_SECONDS * paused

    def _run(self) -> None:
        try:
            self.look()
            while not self._stopping.wait(self._settings.interval):
                self.look()
        except ConfigError as error:  # the simulation has gone
            self._results.tell(Gone.kind, str(error))
