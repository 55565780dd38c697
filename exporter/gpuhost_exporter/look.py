"""`snapshot` and `doctor`: one look at a host, for people, also on a broken one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping

from gpuhost_exporter.app import App
from gpuhost_exporter.collector import Collector
from gpuhost_exporter.collectors import ALL
from gpuhost_exporter.collectors.gpu import UTILIZATION_SOURCE
from gpuhost_exporter.config import Settings
from gpuhost_exporter.latest import Rates, Series
from gpuhost_exporter.runner import Task
from gpuhost_exporter.sources.launcher import Launcher
from gpuhost_exporter.specs import Spec
from gpuhost_exporter.status import RATED, build
from gpuhost_exporter.table import render, table

_APART = 1.0  # seconds


def snapshot(settings: Settings, launcher: Launcher, timeout: float, *, as_json: bool) -> int:
    """Print what the host tells within the timeout. 1 when nothing could be read at all."""
    app = App(settings, launcher)
    try:
        app.start()
        rates = look_twice(app, timeout)
        silent = [task.collector.name for task in app.runner.tasks if not task.polls]
        samples = [*app.runner.samples(), *app.own_samples()]
        if as_json:
            rows = [
                {
                    "name": sample.spec.name,
                    "labels": dict(zip(sample.spec.labels, sample.labels, strict=True)),
                    "value": sample.value,
                }
                for sample in samples
            ]
            document = {"simulated": app.host.simulated or None, "no_answer": silent, "samples": rows}
            print(json.dumps(document, indent=1))
        else:
            print(render(build(samples, rates)), end="")
            for name in silent:
                print(f"{name}: no answer within {timeout:g} s")
        return 0 if any(task.succeeded for task in app.runner.tasks) else 1
    finally:
        app.close()


def doctor(settings: Settings, launcher: Launcher) -> int:
    """Print a line a collector. 1 when one of them fails for a reason that somebody can mend."""
    app = App(settings, launcher)
    try:
        app.start()
        look_twice(app, 5.0)
        tasks = {task.collector.name: task for task in app.runner.tasks}
        rows = []
        for kind in ALL:
            task = tasks.get(kind.name)
            if task is None:
                why = "switched off" if kind.on_by_default else f"switched on with {_switch(kind)}"
                rows.append((kind.name, "off", "", why))
                continue
            rows.append((kind.name, *_verdict(task)))
            remarks = [*task.collector.remarks(), *_profiling(task)]
            rows.extend(("", "", "", remark) for remark in remarks)
            if kind.privilege and (task.failure_kind == "denied" or any(text.endswith("denied") for text in remarks)):
                rows.append(("", "", "", f"granted by: {kind.privilege}"))
        print(table(("collector", "state", "samples", "why"), rows), end="")
        return 1 if any(row[1] in ("denied", "failing", "hung") for row in rows) else 0
    finally:
        app.close()


def _switch(kind: type[Collector]) -> str:
    return kind.switch or f"--collector.{kind.name}"


def _verdict(task: Task) -> tuple[str, str, str]:
    if task.in_flight is not None and not task.polls:
        return "hung", "", "no answer within 5 s"
    if task.failure:
        kind = task.failure_kind
        state = {
            "denied": "denied",
            "absent": "not here",
            "unsupported": "not here",
            "unavailable": "not here",
        }
        return state.get(kind, "failing"), "", task.failure
    count = len(task.snapshot.samples) if task.snapshot else 0
    return "on", str(count), "" if count else "nothing of this kind found"


def _profiling(task: Task) -> Iterator[str]:
    """GPUs that answer, but keep their profiling counters to administrators."""
    for spec, labels, _ in task.snapshot.samples if task.snapshot else ():
        if spec is UTILIZATION_SOURCE and labels[spec.labels.index("gpm")] == "permission":
            yield f"GPU {labels[0]}: profiling (GPM): denied"


def look_twice(app: App, timeout: float, rated: Iterable[Spec] = RATED) -> Mapping[Series, float]:
    """Have every collector poll, and again once a ratio or a rate can be told; the rates. Ends when the time is up."""
    until = time.monotonic() + timeout
    rates = Rates(rated)
    _wait(app, until, dict.fromkeys(app.runner.tasks, 0))
    rates.look(app.runner.snapshots())
    time.sleep(max(0.0, min(_APART, until - time.monotonic())))
    polls = {task: task.polls for task in app.runner.tasks}
    app.runner.hurry()
    _wait(app, until, polls)
    return rates.look(app.runner.snapshots())


def _wait(app: App, until: float, polls: Mapping[Task, int]) -> None:
    """Until every collector has polled more often than that, or the time is up."""
    while time.monotonic() < until and any(task.polls <= polls[task] for task in app.runner.tasks):
        time.sleep(0.02)
