"""`snapshot` and `doctor`: one look at a host, for people, also on a broken one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from gpuhost_exporter.app import App
from gpuhost_exporter.collectors import ALL
from gpuhost_exporter.collectors.gpu import UTILIZATION_SOURCE
from gpuhost_exporter.config import Settings
from gpuhost_exporter.latest import Rates
from gpuhost_exporter.runner import Task
from gpuhost_exporter.sources.launcher import Launcher
from gpuhost_exporter.specs import Sample
from gpuhost_exporter.status import RATED, build
from gpuhost_exporter.table import render, table


def snapshot(settings: Settings, launcher: Launcher, timeout: float, *, as_json: bool) -> int:
    """Print what the host tells within the timeout. 1 when nothing could be read at all."""
    app = App(settings, launcher)
    try:
        app.start()
        rates = Rates(RATED)
        until = time.monotonic() + timeout
        _wait(app, until, 1)
        rates.look(_snapshots(app))
        app.runner.hurry()  # a subject that joins others was perhaps read before them
        _wait(app, until, 3, slow_polls=2)
        samples = [*app.runner.samples(), *app.own_samples()]
        silent = [task.collector.name for task in app.runner.tasks if not task.polls]
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
            print(render(build(samples, rates.look(_snapshots(app)))), end="")
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
        _wait(app, time.monotonic() + 5.0, 2)
        tasks = {task.collector.name: task for task in app.runner.tasks}
        rows = []
        for kind in ALL:
            task = tasks.get(kind.name)
            if task is None:
                rows.append((kind.name, "off", "", "switched off by configuration or flag"))
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


def _wait(app: App, until: float, polls: int, slow_polls: int = 1) -> None:
    """Until the collectors have polled so often, those that poll each second and the others, or the time is up."""
    while time.monotonic() < until:
        if all(task.polls >= (polls if task.interval <= 1 else slow_polls) for task in app.runner.tasks):
            return
        time.sleep(0.02)


def _snapshots(app: App) -> list[tuple[float, tuple[Sample, ...]]]:
    return [(task.snapshot.at, task.snapshot.samples) for task in app.runner.tasks if task.snapshot]
