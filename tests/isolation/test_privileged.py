"""The privileged reader is started again when it ends, counted, and never doubled. Readers are real processes."""

from __future__ import annotations

import os
import signal
import time

import pytest
from support.daemon import descendants

from gpuhost_exporter.sources import readers
from gpuhost_exporter.sources.launcher import Launcher
from gpuhost_exporter.sources.privileged import Job, PrivilegedReader


class Running:
    def __init__(self, monkeypatch):
        self.launcher = Launcher.start(readers.KINDS)
        self.failures = []
        arguments = {"root": {"proc": "/proc", "sys": "/sys", "dev": "/dev"}}
        job = Job("traffic", lambda: arguments, lambda _: None, lambda *said: self.failures.append(said))
        monkeypatch.setattr("gpuhost_exporter.sources.privileged._KILL_WAIT", 0.05)
        self.reader = PrivilegedReader(self.launcher, (job,))
        self.reader.start()

    def pids(self):
        return [pid for pid, name in descendants(self.launcher.pid).items() if name.startswith("gpuhost-priv")]

    def until(self, holds):
        deadline = time.monotonic() + 20
        while not (found := holds()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return found


@pytest.fixture
def running(monkeypatch):
    made = Running(monkeypatch)
    yield made
    made.reader.stop()
    made.launcher.close()


def test_a_reader_that_ends_is_started_again_and_counted(running):
    (first,) = running.until(running.pids)
    assert (running.reader.restarts(), running.reader.stuck()) == (0, 0)
    os.kill(first, signal.SIGKILL)
    running.until(lambda: running.pids() not in ([], [first]))
    assert (running.reader.restarts(), running.reader.stuck()) == (1, 0)
    assert [kind for kind, _ in running.failures] == ["unavailable"]


def test_a_reader_that_only_let_go_of_its_pipe_is_ended_before_the_next_is_started(running):
    (first,) = running.until(running.pids)
    os.kill(first, signal.SIGSTOP)
    running.until(lambda: running.reader.ask("traffic", {}))
    for pipe in running.reader._pipes.values():
        pipe._socket.shutdown(0)  # as its end would look
    running.until(lambda: running.reader.restarts() == 1)
    running.until(lambda: running.pids() not in ([], [first]))
    assert first not in descendants(running.launcher.pid)


def test_a_reader_that_the_kernel_cannot_end_is_reported_and_not_doubled(running, monkeypatch, caplog):
    (first,) = running.until(running.pids)
    exit_status, spawn, spawned = running.launcher.exit_status, running.launcher.spawn, []
    monkeypatch.setattr(running.launcher, "spawn", lambda *a: spawned.append(a) or spawn(*a))
    asked = []
    monkeypatch.setattr(running.launcher, "exit_status", lambda pid, wait=0.0: asked.append(time.sleep(0.05)))
    os.kill(first, signal.SIGKILL)
    running.until(lambda: running.reader.stuck() == 1)
    running.until(lambda: len(asked) > 40)  # longer than the pause after which it would be started again
    assert spawned == []
    assert f"cannot end privileged reader {first}" in running.failures[-1][1]
    assert caplog.text.count("cannot end privileged reader") == 1
    monkeypatch.setattr(running.launcher, "exit_status", exit_status)
    running.until(lambda: running.pids() not in ([], [first]))
    assert len(spawned) == 1
    assert (running.reader.restarts(), running.reader.stuck()) == (1, 0)
