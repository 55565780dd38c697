"""A day of a host that trains as it should, and of one that does nothing: no rule fires in a replay of that day.

The day is made by the real collectors below a clock that is moved by hand, looked at every half minute, scraped every
minute, put into VictoriaMetrics and replayed with vmalert.
"""

from __future__ import annotations

import concurrent.futures
import functools
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request

import pytest
from support.boards import FOLDER
from support.promql import names_in
from support.rules import RULE_FILES, recordings, rules

sys.path.insert(0, os.path.join(FOLDER, "demo"))

import stack
from history import record

NEEDED = ("victoria-metrics", "vmalert")
SCENARIOS = ("steady", "idle")
DAY, EVERY, STEP = 86400, 60, 30
BEGIN = 1_700_000_000 // EVERY * EVERY
# It is left out of what is replayed: a host that is known for ten minutes only.
PROBE = "GpuhostGPULost"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not all(shutil.which(name) for name in NEEDED), reason="a day is NOT replayed: apt-get install victoria-metrics"
    ),
]


def _names():
    recorded = {rule.name for rule in recordings()}
    return frozenset(set().union(*(names_in(rule.expr) for rule in rules())) - recorded)


def _day(scenario, names):
    """Lines for import: name, labels, value, milliseconds."""
    scrapes = record(
        [(scenario, 60.0)], host="h100x8", wall=float(BEGIN), every=EVERY, step=STEP, end=DAY, names=names
    )
    found = []
    for second, text in scrapes:
        up = 'up{} 1\n'
        found.append("".join(stack.with_target(up + text, _target(scenario), f" {(BEGIN + int(second)) * 1000}\n")))
    return "".join(found)


def _target(scenario):
    return f'cluster="demo",instance="{scenario}",job="gpuhost-demo"'


class Store:
    def __init__(self, processes):
        self.url = f"http://127.0.0.1:{stack.free_port()}"
        processes.start(
            "victoria-metrics",
            [
                "victoria-metrics",
                f"-storageDataPath={processes.folder / 'data'}",
                f"-httpListenAddr={self.url.removeprefix('http://')}",
                "-retentionPeriod=100y",
                "-search.disableCache",
            ],
        )
        stack.answers(f"{self.url}/health", processes, "victoria-metrics")

    def put(self, lines):
        urllib.request.urlopen(f"{self.url}/api/v1/import/prometheus", lines.encode(), timeout=300).close()

    def flush(self):
        urllib.request.urlopen(f"{self.url}/internal/force_flush", timeout=60).close()

    def ask(self, query):
        """Series of an instant query at the end of the day."""
        text = urllib.parse.urlencode({"query": query, "time": BEGIN + DAY})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{text}", timeout=120) as answer:
            return json.load(answer)["data"]["result"]


def _replay(store, files):
    done = subprocess.run(
        [
            "vmalert",
            *(f"-rule={file}" for file in files),
            f"-datasource.url={store.url}",
            f"-remoteWrite.url={store.url}",
            f"-evaluationInterval={EVERY}s",
            f"-replay.timeFrom={BEGIN}",
            f"-replay.timeTo={BEGIN + DAY - EVERY}",
            "-replay.disableProgressBar",
            "-httpListenAddr=127.0.0.1:0",
            "-external.url=http://localhost",
        ],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    store.flush()


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    processes = stack.Processes(tmp_path_factory.mktemp("day"))
    store = Store(processes)
    try:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(len(SCENARIOS), context) as pool:
            for lines in pool.map(functools.partial(_day, names=_names()), SCENARIOS):
                store.put(lines)
        store.flush()
        recording = [file for file in RULE_FILES if "recording-host" in file]
        _replay(store, recording)
        _replay(store, [file for file in RULE_FILES if file not in recording])
        yield store
    finally:
        processes.stop()
