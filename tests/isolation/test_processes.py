"""The privileged reader's job `processes`: what it may do, what it finds, and what is left without the privilege."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from support.daemon import descendants
from support.worker import Worker

from gpuhost_exporter.clock import SystemClock
from gpuhost_exporter.sources import linux, readers
from gpuhost_exporter.sources.launcher import Launcher
from gpuhost_exporter.sources.privileged import Job, PrivilegedReader
from gpuhost_exporter.sources.processes import Processes
from gpuhost_exporter.sources.traffic import NetworkTraffic

MB = 1_000_000
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
as_root = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="becomes another user: needs root and setpriv"
)


class Reader:
    """A real privileged reader with this job alone, or without it."""

    def __init__(self, *, processes=True):
        self.launcher = Launcher.start(readers.KINDS)
        self.processes = Processes(SystemClock())
        root = {"proc": "/proc", "sys": "/sys", "dev": "/dev"}
        if processes:
            job = Job("processes", lambda: {"root": root}, self.processes.put, self.processes.fail)
        else:
            arguments = {"root": root, "cursor": None}
            job = Job("kernel_log", lambda: arguments, lambda _: None, lambda *_: None)
        self.reader = PrivilegedReader(self.launcher, (job,))
        self.sent = False
        self.processes.connect(self.ask)
        self.reader.start()

    def pid(self):
        return self.until(
            lambda: next(
                (pid for pid, name in descendants(self.launcher.pid).items() if name.startswith("gpuhost-priv")), None
            )
        )

    def ask(self, request):
        self.sent = self.reader.ask("processes", request)
        return self.sent

    def look(self, *pids):
        """The window that ends now, as soon as there is a reader."""

        def asked():
            self.processes.follow({"GPU-0": pids})
            return self.sent

        self.until(asked)
        (window,) = self.until(self.processes.take)
        return window

    def until(self, holds):
        deadline = time.monotonic() + 10
        while not (found := holds()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return found

    def close(self):
        self.reader.stop()
        self.launcher.close()


@pytest.fixture
def reader():
    started = []

    def start(**options):
        started.append(Reader(**options))
        return started[-1]

    yield start
    for each in started:
        each.close()


def capabilities(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        mask = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    return {number for number in range(64) if mask >> number & 1}


def test_windows_follow_one_another_and_nothing_is_told_before_the_first(reader):
    one = reader()
    assert one.processes.state() == ("starting", "not read yet")
    with Worker() as worker:
        first = one.look(worker.pid)
        worker.do("burn", 0.2)
        second = one.look(worker.pid)
        assert first.since == first.at == second.since < second.at
        (process,) = second.processes
        assert process.cpu_seconds == pytest.approx(0.2, abs=0.1)
        assert one.processes.last() == second
        assert one.processes.state() == ("ok", "")


def test_a_reader_that_was_killed_is_replaced_and_begins_anew(reader):
    one = reader()
    with Worker() as worker:
        one.look(worker.pid)
        first = one.pid()
        os.kill(first, 9)
        one.until(lambda: one.processes.state()[0] == "unavailable")
        window = one.look(worker.pid)
        assert one.pid() != first
        assert window.since == window.at
        assert window.processes[0].wrote is None


@as_root
def test_it_holds_what_its_jobs_need_and_no_more(reader):
    one = reader()
    one.look()
    assert capabilities(one.pid()) == {linux.CAP_SYS_PTRACE, linux.CAP_DAC_READ_SEARCH}
    without = reader(processes=False)
    without.until(lambda: capabilities(without.pid()) == {linux.CAP_SYSLOG})


@as_root
def test_another_users_process_is_read(reader):
    one = reader()
    with Worker({"RANK": "4"}, through=NOBODY) as worker:
        one.look(worker.pid)
        worker.do("write", "/dev/shm/gpuhost-test-nobody", 5)
        try:
            window = one.look(worker.pid)
            assert window.processes[0].wrote == pytest.approx(5 * MB, rel=0.05)
            assert not window.denied
            one.until(lambda: one.look(worker.pid).job_of(worker.pid).rank == 4)
            assert one.processes.last().job_of(worker.pid).uid == 65534
        finally:
            os.unlink("/dev/shm/gpuhost-test-nobody")


_LOOK = """
import json, sys, time
from gpuhost_exporter.clock import SystemClock
from gpuhost_exporter.sources.files import Root
from gpuhost_exporter.sources.follow import Follower
from gpuhost_exporter.sources.processes import Processes
from gpuhost_exporter.sources.traffic import NetworkTraffic
follower, processes = Follower(Root(), SystemClock()), Processes(SystemClock())
follower.look({"GPU-0": [int(sys.argv[1])]})
print("looked", flush=True)
sys.stdin.readline()
window = follower.look({"GPU-0": [int(sys.argv[1])]})
processes.put(window)
print(json.dumps({
    "processes": [process._asdict() for process in window.processes],
    "denied": window.denied,
    "host": window.host.dirtied_bytes,
    "job": window.jobs[0].key,
    "rank": window.jobs[0].rank,
    "state": processes.state(),
}))
"""


@as_root
def test_without_privilege_states_and_cpu_time_remain_and_the_rest_is_said_to_be_denied(tmp_path):
    with Worker({"RANK": "4"}) as worker:
        child = subprocess.Popen(
            [*NOBODY, "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", _LOOK, str(worker.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert child.stdout.readline() == "looked\n"
        worker.do("write", str(tmp_path / "file"), 5)
        worker.do("fork", "burn", 1.2)
        found = json.loads(child.communicate("\n", timeout=10)[0])
    holder, loader = sorted(found["processes"], key=lambda process: process["role"])
    assert (holder["role"], loader["role"]) == ("holder", "loader")
    assert loader["cpu_seconds"] == pytest.approx(1.2, abs=0.1)
    assert holder["state"] in "RS"
    for process in (holder, loader):
        assert process["denied"]
        told = {name: process[name] for name in ("read_chars", "written_chars", "read_bytes", "write_bytes", "mount")}
        assert set(told.values()) == {None}
    assert found["host"] >= 4 * MB  # somebody wrote
    assert re.fullmatch(r"user:0-[0-9]+", found["job"]), "by the program that started it: its environment is not told"
    assert found["rank"] is None
    assert found["state"] == [
        "denied",
        "I/O of 2 GPU processes may not be read; grant CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH",
    ]


def test_adapters_are_looked_at_beside_them_in_the_same_reader_without_privilege(tmp_path):
    """The job `traffic` on a small /sys: two requests make a window."""
    folder = tmp_path / "sys/class/net/eth0"
    (folder / "statistics").mkdir(parents=True)
    (folder / "device").mkdir()
    for direction in ("rx", "tx"):
        (folder / f"statistics/{direction}_bytes").write_text("1000\n")
    launcher, network = Launcher.start(readers.KINDS), NetworkTraffic()
    root = {"proc": "/proc", "sys": str(tmp_path / "sys"), "dev": "/dev"}
    reader = PrivilegedReader(launcher, (Job("traffic", lambda: {"root": root}, network.put, network.fail),))
    network.connect(lambda: reader.ask("traffic", {}))
    reader.start()
    try:
        deadline = time.monotonic() + 20
        told = ()
        while not any(window.adapters[0].sent for window in told):
            assert time.monotonic() < deadline
            network.look()
            time.sleep(0.1)
            (folder / "statistics/tx_bytes").write_text(f"{5_000_000 + int(1e6 * time.monotonic())}\n")
            told = network.take()
        (pid,) = (pid for pid, name in descendants(launcher.pid).items() if name.startswith("gpuhost-priv"))
        assert capabilities(pid) == set()
    finally:
        reader.stop()
        launcher.close()
