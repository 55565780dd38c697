"""A day of simulated hosts in VictoriaMetrics, and rules replayed over it by vmalert.

The day is made by the real collectors below a clock that is moved by hand, looked at each half minute and scraped each
minute; it keeps the series that the rules read.
"""

from __future__ import annotations

import concurrent.futures
import functools
import json
import multiprocessing
import os
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from support.boards import FOLDER
from support.promql import names_in
from support.rules import load, recordings, rules

sys.path.insert(0, os.path.join(FOLDER, "demo"))

import stack
from history import record

PROGRAMS = ("victoria-metrics", "vmalert")
DAY, EVERY, STEP = 86400, 60, 30  # seconds
BEGIN = 1_700_000_040
HOST = "h100x8"


def _read() -> frozenset[str]:
    recorded = {rule.name for rule in recordings()}
    return frozenset(set().union(*(names_in(rule.expr) for rule in rules())) - recorded)


def lived(scenario: str, seconds: int) -> Iterator[list[str]]:
    """A scrape of it each minute: the series with their values."""
    target = f'cluster="demo",instance="{scenario}",job="gpuhost-demo"'
    walk = record([(scenario, 60.0)], host=HOST, wall=float(BEGIN), every=EVERY, step=STEP, end=seconds, names=_read())
    for _, text in walk:
        yield list(stack.with_target(f"up{{}} 1\n{text}", target, ""))


def _lived(scenario: str, seconds: int) -> str:
    """In Prometheus' text format, with times."""
    return "".join(
        f"{line} {1000 * (BEGIN + EVERY * minute)}\n"
        for minute, scrape in enumerate(lived(scenario, seconds))
        for line in scrape
    )


def _iso(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


class Days:
    """`scenarios`: a host of each, of its name, for so many seconds."""

    def __init__(self, processes: stack.Processes, scenarios: Sequence[str], seconds: int = DAY) -> None:
        self.end = BEGIN + seconds
        self._folder = processes.folder
        port = stack.free_port()
        self.url = f"http://127.0.0.1:{port}"
        processes.start(
            "victoria-metrics",
            [
                *("victoria-metrics", f"-storageDataPath={processes.folder / 'data'}"),
                *(f"-httpListenAddr=127.0.0.1:{port}", "-retentionPeriod=100y", "-search.disableCache"),
            ],
        )
        stack.answers(f"{self.url}/health", processes, "victoria-metrics")
        with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            for text in pool.map(functools.partial(_lived, seconds=seconds), scenarios):
                self._send("/api/v1/import/prometheus", text.encode())
        self._send("/internal/force_flush", b"")

    def _send(self, path: str, body: bytes) -> None:
        urllib.request.urlopen(self.url + path, body, timeout=300).close()

    def replay(self, files: Sequence[str]) -> None:
        """Evaluate the files' rules over the whole time; what they make is stored. vmalert asks nothing for annotations
        in a replay, and fails when they do: they are left out.
        """
        bare = []
        for path in files:
            document = load(path)
            for rule in (rule for group in document["groups"] for rule in group["rules"]):
                rule.pop("annotations", None)
            bare.append(self._folder / os.path.basename(path))
            bare[-1].write_text(yaml.safe_dump(document))
        command = [
            *("vmalert", f"-datasource.url={self.url}", f"-remoteWrite.url={self.url}", "-httpListenAddr=127.0.0.1:0"),
            *(f"-evaluationInterval={EVERY}s", f"-replay.timeFrom={_iso(BEGIN)}", f"-replay.timeTo={_iso(self.end)}"),
            *("-datasource.queryStep=0", "-replay.disableProgressBar", *(f"-rule={file}" for file in bare)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        self._send("/internal/force_flush", b"")

    def ask(self, query: str) -> list[dict[str, Any]]:
        """At the end."""
        text = urllib.parse.urlencode({"query": query, "time": self.end - EVERY})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{text}", timeout=120) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return found
