"""The GPU processes' follower, on real processes of this kernel and on a tree that stands for /proc."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from support.processes import Proc
from support.worker import Worker

from gpuhost_exporter.clock import SystemClock
from gpuhost_exporter.sources import follow
from gpuhost_exporter.sources.files import Root
from gpuhost_exporter.sources.follow import Follower
from gpuhost_exporter.sources.process_work import Process, Work
from gpuhost_exporter.sources.procfs import Io, Stat

MB = 1_000_000


@pytest.fixture
def disk():
    """A folder on a file system with a disk behind it, where there is one."""
    folder = tempfile.mkdtemp(dir="/var/tmp")
    if any(line.split()[1:3] == ["/var/tmp", "tmpfs"] for line in Path("/proc/mounts").read_text().splitlines()):
        pytest.skip("/var/tmp is a tmpfs here")
    yield folder
    shutil.rmtree(folder)


class Watch:
    """A follower of real processes, and the sums of what it told of them."""

    def __init__(self, *pids):
        self.follower = Follower(Root(), SystemClock())
        self.pids = pids
        self.last = self.follower.look({"GPU-0": pids})

    def look(self):
        self.last = self.follower.look({"GPU-0": self.pids})
        return {process.pid: process for process in self.last.processes}

    def until(self, holds):
        deadline = time.monotonic() + 5
        while not holds(seen := self.look()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return seen


# What the kernel counts of each way to write, bytes a megabyte: (system calls, page cache).
@pytest.mark.parametrize(
    ("way", "expected"),
    [
        pytest.param("write", (50, 50), id="buffered"),
        pytest.param("mapped", (0, 50), id="mmap is in no system call"),
        pytest.param("direct", (52, 52), id="direct counts when it is submitted"),
    ],
)
def test_each_way_to_write_a_file_is_seen(disk, way, expected):
    with Worker() as worker:
        watch = Watch(worker.pid)
        worker.do(way, f"{disk}/file", 50)
        seen = watch.look()[worker.pid]
        assert (seen.written_chars / MB, seen.write_bytes / MB) == pytest.approx(expected, rel=0.05, abs=0.5)
        assert seen.wrote == pytest.approx(max(expected) * MB, rel=0.05)
        assert watch.look()[worker.pid].wrote == 0


def test_an_overwrite_of_what_is_dirty_shows_in_system_calls_only(disk):
    with Worker() as worker:
        worker.do("write", f"{disk}/file", 20)
        watch = Watch(worker.pid)
        worker.do("overwrite", f"{disk}/file", 20)
        seen = watch.look()[worker.pid]
        # Unless writeback came between, which makes pages dirty anew.
        assert seen.written_chars >= 20 * MB > seen.write_bytes / 2
        assert seen.wrote == pytest.approx(20 * MB, rel=0.05)


def test_tmpfs_shows_in_system_calls_only():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, Worker() as worker:
        watch = Watch(worker.pid)
        worker.do("write", f"{folder}/file", 20)
        seen = watch.look()[worker.pid]
        assert seen.written_chars == pytest.approx(20 * MB, rel=0.05)
        assert seen.write_bytes == 0


def test_bytes_sent_over_a_socket_are_not_taken_for_files():
    with Worker() as worker:
        watch = Watch(worker.pid)
        worker.do("send", 20)
        assert watch.look()[worker.pid].wrote < MB


def test_what_is_removed_before_it_is_written_is_told(disk):
    with Worker() as worker:
        watch = Watch(worker.pid)
        worker.do("write", f"{disk}/file", 20)
        worker.do("unlink", f"{disk}/file")
        seen = watch.look()[worker.pid]
        assert 0 < seen.cancelled_bytes <= 21 * MB


def test_a_child_is_followed_and_what_its_parent_inherits_is_counted_once(disk):
    with Worker() as worker:
        watch = Watch(worker.pid)
        child = worker.do("fork", "write", f"{disk}/file", 30)
        seen = watch.look()
        assert seen[child].wrote == pytest.approx(30 * MB, rel=0.05)
        assert (seen[child].holder, seen[child].ppid, seen[child].gpus) == (worker.pid, worker.pid, ())
        assert (seen[child].role, seen[child].role_evidence) == ("writer", "wrote 30 MB")
        worker.do("reap")
        seen = watch.look()
        assert child not in seen
        assert seen[worker.pid].wrote < MB  # the kernel has just added 30 MB to it


def test_a_zombie_leaves_nothing_until_it_is_waited_for(disk):
    with Worker() as worker:
        watch = Watch(worker.pid)
        child = worker.do("fork", "write", f"{disk}/file", 10)
        watch.look()
        worker.do("end")
        seen = watch.until(lambda seen: seen[child].state == "Z")
        assert seen[worker.pid].wrote < MB


def test_a_child_that_nobody_saw_is_its_parents(disk):
    with Worker() as worker:
        watch = Watch(worker.pid)
        worker.do("fork", "write", f"{disk}/file", 30)
        worker.do("reap")
        assert watch.look()[worker.pid].wrote == pytest.approx(30 * MB, rel=0.05)


def test_what_the_last_second_of_a_child_wrote_is_its_parents(disk):
    """Two generations: the child is seen with 10 MB and then inherits 30 MB from one that nobody saw."""
    with Worker() as worker:
        watch = Watch(worker.pid)
        worker.do("fork", "write", f"{disk}/file", 10)
        first = sum(process.wrote for process in watch.look().values())
        worker.do("reap")
        worker.do("fork", "write", f"{disk}/other", 30)
        worker.do("reap")
        assert first + watch.look()[worker.pid].wrote == pytest.approx(40 * MB, rel=0.05)


def test_a_parent_that_ignores_its_children_inherits_nothing_and_loses_nothing(disk):
    with Worker() as worker:
        worker.do("ignore")
        watch = Watch(worker.pid)
        child = worker.do("fork", "write", f"{disk}/file", 30)
        watch.look()
        worker.do("reap")
        watch.until(lambda seen: child not in seen)
        worker.do("write", f"{disk}/other", 40)
        assert watch.look()[worker.pid].wrote == pytest.approx(40 * MB, rel=0.05)


def test_what_was_before_is_not_told_and_what_is_told_has_its_window():
    with Worker() as worker:
        watch = Watch(worker.pid)
        (first,) = watch.last.processes
        assert (first.wrote, first.read, first.cpu_seconds) == (None, None, None)
        assert watch.last.since == watch.last.at
        assert (first.role, first.gpus, first.denied) == ("holder", ("GPU-0",), False)
        assert first.start == pytest.approx(SystemClock().now(), abs=5)
        worker.do("burn", 0.2)
        before = watch.last.at
        seen = watch.look()[worker.pid]
        assert seen.cpu_seconds == pytest.approx(0.2, abs=0.05)
        assert watch.last.since == before < watch.last.at


def test_readers_and_burners_below_a_holder_are_loaders(disk):
    with Worker() as worker:
        worker.do("write", f"{disk}/file", 20)
        watch = Watch(worker.pid)
        reader = worker.do("fork", "read", f"{disk}/file")
        burner = worker.do("fork", "burn", 1.1)
        idler = worker.do("fork")
        seen = watch.look()
        assert (seen[reader].role, seen[reader].role_evidence) == ("loader", "read 20 MB")
        assert seen[burner].role == "loader"
        assert seen[burner].role_evidence.startswith("cpu 1.")
        assert (seen[idler].role, seen[idler].role_evidence) == ("other", "")


def test_where_much_is_written_is_told_by_mount():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, Worker() as worker:
        watch = Watch(worker.pid)
        worker.do("keep", f"{folder}/file", 40)
        seen = watch.look()[worker.pid]
        assert (seen.mount, seen.mount_type) == ("/dev/shm", "tmpfs")


def test_threads_are_looked_at_in_turn():
    with Worker() as worker:
        worker.do("threads", 20)
        watch = Watch(worker.pid)
        seen = watch.look()[worker.pid]
        assert (seen.threads, seen.threads_blocked) == (21, 0)
        assert 1 < seen.threads_looked <= 1 + follow.THREADS_A_LOOK


def test_where_many_hold_gpus_fewer_threads_of_each_are_looked_at(proc):
    for pid in range(10, 74):
        proc.put(pid)
        for thread in range(1000, 1020):
            (proc.folder / f"{pid}/task/{thread}").mkdir()
    few = {process.threads_looked for process in proc.look(*range(10, 74)).values()}
    assert max(few) == 1 + follow.MOST_THREADS_A_LOOK // 64
    assert proc.look(10)[10].threads_looked == 1 + follow.THREADS_A_LOOK


def test_a_holder_that_has_ended_is_unseen_and_one_no_longer_named_is_let_go():
    with Worker() as one, Worker() as two:
        watch = Watch(one.pid, two.pid)
        watch.pids = (two.pid,)
        assert set(watch.look()) == {two.pid}
        watch.pids = (two.pid, 2**22 + 1)
        assert set(watch.look()) == {two.pid}
        assert watch.last.unseen == (2**22 + 1,)


def test_the_environment_is_read_once_and_names_the_rank():
    with Worker({"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "AWS_SECRET": "x"}) as worker:
        watch = Watch(worker.pid)
        watch.until(lambda _: watch.last.job_of(worker.pid).rank is not None)
        identity = watch.last.job_of(worker.pid)
        assert (identity.rank, identity.local_rank, identity.world_size) == (5, 1, 16)
        assert identity.uid == os.geteuid()
        assert "x" not in (identity.name, identity.account, identity.user)


# A tree in place of /proc


_AUDITED = """
import json, sys
from gpuhost_exporter.clock import SystemClock
from gpuhost_exporter.sources.files import Root
from gpuhost_exporter.sources.follow import Follower
opened = []
def note(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith("/proc"):
        opened.append(str(arguments[0]))
sys.addaudithook(note)
follower = Follower(Root(), SystemClock())
for _ in range(7):
    print(flush=True)
    sys.stdin.readline()
    follower.look({"GPU-0": [int(sys.argv[1])]})
print(json.dumps(opened))
"""


def test_only_the_followed_are_looked_at_and_nothing_that_holds_them_up(disk):
    """Never all of /proc, never what takes the process' memory lock: cmdline, maps, smaps; environ once."""
    with Worker() as worker, Worker():
        child = worker.do("fork")
        worker.do("threads", 30)
        reader = subprocess.Popen(
            [sys.executable, "-c", _AUDITED, str(worker.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        for _ in range(7):
            reader.stdout.readline()
            worker.do("keep", f"{disk}/file", 40)
            reader.stdin.write("\n")
            reader.stdin.flush()
            time.sleep(0.1)
        opened = [path.split("/")[2:] for path in json.loads(reader.communicate(timeout=10)[0])]
    followed = {str(worker.pid), str(child)}
    above = [path for path in opened if path and path[0].isdecimal() and path[0] not in followed]
    mounted = [path for path in above if path == ["1", "mountinfo"]]
    above = [path for path in above if path not in mounted]
    assert len(mounted) <= 1, "what is mounted on the host, once"
    assert {path[1] for path in above} <= {"stat"}, "of those above only who they are"
    assert len({path[0] for path in above}) == len(above), "and that once"
    assert {path[0] for path in opened if path and path[0].isdecimal()} >= followed
    assert [] not in opened, "all of /proc was listed"
    files = {path[-1] for path in opened if path[0] in followed}
    assert not files & {"cmdline", "smaps", "smaps_rollup", "maps", "status", "exe"}
    assert {"stat", "io", "children", "mountinfo"} <= files
    assert sum(path[-1] == "environ" for path in opened) == 1


@pytest.fixture
def proc(tmp_path):
    return Proc(tmp_path)


def test_a_number_that_is_used_again_is_another_process(proc):
    proc.put(10, start=500, written=900, ticks=300)
    proc.look()
    proc.put(10, start=100_150, written=70, ticks=5)
    assert proc.look() == {}
    seen = proc.look()[10]
    assert (seen.start, seen.written_chars) == (1001.5, None)
    proc.put(10, start=100_150, written=75, ticks=8)
    seen = proc.look()[10]
    assert (seen.written_chars, seen.cpu_seconds) == (5, 0.03)


def test_a_childs_number_that_is_used_again_starts_from_nothing(proc):
    proc.put(10, children=[11])
    proc.put(11, ppid=10, start=1, written=800)
    proc.look()
    proc.put(11, ppid=10, start=100_250, written=30)
    proc.look()
    assert proc.look()[11].written_chars == 30


def test_a_child_older_than_the_watch_has_no_past_and_a_younger_one_all_of_it(proc):
    proc.put(10, children=[11])
    proc.put(11, ppid=10, start=99_000, written=800)
    assert proc.look()[11].written_chars is None
    proc.put(10, children=[11, 12])
    proc.put(12, ppid=10, start=100_150, written=40)
    seen = proc.look()
    assert (seen[11].written_chars, seen[12].written_chars) == (0, 40)


def test_a_child_that_is_waited_for_a_second_late_is_taken_off_then(proc):
    proc.put(10, children=[11])
    proc.put(11, ppid=10, start=100_050, written=500, faults=90)
    proc.look()
    proc.end(11)
    proc.put(10)
    assert proc.look()[10].written_chars == 0
    proc.put(10, written=520, reaped=95)
    assert proc.look()[10].written_chars == 20


def test_what_is_taken_off_too_early_is_owed(proc):
    """The child was waited for between the reads of its parent's io and stat."""
    proc.put(10, children=[11])
    proc.put(11, ppid=10, start=100_050, written=500, faults=90)
    proc.look()
    proc.end(11)
    proc.put(10, written=0, reaped=95)
    assert proc.look()[10].written_chars == 0
    proc.put(10, written=530, reaped=95)
    assert proc.look()[10].written_chars == 30


def test_a_grandchild_reaches_the_grandparent_through_one_that_ended_too(proc):
    proc.put(10, children=[11])
    proc.put(11, ppid=10, start=100_050, written=100, faults=10, children=[12])
    proc.put(12, ppid=11, start=100_050, written=500, faults=20)
    proc.look()
    proc.end(11)
    proc.end(12)
    proc.put(10, written=600, reaped=33)
    assert proc.look()[10].written_chars == 0


STEP = "/system.slice/slurmstepd.scope/job_7/step_0/user/task_0"
SESSION = "/user.slice/user-0.slice/session-1.scope"


@pytest.mark.parametrize(
    ("cgroup", "followed"),
    [
        pytest.param(STEP, {10, 50}, id="the job's own"),
        pytest.param(SESSION, {10}, id="a login session's, though Slurm's by its environment"),
        pytest.param("/", {10}, id="everybody's"),
    ],
)
def test_companions_of_a_holder_are_followed_where_the_control_group_is_the_jobs(proc, cgroup, followed):
    group = proc.folder.parent / "sys/fs/cgroup" / cgroup[1:]
    group.mkdir(parents=True)
    (group / "cgroup.procs").write_text("10\n50\n")
    (proc.folder.parent / "sys/fs/cgroup/cgroup.controllers").write_text("io\n")
    proc.put(10)
    proc.put(50)
    (proc.folder / "10/cgroup").write_text(f"0::{cgroup}\n")
    (proc.folder / "10/environ").write_bytes(b"SLURM_JOB_ID=7")
    proc.look()
    deadline = time.monotonic() + 5
    while proc.evidence.job_of(10).key != "slurm:7":
        assert time.monotonic() < deadline
        proc.look(seconds=0)
    proc.look(seconds=10)
    assert set(proc.look(seconds=10)) == followed


def test_no_more_processes_are_followed_than_the_limit_and_the_job_with_more_is_told(proc, monkeypatch):
    monkeypatch.setattr(follow, "MOST_PROCESSES", 4)
    proc.put(10, children=range(20, 30))
    for pid in range(20, 30):
        proc.put(pid, ppid=10)
    assert len(proc.look()) == 4
    assert proc.evidence.left_out == {proc.evidence.job_of(10).key}


def test_waiting_for_blocks_is_told_only_where_the_kernel_counts_it(proc):
    proc.put(10, delay=50)
    proc.look()
    proc.put(10, delay=90)
    assert proc.look()[10].blocked_seconds is None
    (proc.folder / "sys/kernel").mkdir(parents=True)
    (proc.folder / "sys/kernel/task_delayacct").write_text("1\n")
    proc.look(seconds=61)
    proc.put(10, delay=140)
    assert proc.look()[10].blocked_seconds == 0.5


def test_what_cannot_be_read_costs_that_process_only(proc):
    proc.put(10)
    proc.put(20)
    proc.look(10, 20)
    (proc.folder / "20/stat").write_text("nonsense")
    (proc.folder / "10/io").write_text("rchar: 1\n")
    proc.put(30)
    assert set(proc.look(10, 20, 30)) == {30}


def test_a_role_fades_when_the_work_stops():
    process = Process(11, 10, 0.0)
    process._written = 100 * MB
    roles = [process.role(Work(None, None, None), 1.0)[0] for _ in range(60)]
    assert roles[0] == "writer"
    assert roles[-1] == "other"


DUMPING = 0x400640


def test_a_core_file_is_not_taken_for_work_not_even_the_part_that_only_its_parent_inherits(proc):
    proc.put(10, children=[11])
    proc.look()
    proc.put(11, ppid=10, start=100_150, written=30)
    assert proc.look()[11].wrote == 30
    proc.put(11, ppid=10, start=100_150, written=9_000, faults=90, flags=DUMPING)
    seen = proc.look()
    assert (seen[11].wrote, seen[11].made_bytes) == (0, 0)
    proc.end(11)
    proc.put(10, written=20_000, reaped=95)
    assert proc.look()[10].wrote == 0
    proc.put(10, written=20_500, reaped=95)
    assert proc.look()[10].wrote == 500


def test_the_holders_own_core_file_is_no_work_either(proc):
    proc.put(10)
    proc.look()
    proc.put(10, written=70_000, flags=DUMPING)
    assert proc.look()[10].wrote == 0


@pytest.mark.parametrize(
    ("looks", "made"),
    [
        # (read, written) so far, at each look; the first window starts from nothing
        pytest.param([(0, 400), (0, 900)], [400, 500], id="all new"),
        pytest.param([(300, 300), (700, 700)], [0, 0], id="a copy, piece by piece"),
        pytest.param([(0, 400), (400, 800)], [400, 0], id="staged, then moved"),
        pytest.param([(0, 400), (400, 500)], [400, -300], id="a call that tells at its end what it has read"),
        pytest.param([(900, 5), (900, 405)], [0, 400], id="training data before a checkpoint"),
        pytest.param([(0, 400), (600, 400), (600, 800)], [400, 0, 400], id="training data between two"),
    ],
)
def test_a_copy_makes_nothing(proc, looks, made):
    proc.put(10)
    proc.look()
    told = []
    for read, written in looks:
        proc.put(10, read=read, written=written)
        told.append(proc.look()[10].made_bytes)
    assert told == made


@pytest.mark.parametrize(
    ("looks", "wrote"),
    [
        # (system calls, page cache) so far, at each look
        pytest.param([(0, 300), (400, 400)], [300, 100], id="one call over two looks"),
        pytest.param([(0, 100), (0, 250), (400, 400)], [100, 150, 150], id="one call over three looks"),
        pytest.param([(400, 400), (800, 800)], [400, 400], id="many calls"),
        pytest.param([(0, 300), (0, 300), (200, 300)], [300, 0, 200], id="mmap, a pause, an overwrite"),
        pytest.param([(500, 0), (900, 0)], [500, 400], id="tmpfs"),
    ],
)
def test_a_call_that_lasts_is_not_counted_by_its_pages_and_again_at_its_end(looks, wrote):
    process = Process(10, 10, 0.0)
    stat = Stat("python3", "R", 1, 0, 0, 0, 1, 0, 0)
    process.advance(stat, Io())
    told = [process.advance(stat, Io(written_chars=chars, write_bytes=pages)).io for chars, pages in looks]
    assert [max(io.written_chars, io.write_bytes) for io in told] == wrote
