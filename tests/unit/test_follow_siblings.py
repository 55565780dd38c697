"""Who leads to which process where several hold GPUs in one control group, and what becomes of it as they go: a tree
in place of /proc."""

from __future__ import annotations

import pytest
from support.processes import Proc

from gpuhost_exporter.ledger.piece import works
from gpuhost_exporter.ledger.thresholds import Thresholds
from gpuhost_exporter.sources import follow

CONTAINER = f"/system.slice/docker-{'a' * 64}.scope"
TB = 10**12


class Container:
    """Ranks 10 and 11, each with a child 20 and 21 that began after the GPUs were taken; 5 started the ranks."""

    def __init__(self, folder):
        self.proc = Proc(folder)
        self.group(CONTAINER, 5, 10, 11, 20, 21)

    def group(self, path, *pids):
        group = self.proc.folder.parent / "sys/fs/cgroup" / path[1:]
        group.mkdir(parents=True, exist_ok=True)
        (self.proc.folder.parent / "sys/fs/cgroup/cgroup.controllers").write_text("io\n")
        (group / "cgroup.procs").write_text("\n".join(map(str, pids)))

    def put(self, written=0, *, children=True, text=f"0::{CONTAINER}"):
        self.proc.put(5, start=80_000)
        for rank in (10, 11):
            self.proc.put(rank, ppid=5, start=90_000, children=[rank + 10] if children else (), faults=7)
            self.proc.put(rank + 10, ppid=rank, start=100_300, written=written)
            (self.proc.folder / f"{rank}/cgroup").write_text(text)

    def look(self, ranks=(10, 11), seconds=1.0):
        self.proc.clock.time += seconds
        found = self.proc.follower.look({f"GPU-{rank}": [rank] for rank in ranks})
        self.proc.evidence = found
        return {process.pid: process for process in found.processes}

    def looks(self, count, ranks=(10, 11)):
        return [self.look(ranks) for _ in range(count)]

    def work(self):
        return works(self.proc.evidence, Thresholds())[f"container:{'a' * 64}"]


@pytest.fixture
def container(tmp_path):
    return Container(tmp_path)


def test_what_a_holder_led_to_is_not_new_to_another_that_leads_to_it_when_it_has_gone(container):
    container.put()
    container.looks(10)
    container.put(TB)
    container.looks(8)
    container.put(TB + 500)
    seen = container.look((10,))
    assert {pid: each.holder for pid, each in seen.items()} == dict.fromkeys((5, 10, 11, 20, 21), 10)
    assert (seen[21].written_chars, container.work().wrote) == (500, 1000), "followed without a break"
    later = container.looks(10, (10,))
    assert {each.written_chars for seen in later for each in seen.values()} == {0}


def test_what_nobody_led_to_for_a_while_is_not_new_either(container):
    container.put()
    container.looks(10)
    container.put(TB)
    container.looks(8)
    container.group(CONTAINER, 5, 10, 20)
    assert 21 not in container.look((10,))
    container.group(CONTAINER, 5, 10, 11, 20, 21)
    later = container.looks(10, (10,))
    assert 21 in later[-1]
    assert {each.written_chars or 0 for seen in later for each in seen.values()} == {0}


def test_what_a_rank_did_is_not_its_launchers_who_waits_for_it_after_nvml_has_let_it_go(container):
    container.put()
    container.looks(10)
    container.proc.put(11, ppid=5, start=90_000, written=TB, faults=90)
    container.look()
    container.proc.end(11)
    container.proc.put(5, start=80_000, written=TB, reaped=90)
    assert container.look((10,))[5].written_chars == 0


def test_what_was_left_out_and_is_found_later_brings_no_past(container, monkeypatch):
    monkeypatch.setattr(follow, "MOST_PROCESSES", 3)
    container.put()
    container.looks(10)
    container.put(TB)
    monkeypatch.setattr(follow, "MOST_PROCESSES", 512)
    later = container.looks(10)
    assert set(later[-1]) == {5, 10, 11, 20, 21}
    assert sum(each.written_chars or 0 for seen in later for each in seen.values()) == TB, (
        "of the one that was followed"
    )


@pytest.mark.parametrize("children", [True, False], ids=["of the main thread", "of another thread"])
def test_a_rank_is_blocked_by_its_own_children_only(container, children):
    container.put(children=children)
    seen = container.looks(10)[-1]
    assert {pid: seen[pid].holder for pid in (20, 21)} == {20: 10, 21: 11}
    for rank in (10, 11):
        container.proc.put(rank + 10, ppid=rank, start=100_300, state="D")
        container.look()
        assert container.work().blocked == {f"GPU-{rank}"}
        container.put(children=children)


@pytest.mark.parametrize(
    ("version_1", "version_2"),
    [
        pytest.param(f"/docker/{'a' * 64}", "/system.slice/containerd.service", id="Docker"),
        pytest.param("/slurm/uid_1001/job_7/step_0/task_0", "/system.slice/slurmd.service", id="Slurm"),
        pytest.param(f"/docker/{'a' * 64}", "/", id="nothing in version 2"),
    ],
)
def test_companions_are_not_sought_in_version_2_where_version_1_alone_names_the_job(container, version_1, version_2):
    container.put(text=f"4:blkio:{version_1}\n1:name=systemd:{version_1}\n0::{version_2}\n")
    container.group(version_2, 5, 10, 30)
    (container.proc.folder.parent / f"sys/fs/cgroup{version_2}/io.stat").write_text("")
    container.proc.put(30)
    container.looks(10)
    assert set(container.look()) == {10, 11, 20, 21}
    assert container.proc.evidence.cgroups == (), "nor is what everybody does in there the job's"


def test_a_job_of_which_processes_are_left_out_is_told_by_the_next_rung(container, monkeypatch):
    container.put()
    container.looks(10)
    assert (container.proc.evidence.left_out, container.work().rung) == (frozenset(), "process")
    monkeypatch.setattr(follow, "MOST_PROCESSES", 5)
    container.group(CONTAINER, 5, 10, 11, 20, 21, 22)
    container.proc.put(22)
    (container.proc.folder.parent / f"sys/fs/cgroup{CONTAINER}/io.stat").write_text("")
    container.looks(10)
    assert container.proc.evidence.left_out == {f"container:{'a' * 64}"}
    assert container.work().rung == "cgroup"
    container.group(CONTAINER, 5, 10, 11, 20, 21)
    container.looks(10)
    assert container.work().rung == "process"
