"""What keeps a job from running: the files, the probe, and OOM kills booked to the GPUs that they cost."""

from __future__ import annotations

import contextlib
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.gpus import FakeNvml, gpu, reading
from trees import host_at, plant, values

from gpuhost_exporter.collectors.contention import ContentionCollector
from gpuhost_exporter.errors import Malformed, SourceError, Unsupported
from gpuhost_exporter.sources import contention
from gpuhost_exporter.sources.contention import Wait, WaitProbe, Waits
from gpuhost_exporter.sources.files import Root
from gpuhost_exporter.sources.kmsg import LoggedKill
from gpuhost_exporter.sources.nvml.readings import Activity, Process

STAT = "cpu  8812 0 1102 3 4 5 6 250 7 8\ncpu0 1 1 1 1 1 1 1 1 1 1\nbtime 1722470400\n"
VMSTAT = "nr_free_pages 5\noom_kill 3\npgfault 9\n"
JOB = "/system.slice/slurmstepd.scope/job_90017/step_0/user/task_0"


def test_stolen_time_is_the_eighth_number_in_seconds(tmp_path):
    root = plant(tmp_path, {"proc/stat": STAT})
    assert contention.steal_seconds(root) == 250 / os.sysconf("SC_CLK_TCK")


def test_a_kernel_that_counts_no_stolen_time_tells_none():
    assert contention.parse_steal("cpu  1 2 3 4\n") is None


def test_oom_kills_of_the_host_are_counted_where_the_kernel_does(tmp_path):
    assert contention.oom_kills(plant(tmp_path, {"proc/vmstat": VMSTAT})) == 3
    assert contention.oom_kills(plant(tmp_path / "old", {"proc/vmstat": "nr_free_pages 5\n"})) is None


@pytest.mark.parametrize(
    ("text", "group"),
    [
        (f"0::{JOB}\n", JOB),
        ("12:cpu:/a\n9:memory:/slurm/uid_1001/job_90017\n0::/system.slice\n", "/slurm/uid_1001/job_90017"),
        ("4:cpuset,memory:/both\n", "/both"),
        ("0::/\n", None),
        ("0::/../outside\n", None),
        ("9:memory:/\n0::/x\n", None),
        ("garbage", None),
        ("", None),
    ],
    ids=["version 2", "version 1", "joint hierarchy", "root", "outside", "root of version 1", "garbage", "ended"],
)
def test_the_group_that_accounts_a_process_memory(text, group):
    assert contention.parse_memory_group(text) == group


@given(st.text())
def test_any_text_parses_or_is_malformed(text):
    contention.parse_memory_group(text)
    for parse in (contention.parse_steal, contention.parse_schedstat):
        with contextlib.suppress(Malformed):
            parse(text)


def test_a_wait_is_the_mean_of_what_came_since_the_last_look(tmp_path):
    file = tmp_path / "proc/thread-self/schedstat"
    probe = WaitProbe(plant(tmp_path, {"proc/thread-self/schedstat": "5000 1000 2\n"}))
    assert probe.look() is None
    file.write_text("9000 41000 4\n")
    assert probe.look() == Wait(pytest.approx(2e-5), 2)
    assert probe.look() is None


def test_a_kernel_that_keeps_no_schedule_is_told_of_as_such(tmp_path):
    with pytest.raises(Unsupported):
        WaitProbe(plant(tmp_path, {"proc/thread-self/schedstat": "0 0 0\n"})).look()


def test_this_kernel_counts_each_time_that_a_sleeping_thread_was_due():
    probe = WaitProbe(Root())
    try:
        probe.look()
    except SourceError:
        pytest.skip("this kernel keeps no schedule of threads")
    waited, until = 0.0, time.monotonic() + 20.0
    while waited == 0.0 and time.monotonic() < until:  # an idle machine wakes some threads in no time at all
        for _ in range(5):
            time.sleep(0.001)
        wait = probe.look()
        assert wait is not None
        assert wait.times >= 5
        waited += wait.seconds
    assert 0 < waited < 1


def test_waits_are_handed_over_once_and_bounded():
    waits = Waits()
    waits.put((Wait(1e-5, 1),) * 7000)
    assert len(waits.take()) == 6000
    assert waits.take() == ()
    assert waits.state() == ("ok", "")
    waits.fail("unsupported", "no")
    assert waits.state() == ("unsupported", "no")


