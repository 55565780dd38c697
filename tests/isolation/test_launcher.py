"""The launcher: readers are started, told apart, killed, reaped, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from support.daemon import descendants

from gpuhost_exporter.errors import Gone, Hung, Unavailable
from gpuhost_exporter.sources import linux
from gpuhost_exporter.sources.launcher import Launcher, ReaderKind
from gpuhost_exporter.sources.pipe import Pipe, pair, recv_answer, send_request

KINDS = {
    name: ReaderKind(f"support.mains:{name}", keep)
    for name, keep in {
        "echo": frozenset(),
        "facts": frozenset({linux.CAP_SYSLOG}),
        "crash": frozenset(),
        "hang": frozenset(),
    }.items()
}


@pytest.fixture
def launcher():
    started = Launcher.start(KINDS)
    yield started
    started.close()


@pytest.fixture
def spawn():
    opened = []

    def start(launcher, kind, **arguments):
        ours, theirs = pair()
        opened.append(Pipe(ours))
        return launcher.spawn(kind, arguments, [theirs]), opened[-1]

    yield start
    for pipe in opened:
        pipe.close()


def exists(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"


def gone_within(pids, seconds):
    deadline = time.monotonic() + seconds
    while any(exists(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_a_reader_answers_requests_with_what_it_was_started_with(launcher, spawn):
    _, pipe = spawn(launcher, "echo", colour="red")
    for number in range(3):
        send_request(pipe, {"number": number})
        assert recv_answer(pipe, 5) == ({"colour": "red"}, {"number": number})


def test_a_reader_has_no_internet_only_its_capabilities_and_no_foreign_descriptor(launcher, spawn):
    _, pipe = spawn(launcher, "facts")
    internet, capabilities, parent, descriptors = recv_answer(pipe, 5)
    assert not internet
    assert capabilities <= {linux.CAP_SYSLOG}
    if os.getuid() == 0 and linux.CAP_SYSLOG in linux.effective_capabilities():
        assert capabilities == {linux.CAP_SYSLOG}
    assert parent == launcher.pid
    # Standard streams, its own pipe, and the folder that it listed; pytest's capture may add files of its own.
    assert len(descriptors) <= 5 + len(os.listdir("/proc/self/fd")) - 4
    assert launcher.marks[:5] == b"noted"


def test_a_crash_is_told_with_its_signal_and_another_reader_can_be_started(launcher, spawn):
    pid, pipe = spawn(launcher, "crash")
    with pytest.raises(Gone):
        recv_answer(pipe, 5)
    assert launcher.exit_status(pid, 5) == -signal.SIGSEGV
    _, pipe = spawn(launcher, "echo")
    send_request(pipe, {})
    assert recv_answer(pipe, 5) == ({}, {})


def test_a_hung_reader_is_waited_for_no_longer_than_asked_and_can_be_killed(launcher, spawn):
    pid, pipe = spawn(launcher, "hang")
    assert recv_answer(pipe, 5) == pid
    begin = time.monotonic()
    with pytest.raises(Hung):
        recv_answer(pipe, 0.2)
    assert time.monotonic() - begin < 1
    assert launcher.exit_status(pid) is None
    launcher.kill(pid)
    assert launcher.exit_status(pid, 5) == -signal.SIGKILL


def test_only_its_own_children_are_killed_by_the_launcher(launcher, spawn):
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        launcher.kill(bystander.pid)
        spawn(launcher, "echo")
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_close_ends_hung_readers_and_the_launcher(spawn):
    launcher = Launcher.start(KINDS)
    pids = [spawn(launcher, "hang")[0] for _ in range(3)]
    launcher.close()
    assert gone_within([launcher.pid, *pids], 1)


def test_an_answer_that_came_too_late_is_no_other_request_s_and_its_reader_ends(launcher, spawn, monkeypatch):
    monkeypatch.setattr("gpuhost_exporter.sources.launcher._SPAWN_SECONDS", 0.2)
    os.kill(launcher.pid, signal.SIGSTOP)
    with pytest.raises(Unavailable, match="does not answer"):
        spawn(launcher, "hang")
    os.kill(launcher.pid, signal.SIGCONT)
    pid, pipe = spawn(launcher, "hang")
    assert recv_answer(pipe, 5) == pid
    monkeypatch.undo()
    launcher.exit_status(pid)
    assert gone_within(set(descendants(launcher.pid)) - {pid}, 3)


def test_a_dead_launcher_is_told_and_not_waited_for(launcher, spawn):
    os.kill(launcher.pid, signal.SIGKILL)
    time.sleep(0.1)
    with pytest.raises(Unavailable, match="launcher"):
        spawn(launcher, "echo")
    launcher.kill(4711)
    assert launcher.exit_status(4711) == -signal.SIGKILL
    assert launcher.ended()


def test_sigkill_of_the_exporter_leaves_no_process_behind():
    program = textwrap.dedent(
        """
        import sys, time
        from gpuhost_exporter.sources.launcher import Launcher, ReaderKind
        from gpuhost_exporter.sources.pipe import Pipe, pair, recv_answer
        launcher = Launcher.start({"hang": ReaderKind("support.mains:hang", frozenset())})
        ours, theirs = pair()
        pid = launcher.spawn("hang", {}, [theirs])
        recv_answer(Pipe(ours), 5)
        print(launcher.pid, pid, flush=True)
        time.sleep(60)
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    ) as victim:
        pids = [int(word) for word in victim.stdout.readline().split()]
        assert len(pids) == 2
        assert all(exists(pid) for pid in pids)
        victim.kill()
        assert gone_within(pids, 3)
