"""The real exporter beside real holders of simulated GPUs: what they mark, whose they are, what it tells as nobody."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from support.daemon import Daemon, select, value

import gpuhost_marker
from gpuhost_exporter.clock import SystemClock
from gpuhost_exporter.sim import control

NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--bounding-set=-all")
as_root = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="becomes another user: needs root and setpriv"
)
IDLE = {"graphics": 0.0, "sm": 0.0, "tensor": 0.0, "dram": 0.0, "nvlink": 0.0, "power": 0.1, "pcie_tx": 0.0}
NONE = {**IDLE, "processes": 0}
# Lines of "NAME SECONDS" on standard input are marked as checkpoints.
_TRAINING = """
import sys, time
import gpuhost_marker
for line in sys.stdin:
    name, seconds = line.split()
    with gpuhost_marker.checkpoint(name):
        time.sleep(float(seconds))
    print(name, flush=True)
"""


@pytest.fixture
def folder():
    """Short enough for a Unix socket, and anybody's to write."""
    path = Path(tempfile.mkdtemp(prefix="gpuhost-", dir="/var/tmp"))
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


class Training:
    def __init__(self, folder, **environment):
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TRAINING],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                "PYTHONPATH": os.path.dirname(gpuhost_marker.__file__),
                gpuhost_marker.VARIABLE: str(folder / "run/gpuhost-exporter/marker/socket"),
                **environment,
            },
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.communicate()

    def mark(self, name, seconds):
        self.process.stdin.write(f"{name} {seconds}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == name


def hold(path, pid, **levels):
    others = [control.GpuChange(index, (), NONE) for index in range(1, 8)]
    control.change(path, [control.GpuChange(0, (pid,), levels), *others], SystemClock())


@pytest.fixture
def start(folder):
    running = []

    def run(*arguments, **options):
        path = str(folder / "control.json")
        control.create(path, "h100x8", "steady", SystemClock(), real_roots=True)
        Path(path).chmod(0o666)
        running.append(
            Daemon(
                folder,
                "--collector.ledger",
                "--simulate=h100x8:steady",
                f"--simulate.control={path}",
                *arguments,
                **options,
            )
        )
        return running[-1], path

    yield run
    for daemon in running:
        daemon.stop()


def booked(series, account, gpu="0"):
    return value(series, "gpuhost_gpu_time_seconds_total", gpu=gpu, account=account) or 0.0


def test_a_script_marks_its_checkpoint_and_the_gpu_s_standstill_is_booked_to_it(start, folder):
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "llama", "SLURM_JOB_USER": "ada-l", "RANK": "0"}
    daemon, path = start()
    with Training(folder, **slurm) as training:
        hold(path, training.process.pid)
        daemon.wait_until(lambda seen: select(seen, "gpuhost_gpu_job_info", gpu="0", job="slurm:4711"), 20)
        time.sleep(11)  # start-up is over after 10 s of tensor work
        hold(path, training.process.pid, **IDLE)
        training.mark("step-500", 2.4)
        hold(path, training.process.pid)
        series = daemon.wait_until(lambda seen: select(seen, "gpuhost_checkpoint_last_duration_seconds"), 20)
    (seconds,) = select(series, "gpuhost_checkpoint_last_duration_seconds").values()
    assert seconds == pytest.approx(2.4, abs=0.1)
    assert booked(series, "checkpoint") == pytest.approx(2.4, abs=0.2)
    assert booked(series, "checkpoint", "1") == 0
    assert value(series, "gpuhost_checkpoint_marks_total", result="taken") == 2
    assert re.search(r"checkpoint step-500 of slurm:4711: 2\.[345] s", daemon.log())
    (info,) = select(series, "gpuhost_gpu_job_info")
    assert {"job": "slurm:4711", "name": "llama", "rank": "0", "user": ""}.items() <= dict(info).items()
    assert "ada-l" not in daemon.text()
    assert value(series, "gpuhost_gpu_jobs", gpu="0") == 1
    assert value(series, "gpuhost_gpu_jobs", gpu="1") == 0


def test_marks_are_heard_again_after_the_exporter_was_killed_and_started_anew(start, folder):
    daemon, _ = start()
    daemon.ready()
    daemon.process.kill()
    daemon.process.wait()
    with Training(folder) as training:
        training.mark("nobody-hears", 0.01)
        daemon, path = start()
        hold(path, training.process.pid)
        daemon.wait_until(lambda seen: select(seen, "gpuhost_gpu_job_info", gpu="0"), 20)
        training.mark("step-2", 0.5)
        series = daemon.wait_until(lambda seen: value(seen, "gpuhost_checkpoint_marks_total", result="taken") == 2, 10)
        assert value(series, "gpuhost_checkpoint_marks_total", result="malformed") == 0


@as_root
def test_an_ordinary_user_books_all_time_and_says_by_what_and_what_it_lacks(start, folder):
    """Another user's holder: its bytes are not told, so that data and checkpoints are judged by the host's."""
    with Training(folder, SLURM_JOB_ID="4711") as training:
        daemon, path = start(through=AS_NOBODY)
        hold(path, training.process.pid)
        daemon.wait_until(lambda seen: booked(seen, "compute") + booked(seen, "startup") > 5, 30)
        series = daemon.wait_until(lambda seen: booked(seen, "unallocated", "1") > 5, 30)
        evidence = {dict(key)["processes"] for key in select(series, "gpuhost_ledger_evidence_info", gpu="0")}
        assert evidence <= {"cgroup", "host"}
        assert evidence
        for gpu in ("0", "1"):
            told = select(series, "gpuhost_gpu_time_seconds_total", gpu=gpu)
            assert value(series, "gpuhost_ledger_pending_seconds", gpu=gpu) <= 5
            assert booked(series, "unknown", gpu) < 2
            assert sum(told.values()) > 5
        (info,) = select(series, "gpuhost_gpu_job_info")
        assert dict(info)["rank"] == "", "the environment is the owner's"
        training.mark("step-9", 0.1)
        daemon.wait_until(lambda seen: value(seen, "gpuhost_checkpoint_marks_total", result="taken") == 2, 10)


def test_simulated_gpus_on_real_roots_stand_beside_this_machine_s_own_filesystems(start):
    daemon, _ = start()
    series = daemon.wait_until(lambda seen: len(select(seen, "gpuhost_gpu_up")) == 8, 30)
    points = {dict(key)["mountpoint"] for key in select(series, "gpuhost_filesystem_free_bytes")}
    assert points
    assert "/data" not in points, "the simulated host's"
    assert "IndexError" not in daemon.log()