def host(folder, *gpus, log="ok"):
    made = host_at(folder, {"proc/stat": STAT, "proc/vmstat": VMSTAT, "proc/4711/cgroup": f"0::{JOB}\n"})
    made.nvml = FakeNvml(*gpus)
    if log == "ok":
        made.kernel_log.put(())
    return made


def holding(made, **pids):
    activities = tuple(
        reading(
            Activity, uuid=uuid.replace("_", "-"), since=0.0, at=1.0, processes=tuple(Process(pid, 1) for pid in of)
        )
        for uuid, of in pids.items()
    )
    made.board.post("activity", activities, made.clock.now() + 30)


def kill(pid, group=None, sequence=1, wall=1001.0):
    return LoggedKill("boot", sequence, wall, pid, group)


def test_time_waits_and_kills_of_the_host_are_told(tmp_path):
    made = host(tmp_path)
    made.waits.put((Wait(2e-5, 3), Wait(0.002, 1)))
    found = values(ContentionCollector(made).poll(0.0))
    assert found["cpu_steal_seconds_total",] == 250 / os.sysconf("SC_CLK_TCK")
    assert found["oom_kills_total",] == 3
    assert [found["cpu_run_queue_delay_seconds", bound] for bound in ("1e-05", "3e-05", "0.001", "0.003", "+Inf")] == [
        0, 3, 3, 4, 4,
    ]  # fmt: skip
    assert found["cpu_run_queue_delay_seconds", "sum"] == pytest.approx(0.00206)


def test_without_the_probe_there_is_no_delay_and_its_absence_is_no_fault_where_the_kernel_lacks_it(tmp_path):
    made = host(tmp_path)
    made.waits.fail("unsupported", "this kernel does not count")
    collector = ContentionCollector(made)
    assert not [name for name, *_ in values(collector.poll(0.0)) if name.startswith("cpu_run_queue")]
    assert collector.errors == {}
    made.waits.fail("unavailable", "the privileged reader ended")
    list(collector.poll(10.0))
    assert collector.errors == {"unavailable": 1}


@pytest.mark.parametrize(
    ("killed", "counts"),
    [
        (kill(4711), (1, 0)),
        (kill(9999, JOB), (1, 0)),
        (kill(9999, "/system.slice/sshd.service"), (0, 0)),
        (kill(9999), (0, 0)),
        (kill(4711, wall=900.0), (0, 0)),
    ],
    ids=["the rank", "its data loader", "somebody else", "no group told", "before the exporter started"],
)
def test_a_kill_counts_at_the_gpu_whose_job_it_hit(tmp_path, killed, counts):
    made = host(tmp_path, gpu(0), gpu(1))
    collector = ContentionCollector(made)
    holding(made, GPU_0=[4711], GPU_1=[4712])
    assert values(collector.poll(0.0))["gpu_job_oom_kills_total", "0", "GPU-0"] == 0
    made.kernel_log.put((killed,))
    found = values(collector.poll(10.0))
    assert tuple(found["gpu_job_oom_kills_total", str(n), f"GPU-{n}"] for n in range(2)) == counts


def test_both_lines_of_one_kill_count_once_though_the_process_is_gone(tmp_path):
    made = host(tmp_path, gpu(0))
    collector = ContentionCollector(made)
    holding(made, GPU_0=[4711])
    list(collector.poll(0.0))
    holding(made, GPU_0=[])
    made.kernel_log.put((kill(4711, JOB, 1), kill(4711, None, 2)))
    assert values(collector.poll(10.0))["gpu_job_oom_kills_total", "0", "GPU-0"] == 1
    made.kernel_log.put((kill(4711, JOB, 3, wall=1200.0),))
    assert values(collector.poll(200.0))["gpu_job_oom_kills_total", "0", "GPU-0"] == 1, "nobody's any more"


def test_what_the_kernel_log_does_not_show_is_not_zero(tmp_path):
    made = host(tmp_path, gpu(0), log="denied")
    made.kernel_log.fail("denied", "no")
    assert not [name for name, *_ in values(ContentionCollector(made).poll(0.0)) if name.startswith("gpu_job")]


def test_garbage_in_one_file_costs_what_comes_from_it(tmp_path):
    made = host(tmp_path)
    (tmp_path / "proc/stat").write_text("\0")
    collector = ContentionCollector(made)
    assert set(values(collector.poll(0.0))) == {("oom_kills_total",)}
    assert collector.errors == {"malformed": 1}
