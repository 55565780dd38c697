"""How long the rules take to evaluate for many hosts with 8 GPUs on one Prometheus.

    PYTHONPATH=tests python tests/bench/rules.py [HOSTS [SECONDS]]

Writes just the series that the rules read, of a recorded h100x8 host, a sample every 15 s: an hour of those whose past
they read, minutes of the others. Then loads the rules, evaluates them every SECONDS, and reads what Prometheus says of
each group and what it used. Of days and weeks there is only that hour, so the groups named days grow slower than this.
Needs prometheus. 1,000 hosts are 1.6 million series: 20 GiB, and four minutes to write, so that 100 are the default.
"""

from __future__ import annotations

import os
import re
import signal
import statistics
import struct
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path

import promql_parser as tree
from support.boards import FOLDER
from support.fleet import RECORDED
from support.promql import names_in, walk
from support.rules import recordings, rules

sys.path.insert(0, os.path.join(FOLDER, "demo"))

import stack

STEP, HOUR = 15, 3600  # of the samples
AHEAD = 1200  # seconds that the samples reach into the future: writing and measuring are done by then
EVALUATIONS = 4
HOSTS_A_JOB = 16
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_SERIES = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)$")
_GROUP = re.compile(r'prometheus_rule_group_(\w+)\{rule_group="[^"]*;([\w-]+)"\} (\S+)')


def varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)


def field(number: int, content: bytes) -> bytes:
    """A protobuf field of bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def label(name: str, value: str) -> bytes:
    return field(1, field(1, name.encode()) + field(2, value.encode()))


def snappy(content: bytes) -> bytes:
    """As snappy's block format lets one write it uncompressed: the length, and one literal."""
    return varint(len(content)) + b"\xfc" + struct.pack("<I", len(content) - 1) + content


def host_series() -> Iterable[tuple[str, dict[str, str], float]]:
    """What the rules read of one host."""
    wanted = set().union(*(names_in(rule.expr) for rule in rules())) - {rule.name for rule in recordings()}
    yield "up", {}, 1.0
    for line in RECORDED.read_text().splitlines():
        found = _SERIES.match(line)
        if found and found[1] in wanted:
            yield found[1], dict(_LABEL.findall(found[2] or "")), 1.0 if found[3] == "*" else float(found[3])


def with_a_past() -> set[str]:
    """The metrics of which rules read a range."""
    found: set[str] = set()

    def see(node: tree.Expr) -> None:
        if isinstance(node, (tree.MatrixSelector, tree.SubqueryExpr)):
            found.update(names_in(str(node)))
        elif isinstance(node, tree.VectorSelector) and node.offset:
            found.add(node.name)

    for rule in rules():
        walk(rule.expr, see)
    return found


def samples(name: str, value: float, times: range) -> bytes:
    """Counters rise by a thousandth a scrape."""
    rise = value / 1000 if name.endswith("_total") else 0.0
    return b"".join(
        field(2, b"\x09" + struct.pack("<d", value + rise * number) + b"\x10" + varint(at * 1000))
        for number, at in enumerate(times)
    )


def write(url: str, hosts: int, begin: int) -> int:
    """Every host's samples, a request each; how many series there are."""
    whole = range(begin, begin + HOUR + AHEAD, STEP)
    ranged = with_a_past()
    recorded = [
        (name, labels, samples(name, value, whole if name in ranged else whole[-AHEAD // STEP :]))
        for name, labels, value in host_series()
    ]
    for number in range(hosts):
        own = {"cluster": "a", "instance": f"host-{number:04}", "job": "gpuhost-demo"}
        body = bytearray()
        for name, labels, points in recorded:
            named = {"__name__": name, **own}
            for key, value in labels.items():
                work = f"slurm:{number // HOSTS_A_JOB}"
                named[f"exported_{key}" if key in own else key] = work if key == "job" else value
            body += field(1, b"".join(label(*each) for each in sorted(named.items())) + points)
        request = urllib.request.Request(
            f"{url}/api/v1/write",
            snappy(bytes(body)),
            {"Content-Encoding": "snappy", "X-Prometheus-Remote-Write-Version": "0.1.0"},
        )
        urllib.request.urlopen(request, timeout=120).close()
    return hosts * len(recorded)


def groups(url: str) -> dict[str, dict[str, float]]:
    """What Prometheus says of each group of rules."""
    found: dict[str, dict[str, float]] = {}
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
        for what, group, value in _GROUP.findall(answer.read().decode()):
            found.setdefault(group, {})[what] = float(value)
    return found


def used(pid: int) -> float:
    """Seconds of CPU."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured(url: str, pid: int, every: int, until: float) -> tuple[dict[str, tuple[float, float, float]], float]:
    """Group -> its interval, the median and the longest of its evaluations; and the CPU seconds in one `every`."""
    seen: dict[str, dict[float, float]] = {}
    intervals: dict[str, float] = {}
    begun = None
    while time.time() < until:
        for name, told in groups(url).items():
            intervals[name] = told["interval_seconds"]
            if told["iterations_total"]:
                seen.setdefault(name, {})[told["last_evaluation_timestamp_seconds"]] = told["last_duration_seconds"]
        if begun is None and intervals and len(seen) == len(intervals):
            begun, before = time.monotonic(), used(pid)
        if begun is not None and time.monotonic() - begun >= EVALUATIONS * every:
            cpu = (used(pid) - before) / (time.monotonic() - begun) * every
            return {
                name: (intervals[name], statistics.median(found.values()), max(found.values()))
                for name, found in seen.items()
            }, cpu
        time.sleep(1)
    raise SystemExit("the samples end before every group was evaluated: fewer hosts, or a larger AHEAD")


def main() -> int:
    given = [int(each) for each in sys.argv[1:]]
    hosts, every = given + [100, STEP][len(given) :]
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        processes = stack.Processes(Path(name))
        server = stack.Prometheus(processes, {}, rules=(), every=every)
        # The head of the database takes samples of the last half block only.
        options = ("--web.enable-remote-write-receiver", "--storage.tsdb.min-block-duration=6h")
        server.start(options=options)
        try:
            began = time.monotonic()
            begin = int(time.time()) // STEP * STEP - HOUR
            series = write(server.url, hosts, begin)
            print(f"{hosts} hosts, {series} series, written in {time.monotonic() - began:.0f} s", flush=True)
            file = processes.folder / "prometheus.yml"
            file.write_text(
                file.read_text().replace("rule_files: []", f"rule_files: {[str(each) for each in stack.RULES]}")
            )
            (process,) = (process for _, process in processes.running)
            process.send_signal(signal.SIGHUP)
            found, cpu = measured(server.url, process.pid, every, begin + HOUR + AHEAD)
            status = Path(f"/proc/{process.pid}/status").read_text()
        finally:
            processes.stop()
    for group, (interval, median, longest) in sorted(found.items()):
        print(f"{group:26} every {interval:4.0f} s  median {median:7.3f} s  longest {longest:7.3f} s")
    resident = int(status.partition("VmRSS:")[2].split()[0]) / 2**20
    print(f"all groups: {cpu:.2f} s of CPU in each {every} s; {resident:.1f} GiB resident")
    late = [group for group, (interval, _, longest) in found.items() if longest > interval]
    print(f"late: {', '.join(late) or 'none'}")
    return int(bool(late))


if __name__ == "__main__":
    sys.exit(main())
