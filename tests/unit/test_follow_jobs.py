"""Which of a user's processes are one job, where no scheduler, container or unit tells: a tree in place of /proc."""

from __future__ import annotations

import os
import time

import pytest
from support.processes import Proc

SHELL, LAUNCHER = 20, 30
RUN = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "WORLD_SIZE": "2"}
OTHER_RUN = {**RUN, "MASTER_PORT": "29501"}
SCOPE = "/user.slice/user-1000.slice/session-3.scope"


@pytest.fixture
def proc(tmp_path):
    return Proc(tmp_path)


def put(proc, pid, ppid, environment=None, *, comm="python3", session=SHELL, cgroup=SCOPE):
    proc.put(pid, ppid=ppid, comm=comm, session=session)
    (proc.folder / f"{pid}/cgroup").write_text(f"0::{cgroup}\n")
    if environment is not None:
        words = {**environment, "USER": "ada"}
        (proc.folder / f"{pid}/environ").write_text("\0".join(f"{key}={value}" for key, value in words.items()))


def jobs(proc, *pids, told=True):
    """pid -> key of its job; `told`: once every environment has been read."""
    deadline = time.monotonic() + 10
    while True:
        proc.look(*pids, seconds=0.0)
        found = {pid: proc.evidence.job_of(pid) for pid in pids}
        if not told or all(each.user == "ada" for each in found.values()):
            break
        assert time.monotonic() < deadline
    processes = {process.pid: process.job for process in proc.evidence.processes}
    assert all(processes[pid] == each.key for pid, each in found.items())
    return {pid: each.key for pid, each in found.items()}


def uid():
    return os.geteuid()


@pytest.mark.parametrize("told", [True, False], ids=["environment told", "not told"])
def test_runs_that_one_shell_started_are_as_many_jobs(proc, told):
    put(proc, SHELL, 1, comm="bash")
    for pid in range(100, 108):
        put(proc, pid, SHELL, {} if told else None)
    found = jobs(proc, *range(100, 108), told=told)
    assert found == {pid: f"user:{uid()}-{pid}" for pid in range(100, 108)}


@pytest.mark.parametrize("told", [True, False], ids=["environment told", "not told"])
def test_the_ranks_of_one_launcher_are_one_job_though_each_has_a_session(proc, told):
    put(proc, SHELL, 1, comm="bash")
    for launcher, environment in ((LAUNCHER, RUN), (LAUNCHER + 1, OTHER_RUN)):
        put(proc, launcher, SHELL, comm="torchrun")
        for pid in (10 * launcher, 10 * launcher + 1):
            put(proc, pid, launcher, environment if told else None, session=pid)
    found = jobs(proc, 300, 301, 310, 311, told=told)
    assert found[300] == found[301] != found[310] == found[311]
    assert ("-run-" in found[300]) == told
    assert "127.0.0.1" not in found[300], "hosts are shown as the site says"


def test_ranks_that_a_shell_started_one_by_one_have_their_rendezvous_in_common(proc):
    put(proc, SHELL, 1, comm="bash")
    for pid in (100, 101):
        put(proc, pid, SHELL, RUN)
    for pid in (102, 103):
        put(proc, pid, SHELL, OTHER_RUN)
    found = jobs(proc, 100, 101, 102, 103)
    assert found[100] == found[101] != found[102] == found[103]


def test_who_starts_the_other_ranks_from_within_is_one_of_them(proc):
    """As Lightning does: the first has no rendezvous in the environment that it was started with."""
    put(proc, SHELL, 1, comm="bash")
    put(proc, 100, SHELL, {})
    for pid in (101, 102):
        put(proc, pid, 100, RUN)
    put(proc, 110, SHELL, {})
    found = jobs(proc, 100, 101, 102, 110)
    assert found[100] == found[101] == found[102]
    assert found[110] == f"user:{uid()}-110"


def test_ranks_without_a_rendezvous_have_their_session_in_common(proc):
    """As mpirun starts them through a script each."""
    put(proc, SHELL, 1, comm="bash")
    put(proc, LAUNCHER, SHELL, comm="mpirun")
    for rank in range(2):
        put(proc, 40 + rank, LAUNCHER, comm="bash")
        environment = {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": "2"}
        put(proc, 100 + rank, 40 + rank, environment)
    put(proc, 110, SHELL, {})
    found = jobs(proc, 100, 101, 110)
    assert found[100] == found[101] == f"user:{uid()}-{SHELL}"
    assert found[110] == f"user:{uid()}-110"


def test_two_units_are_two_jobs_and_what_a_unit_starts_is_its_own(proc):
    for pid, unit in ((100, "a.service"), (101, "a.service"), (102, "b.service")):
        put(proc, pid, 1, RUN, cgroup=f"/system.slice/{unit}")
    found = jobs(proc, 100, 101, 102)
    assert found == {100: "systemd:a.service", 101: "systemd:a.service", 102: "systemd:b.service"}


def test_what_the_control_group_of_two_jobs_does_is_neithers(proc):
    group = proc.folder.parent / f"sys/fs/cgroup{SCOPE}"
    group.mkdir(parents=True)
    (group / "io.stat").write_text("")
    (proc.folder.parent / "sys/fs/cgroup/cgroup.controllers").write_text("io\n")
    put(proc, SHELL, 1, comm="bash")
    put(proc, 100, SHELL, {})
    put(proc, 101, 100, {})
    jobs(proc, 100, 101)
    assert [each.job for each in proc.evidence.cgroups] == [f"user:{uid()}-100"]
    put(proc, 110, SHELL, {})
    jobs(proc, 100, 101, 110)
    assert [(each.path, each.job) for each in proc.evidence.cgroups] == [(SCOPE, None)]
