"""`make demo` as somebody runs it: everything comes up, every host is seen, and whatever ends it leaves nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from support.boards import FOLDER

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(shutil.which("promtool") is None, reason="apt-get install prometheus"),
]
HOSTS = {f"gpu-host-{number}" for number in range(1, 9)}
DOLLARS = 24.0  # what a host of eight GPUs costs in an hour
# The walk through every scenario is made first, which takes minutes on a machine that does other things too.
LIMIT = 900.0


def until(seen, seconds, demo):
    deadline = time.monotonic() + seconds
    while not (found := seen()):
        assert demo.poll() is None, "it ended"
        assert time.monotonic() < deadline, "not in time"
        time.sleep(1.0)
    return found


def ask(url, expression):
    query = urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(f"{url}/api/v1/query?{query}", timeout=30) as answer:
        return [(each["metric"], float(each["value"][1])) for each in json.load(answer)["data"]["result"]]


def by_host(url, expression):
    return {labels["instance"]: value for labels, value in ask(url, expression)}


def belongings(folder):
    """Command lines of what runs out of the demo's folder, or is the demo."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        if str(folder) in words:
            found.append(words)
    return found


@contextmanager
def started(folder, *arguments, **variables):
    """The demo and what it says. What it starts has its temporary files in `folder`."""
    environment = {**os.environ, "TMPDIR": str(folder), **variables}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    said = folder.with_name("said")
    folder.mkdir()
    with said.open("wb") as out:
        demo = subprocess.Popen(
            # A shell that runs the tests in the background has them ignore what Ctrl-C sends.
            ["env", "--default-signal=INT", sys.executable, f"{FOLDER}/demo/demo.py", *arguments],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        yield demo, said
    finally:
        demo.terminate()  # where a test has failed: what it started has sessions of its own
        demo.wait(120)


def ended(demo, said, first, second):
    """Asked to, and again while it does so."""
    demo.send_signal(first)
    time.sleep(0.2)
    demo.send_signal(second)
    demo.wait(120)
    text = said.read_text()
    # The second may come when all is done and Python itself is ending.
    assert demo.returncode in (0, -second), text
    assert "Traceback" not in text
    return text


def test_it_shows_every_host_and_leaves_nothing(tmp_path):
    ready, folder = tmp_path / "ready", tmp_path / "tmp"
    # The walk is kept where demos before have left it.
    with started(folder, "--ready-file", str(ready)) as (demo, said):
        url = until(lambda: ready.exists() and ready.read_text(), LIMIT, demo)
        assert len(belongings(folder)) >= len(HOSTS) + 1  # Prometheus; what else depends on what is installed
        looked_at(url, demo)
        text = ended(demo, said, signal.SIGHUP, signal.SIGINT)
    assert set(re.findall(r"gpu-host-\d+", text)) == HOSTS
    assert belongings(folder) == []
    assert list(folder.iterdir()) == []
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/-/ready", timeout=5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_ended_while_it_makes_the_history_it_leaves_nothing(tmp_path, number):
    folder, cache = tmp_path / "tmp", tmp_path / "cache"
    with started(folder, XDG_CACHE_HOME=str(cache)) as (demo, said):
        parents = (Path("/dev/shm"), folder)

        def trees():
            return [tree for each in parents for tree in each.glob(f"gpuhost-demo-{demo.pid}-*/*/root")]

        until(trees, 120, demo)
        workers = psutil.Process(demo.pid).children(recursive=True)
        ended(demo, said, number, signal.SIGINT)
        left = [each for parent in parents for each in parent.glob(f"gpuhost-demo-{demo.pid}-*")]
    assert workers
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    assert left == []
    assert list(folder.iterdir()) == []
    assert not cache.exists()


def looked_at(url, demo):
    until(lambda: by_host(url, "up{job='gpuhost-demo'} == 1").keys() == HOSTS, 120, demo)
    # Live, an hour ago, and recorded by the rules from both.
    for expression in (
        "gpuhost_simulated == 1",
        "gpuhost_exporter_build_info offset 50m",
        "host:gpuhost_utilization:avg5m",
        "host:gpuhost_utilization:avg5m offset 50m",
        "last_over_time(host:gpuhost_worth_dedicated:bool{rule='utilization'}[10m])",
        "last_over_time(host:gpuhost_utilization:avg30d[10m])",
        "sum by (instance) (last_over_time(host:gpuhost_cost_dollars:sum1d[10m]))",
        # What else than the simulation has to be there for.
        "max by (instance) (gpuhost_fabric_round_trip_median_seconds{transport='rdma'})",
        "max by (instance) (gpuhost_fabric_round_trip_drift_ratio offset 50m)",
        "rate(gpuhost_exporter_render_seconds_total[5m] offset 50m) > 0",
        "min by (instance) (device:gpuhost_verify:ratio_sisters) > 0.8",
    ):
        until(lambda expression=expression: by_host(url, expression).keys() == HOSTS, 400, demo)
    until(lambda: ask(url, "last_over_time(endpoint:gpuhost_worth_dedicated:bool[10m]) == 1"), 400, demo)
    # Live, out of what another rule records every few minutes.
    until(lambda: ask(url, "sum_over_time(fleet:gpuhost_cost_dollars:sum1d[30s]) > 0"), 120, demo)
    with urllib.request.urlopen(f"{url}/api/v1/rules", timeout=30) as answer:
        groups = json.load(answer)["data"]["groups"]
    broken = [rule["name"] for group in groups for rule in group["rules"] if rule["health"] == "err"]
    assert groups
    assert broken == []
    # History and what the hosts tell live are one hour: no minute of it is paid twice.
    until(lambda: by_host(url, "count_over_time(up{job='gpuhost-demo'}[5m]) >= 4").keys() == HOSTS, 200, demo)
    hour = "sum by (instance) (host:gpuhost_cost_dollars:increase1h)"
    cost = until(lambda: len(found := by_host(url, hour)) == len(HOSTS) and found, 120, demo)
    assert all(0.9 * DOLLARS < dollars < 1.01 * DOLLARS for dollars in cost.values()), cost
    worst = by_host(url, f"max_over_time({hour}[50m:30s])")
    assert worst.keys() == HOSTS
    assert all(dollars < 1.01 * DOLLARS for dollars in worst.values()), worst
