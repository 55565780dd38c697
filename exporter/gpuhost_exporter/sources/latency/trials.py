"""perftest as the prober asks for it: a server for a neighbour, a client to one, at most one of each at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gpuhost_exporter.clock import Clock
from gpuhost_exporter.errors import Malformed
from gpuhost_exporter.latency.settings import LatencySettings
from gpuhost_exporter.sources.latency import perftest
from gpuhost_exporter.sources.latency.plan import WARM_UP
from gpuhost_exporter.sources.latency.results import RDMA, Results, Round, Skipped

_AGAIN_SECONDS = 0.3  # the server at the other end may still be opening its device
_TRYING_SECONDS = 3.0


@dataclass(slots=True)
class _Trial:
    role: str
    peer: str
    began: float
    program: perftest.Program | None = None
    due: float = 0.0


class Trials:
    def __init__(self, settings: LatencySettings, results: Results, clock: Clock) -> None:
        self._settings = settings
        self._results = results
        self._clock = clock
        self._trials: dict[str, _Trial] = {}

    def start(self, role: str, peer: str) -> bool:
        """Whether it runs now. Raises Malformed for what this host was not configured to do."""
        if self._settings.rdma is None or role in self._trials:
            raise Malformed(f"asked for a {role} of perftest's that should not be")
        trial = _Trial(role, peer, self._clock.now())
        if not self._begin(trial):
            return False
        self._trials[role] = trial
        return True

    def begin_due(self) -> None:
        """Try again those whose server was not there yet."""
        for trial in tuple(self._trials.values()):
            if trial.program is None and self._clock.now() >= trial.due and not self._begin(trial):
                del self._trials[trial.role]

    def running(self) -> list[perftest.Program]:
        return [trial.program for trial in self._trials.values() if trial.program]

    def pause(self) -> float | None:
        """Seconds until begin_due() may have something to do."""
        return _AGAIN_SECONDS if len(self.running()) < len(self._trials) else None

    def read(self, ready: Iterable[object]) -> Iterator[str]:
        """Take what they print; the roles of those that have ended for good."""
        for trial in tuple(self._trials.values()):
            if trial.program not in ready or trial.program is None or trial.program.read():
                continue
            status, output = trial.program.end()
            trial.program = None
            if trial.role == "client" and status and self._clock.now() < trial.began + _TRYING_SECONDS:
                trial.due = self._clock.now() + _AGAIN_SECONDS
                continue
            del self._trials[trial.role]
            if trial.role == "client":
                self._result(trial.peer, status, output)
            yield trial.role

    def stop(self) -> None:
        for trial in self._trials.values():
            if trial.program:
                trial.program.stop()
                trial.program.end()

    def _result(self, peer: str, status: int, output: str) -> None:
        try:
            seconds = perftest.parse(output, WARM_UP)
        except Malformed as error:
            self._results.put(Skipped(peer, RDMA, "failed", f"exit status {status}: {error}"))
        else:
            self._results.put(Round(peer, RDMA, seconds, 0, 0, self._clock.wall()))

    def _begin(self, trial: _Trial) -> bool:
        assert self._settings.rdma
        server = self._settings.hosts[trial.peer][0] if trial.role == "client" else None
        command = perftest.command(self._settings.rdma, self._settings.messages + WARM_UP, server)
        try:
            trial.program = perftest.Program(command)
        except OSError as error:
            self._results.put(Skipped(trial.peer, RDMA, "failed", f"{command[0]}: {error.strerror}"))
            return False
        return True
