"""The ledger in the real process, on simulated hosts, over real HTTP."""

from __future__ import annotations

import json
import re
import time

import pytest
from support.daemon import Daemon, select, value
from support.simulated import arguments

TIME = "gpuhost_gpu_time_seconds_total"
GPUS = {str(index) for index in range(8)}


@pytest.fixture
def start(tmp_path):
    running = []

    def run(scenario, *more, elapsed=0.0, config=""):
        file = tmp_path / "exporter.toml"
        file.write_text(config)
        running.append(
            Daemon(
                tmp_path,
                f"--config.file={file}",
                "--collector.ledger",
                *arguments(tmp_path, "h100x8", scenario, elapsed=elapsed),
                *more,
            )
        )
        return running[-1]

    yield run
    for daemon in running:
        daemon.stop()


def booked(series, gpu, account):
    return value(series, TIME, gpu=gpu, account=account) or 0.0


def whole(series, gpu):
    return sum(select(series, TIME, gpu=gpu).values())


def test_a_checkpoint_is_booked_measured_and_reported(start, tmp_path):
    kept = f"--storage.path={tmp_path / 'kept'}"
    daemon = start("checkpoint-sync", kept, elapsed=20.0, config="[price]\ngpu-hour = 3600\n")
    name = "gpuhost_checkpoint_duration_seconds"
    last = "gpuhost_checkpoint_last_duration_seconds"
    series = daemon.wait_until(lambda seen: select(seen, last, mode="sync", mount="/data"), 40)
    for gpu in GPUS:
        assert booked(series, gpu, "checkpoint") == pytest.approx(6.8, abs=1.0)
        assert booked(series, gpu, "unknown") < 1.6, "from the first sight of it to its first reading"
        assert booked(series, gpu, "compute") > 0
        assert value(series, "gpuhost_ledger_pending_seconds", gpu=gpu) <= 5
        assert value(series, "gpuhost_price_dollars_per_gpu_hour", gpu=gpu) == 3600
    assert value(series, last, mode="sync") == pytest.approx(7, abs=1)
    assert value(series, "gpuhost_checkpoint_last_bytes", mode="sync") == pytest.approx(140e9, rel=0.15)
    for first in (f"{name}_count", f"{name}_sum", "gpuhost_checkpoint_gpu_seconds_lost_total"):
        assert value(series, first, mode="sync") == 0, "increase() must see it rise from there"
    assert not select(series, f"{name}_count", mode="async")
    assert {dict(key)["processes"] for key in select(series, "gpuhost_ledger_evidence_info")} == {"process"}
    # And without Prometheus, an hour of a GPU at a dollar a second:
    deadline = time.monotonic() + 40
    while (lost := _reported(daemon, kept)).get("checkpoint", 0) < 8 * 6:
        assert time.monotonic() < deadline, daemon.log()
        time.sleep(0.5)
    assert lost["checkpoint"] == pytest.approx(8 * 6.8, abs=8)
    page = daemon.command("report", "--since", "1h", kept).stdout
    assert re.search(r"GPU 3 lost [67]\.\d s to checkpoint, \$[67]\.\d\d", page), page


def _reported(daemon, kept):
    """Dollars by account of all GPUs."""
    answer = daemon.command("report", "--json", kept)
    return json.loads(answer.stdout)["all"]["dollars"] if answer.returncode == 0 else {}


def test_booked_and_pending_are_all_the_time_that_passed(start):
    daemon = start("data-starved")
    first = daemon.wait_until(lambda seen: whole(seen, "0") > 2, 20)
    begin = time.monotonic()
    time.sleep(10)
    last = daemon.series()
    passed = time.monotonic() - begin
    for gpu in GPUS:
        assert whole(last, gpu) - whole(first, gpu) == pytest.approx(passed, abs=1.6)
        for account in ("data", "compute"):
            assert booked(last, gpu, account) > booked(first, gpu, account)
        assert booked(last, gpu, "checkpoint") == 0


def test_a_hang_names_the_gpu_that_did_not_come(start):
    daemon = start("gpu-lost", elapsed=5.0)  # it is lost at 20 s, and must have been seen in the job before
    culprit = "gpuhost_gpu_culprit"
    series = daemon.wait_until(lambda seen: value(seen, culprit, gpu="3", kind="not_joined") == 1, 120)
    assert sum(select(series, culprit).values()) == 1
    assert select(series, "gpuhost_gpu_culprit_info", gpu="3", evidence="lost")
    assert value(series, "gpuhost_gpu_phase", gpu="3", phase="lost") == 1
    assert booked(series, "3", "lost") > 20
    for gpu in GPUS - {"3"}:
        assert booked(series, gpu, "waiting") > 20
        assert booked(series, gpu, "lost") == 0
        assert value(series, "gpuhost_gpu_phase", gpu=gpu, phase="waiting") == 1
        assert value(series, "gpuhost_gpu_hang_seconds", gpu=gpu) >= 30
