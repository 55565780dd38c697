"""The exporter's side of the privileged reader: one process with a thread a job, started again when it ends.

A job is told its arguments at each start and sends readings, or a SourceError when it cannot read, as they come.
Some send only when asked: `ask`. A reader that the kernel cannot kill is reported, and none started beside it.
"""

from __future__ import annotations

import logging
import select
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpuhost_exporter.errors import Gone, Hung, SourceError, Unavailable
from gpuhost_exporter.sources.launcher import Launcher
from gpuhost_exporter.sources.pipe import Pipe, pair, recv_answer, send_request

log = logging.getLogger(__name__)

_LONGEST_PAUSE = 60.0
_KILL_WAIT = 2.0


@dataclass(frozen=True, slots=True)
class Job:
    """`name` as in readers.JOBS. `deliver` gets each answer, `fail` the kind and text of what went wrong."""

    name: str
    arguments: Callable[[], Mapping[str, Any]]
    deliver: Callable[[Any], None]
    fail: Callable[[str, str], None]


class PrivilegedReader:
    def __init__(self, launcher: Launcher, jobs: Sequence[Job]) -> None:
        self._launcher = launcher
        self._jobs = tuple(jobs)
        self._stopping = threading.Event()
        self._asking = threading.Lock()
        self._pipes: dict[str, Pipe] = {}
        self._restarts = 0
        self._stuck: int | None = None
        self._thread = threading.Thread(target=self._run, name="privileged", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def restarts(self) -> int:
        """Times that the reader ended and had to be started again."""
        return self._restarts

    def stuck(self) -> int:
        """Readers that were killed and have not ended: the kernel cannot interrupt them."""
        return int(self._stuck is not None)

    def ask(self, job: str, request: dict[str, Any]) -> bool:
        """Hand a running job a request; False when there is none now. Do not ask again before the answer: what
        the job does not read would one day fill its pipe, and this call would wait."""
        with self._asking:
            pipe = self._pipes.get(job)
            if pipe is None:
                return False
            try:
                send_request(pipe, request)
            except Gone:
                return False
            return True

    def _run(self) -> None:
        pause = 1.0
        while not self._stopping.is_set():
            pipes: dict[int, tuple[Job, Pipe]] = {}
            theirs = []
            for job in self._jobs:
                ours, other = pair()
                pipes[ours.fileno()] = job, Pipe(ours)
                theirs.append(other)
            arguments = {job.name: dict(job.arguments()) for job in self._jobs}
            pid = None
            try:
                pid = self._launcher.spawn("privileged", arguments, theirs)
                with self._asking:
                    self._pipes = {job.name: pipe for job, pipe in pipes.values()}
                while True:
                    for descriptor in select.select(list(pipes), [], [])[0]:
                        _carry(*pipes[descriptor])
                    pause = 1.0
            except (Gone, Hung, Unavailable) as error:
                with self._asking:
                    self._pipes = {}
                for _, pipe in pipes.values():
                    pipe.close()
                self._fail(f"the privileged reader ended: {error}")
            if pid is not None:
                self._end(pid)
            self._stopping.wait(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _end(self, pid: int) -> None:
        """Kill what may still run, and wait until it has gone: two would do everything twice."""
        self._restarts += 1
        self._launcher.kill(pid)
        while self._launcher.exit_status(pid, _KILL_WAIT) is None and not self._stopping.is_set():
            if self._stuck is None:
                self._stuck = pid
                message = f"the kernel cannot end privileged reader {pid}: not starting another"
                log.warning("%s", message)
                self._fail(message)
        if self._stuck is not None and not self._stopping.is_set():
            self._stuck = None
            log.info("privileged reader %d has gone: starting another", pid)

    def _fail(self, message: str) -> None:
        if not self._stopping.is_set():
            for job in self._jobs:
                job.fail("unavailable", message)


def _carry(job: Job, pipe: Pipe) -> None:
    answer = recv_answer(pipe, 10.0)
    if isinstance(answer, SourceError):
        job.fail(answer.kind, str(answer))
    else:
        job.deliver(answer)
