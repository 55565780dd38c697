"""How long the panels of the Fleet page take at 1,000 hosts with 8 GPUs on one Prometheus.

    PYTHONPATH=tests python tests/bench/fleet.py [HOSTS]

Puts in an hour of just the series that the page reads, made up and not simulated, and asks every query of the page
three times; prints the slowest median. Needs prometheus and promtool; about two minutes and 2 GiB for 1,000 hosts.
"""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from support.boards import FOLDER, queries

sys.path.insert(0, os.path.join(FOLDER, "demo"))

import stack

GPUS, HOUR, STEP = 8, 3600, 60
END = 1.7e9
LIMIT_SECONDS = 1.0
ACCOUNTS = ("compute", "communication", "waiting", "checkpoint", "data", "host", "held_idle", "unallocated", "lost")
RANGE_POINTS = 240  # an hour, a point every 15 s, as Grafana asks for at that width


def exposition(at: float) -> Iterator[str]:
    """What one host has of the page's series, as recorded or told."""
    wave = 0.5 + 0.5 * math.sin(at / 300)
    yield 'gpuhost_exporter_build_info{version="1",python="3"} 1'
    yield "gpuhost_target_checkpoint_share_ratio 0.1667"
    yield "up 1"
    yield f"gpuhost_gpus_expected {GPUS}"
    yield "host:gpuhost_utilization:avg5m %s" % (0.5 + 0.4 * wave)
    yield "host:gpuhost_nvlink_usable:min_ratio 1"
    yield "host:gpuhost_checkpoint_share:ratio_increase1h %s" % (0.05 * wave)
    yield "host:gpuhost_at_risk_dollars:sum %s" % (20 * wave)
    for account in ACCOUNTS:
        yield f'host:gpuhost_cost_dollars_per_hour:rate5m{{account="{account}"}} {24 / len(ACCOUNTS) * wave}'
        yield f'host:gpuhost_cost_dollars:increase1h{{account="{account}"}} {24 / len(ACCOUNTS) * wave}'
    for device in ("md0", "md127"):
        yield f'gpuhost_array_up{{device="{device}"}} 1'
    for gpu in range(GPUS):
        yield f'gpuhost_gpu_up{{gpu="{gpu}",uuid="GPU-{gpu}"}} 1'
        yield f'gpuhost_gpu_hang_seconds{{gpu="{gpu}",uuid="GPU-{gpu}"}} 0'
        yield f'gpuhost_rdma_port_up{{device="mlx5_{gpu}",port="1"}} 1'
        yield f'device:gpuhost_rdma_port_used:bool{{device="mlx5_{gpu}",port="1"}} 1'
    if wave > 0.9:
        yield 'ALERTS{alertname="GpuhostGPULost",alertstate="firing",severity="page",gpu="3"} 1'
        yield f'ALERTS_FOR_STATE{{alertname="GpuhostGPULost",severity="page",gpu="3"}} {at}'


def fleet(hosts: int, at: float) -> Iterator[str]:
    yield f"fleet:gpuhost_at_risk_dollars:sum {hosts * 20}"
    for account in ACCOUNTS:
        yield f'fleet:gpuhost_cost_dollars_per_hour:sum_rate5m{{account="{account}"}} {hosts * (1 + at % 7)}'
        yield f'fleet:gpuhost_cost_dollars:sum1d{{account="{account}"}} {hosts * 24}'


def samples(file: Path, hosts: int) -> int:
    times = [END - HOUR + second for second in range(0, HOUR + 1, STEP)]
    written = 0
    with file.open("w", encoding="utf-8") as out:
        for number in range(hosts):
            for at in times:
                for line in exposition(at + number * 37):
                    series, _, value = line.rpartition(" ")
                    name, _, labels = series.partition("{")
                    target = f'{{cluster="a",job="gpuhost",instance="host-{number:04}"' + (
                        "," + labels if labels else "}"
                    )
                    out.write(f"{name}{target} {value} {at:.0f}\n")
                    written += 1
        for at in times:
            for line in fleet(hosts, at):
                series, _, value = line.rpartition(" ")
                name, _, labels = series.partition("{")
                out.write(f'{name}{{cluster="a"' + ("," + labels if labels else "}") + f" {value} {at:.0f}\n")
        out.write("# EOF\n")
    return written


def asked(url: str, expression: str, *, instant: bool) -> tuple[float, int]:
    """Seconds, and series in the answer."""
    expression = re.sub(r"\$cluster", ".*", expression).replace("$__range", "1h").replace("$__rate_interval", "2m")
    fields = {"query": expression}
    if instant:
        path, fields = "/api/v1/query", {**fields, "time": str(END)}
    else:
        step = HOUR / RANGE_POINTS
        path, fields = "/api/v1/query_range", {**fields, "start": str(END - HOUR), "end": str(END), "step": str(step)}
    began = time.perf_counter()
    with urllib.request.urlopen(url + path, urllib.parse.urlencode(fields).encode(), timeout=60) as answer:
        found = json.load(answer)["data"]["result"]
    return time.perf_counter() - began, len(found)


def main() -> int:
    hosts = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        processes = stack.Processes(folder)
        server = stack.Prometheus(processes, {})
        written = samples(folder / "fleet.om", hosts)
        server.backfill(folder / "fleet.om")
        (folder / "fleet.om").unlink()
        server.start()
        try:
            slowest = 0.0
            for query in queries():
                if query.board == "fleet":
                    tries = [asked(server.url, query.expression, instant=query.instant) for _ in range(3)]
                    seconds = statistics.median(each for each, _ in tries)
                    slowest = max(slowest, seconds)
                    print(f"{seconds:7.3f} s {tries[0][1]:6} series  {query}")
        finally:
            processes.stop()
    print(f"{hosts} hosts, {written} samples: slowest query {slowest:.3f} s, limit {LIMIT_SECONDS} s")
    return int(slowest > LIMIT_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
