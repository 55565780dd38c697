"""`snapshot` and `doctor`: one look at a host, for people, also on a broken one."""

from __future__ import annotations

import json
import time

from gpuhost_exporter.app import App
from gpuhost_exporter.collectors import ALL
from gpuhost_exporter.config import Settings
from gpuhost_exporter.runner import Task
from gpuhost_exporter.sources.launcher import Launcher
from gpuhost_exporter.status import build
from gpuhost_exporter.table import render, table

_GPM_WINDOW = 1.2  # a ratio needs two looks


def snapshot(settings: Settings, launcher: Launcher, timeout: float, *, as_json: bool) -> int:
    """Print what the host tells within the timeout. 1 when nothing could be read at all."""
    app = App(settings, launcher)
    try:
        app.start()
        _wait(app, timeout)
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
            print(json.dumps({"simulated": app.host.simulated or None, "samples": rows}, indent=1))
        else:
            print(render(build(samples)), end="")
        for task in app.runner.tasks:
            if not task.polls:
                print(f"# {task.collector.name}: no answer within {timeout:g} s", flush=True)
        return 0 if any(task.succeeded for task in app.runner.tasks) else 1
    finally:
        app.close()


def doctor(settings: Settings, launcher: Launcher) -> int:
    """Print a line a collector. 1 when one of them fails for a reason that somebody can mend."""
    app = App(settings, launcher)
    try:
        app.start()
        _wait(app, 5.0)
        tasks = {task.collector.name: task for task in app.runner.tasks}
        rows = []
        for kind in ALL:
            task = tasks.get(kind.name)
            if task is None:
                rows.append((kind.name, "off", "", "switched off by configuration or flag"))
                continue
            rows.append((kind.name, *_verdict(task)))
            rows.extend(("", "", "", remark) for remark in task.collector.remarks())
            if kind.privilege and (task.failure or task.collector.remarks()):
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


def _wait(app: App, timeout: float) -> None:
    """Until every collector has polled, the fast ones twice, or the time is up."""
    begin = time.monotonic()
    while time.monotonic() - begin < timeout:
        settled = all(task.polls > (task.interval <= 1) for task in app.runner.tasks)
        if settled and time.monotonic() - begin > _GPM_WINDOW:
            return
        time.sleep(0.05)
