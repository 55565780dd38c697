"""`make demo`: eight simulated hosts that walk through everything, an hour of history, and what watches them.

Runs until Ctrl-C and leaves nothing behind.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import tomllib

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import stack  # noqa: E402
from history import LEFT_OUT, record  # noqa: E402

from gpuhost_exporter.clock import SystemClock  # noqa: E402
from gpuhost_exporter.sim import control  # noqa: E402

HOSTS = 8
HOUR = 3600
EVERY = 30
STEP = 2
# So long before its part of the walk a worker begins, for the ledger to have seen a job's last checkpoint.
LEAD = 240
# The walk's own time of day at its start; each host's hour is moved to where it belongs.
WALL = 1.0e9
_SCENARIOS = Path(control.__file__).parent / "scenarios"
HOST = "h100x8"

Scrapes = list[tuple[float, str]]


def lap() -> list[tuple[str, float]]:
    """The tour's stops. Where the driver fails the job goes on: its counters are those of a steady one."""
    tour = tomllib.loads((_SCENARIOS / "tour.toml").read_text(encoding="utf-8"))
    stops = [(stop["scenario"], stop["seconds"]) for stop in tour["stop"]]
    return [("steady" if scenario in LEFT_OUT else scenario, seconds) for scenario, seconds in stops]


def part(begin: int, end: int, names: frozenset[str]) -> Scrapes:
    """The walk, around and around the tour, from `begin` to `end` seconds, both included."""
    logging.disable(logging.WARNING)  # what goes wrong in a scenario is meant to
    stops = [stop for stop, _ in zip(itertools.cycle(lap()), range(100), strict=False)]
    start = max(0, begin - LEAD)
    found = record(stops, host=HOST, wall=WALL, every=EVERY, step=STEP, start=start, end=end + 1, names=names)
    return [(second, text) for second, text in found if second >= begin]


def joined(parts: Iterable[Scrapes]) -> Scrapes:
    """One walk of its workers' parts. Each begins with the scrape that the one before ends with, and its ledger has
    counted from another beginning: counters go on from where they were, or rates would count that time twice."""
    found: Scrapes = []
    for piece in parts:
        if not found:
            found += piece
            continue
        before, first = (dict(counters(text)) for _, text in (found[-1], piece[0]))
        ahead = {series: before[series] - value for series, value in first.items() if before.get(series, 0) > value}
        for at, text in piece[1:]:
            moved = {series: value + ahead[series] for series, value in counters(text) if series in ahead}
            lines = (line.rpartition(" ")[0] for line in text.splitlines())
            shown = (
                f"{series} {moved[series]!r}" if series in moved else line
                for series, line in zip(lines, text.splitlines(), strict=True)
            )
            found.append((at, "\n".join(shown)))
    return found


def counters(text: str) -> Iterator[tuple[str, float]]:
    """Series and value of the counters and histograms of an exposition."""
    kind = ""
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            kind = line.rpartition(" ")[2]
        elif not line.startswith("#") and kind in ("counter", "histogram"):
            series, _, value = line.rpartition(" ")
            yield series, float(value)


def read_names() -> frozenset[str]:
    """The metrics that the dashboards and the rules read: no need to keep the history of others."""
    texts = [file.read_text(encoding="utf-8") for file in [*HERE.parent.glob("*.json"), *stack.RULES]]
    found = stack.names_in("\n".join(texts))
    return frozenset(found | {name.removesuffix(f"_{end}") for name in found for end in ("bucket", "sum", "count")})


def walks(length: int) -> Scrapes:
    """The whole walk, by as many workers as there are processors."""
    workers = os.cpu_count() or 1
    bounds = [round(length * number / workers / EVERY) * EVERY for number in range(workers + 1)]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
        parts = [pool.submit(part, *ends, read_names()) for ends in itertools.pairwise(bounds)]
        try:
            return joined([each.result() for each in parts])
        except KeyboardInterrupt:
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


def kept(length: int) -> Scrapes:
    """The walk as an earlier demo left it, or made anew when the exporter or the scenarios have changed."""
    sources = sorted(Path(control.__file__).parents[1].rglob("*.py")) + sorted(_SCENARIOS.glob("*.toml"))
    stamp = hashlib.sha256(b"".join(file.read_bytes() for file in [*sources, HERE / "history.py", HERE / "demo.py"]))
    stamp.update(repr((length, EVERY, STEP, sorted(read_names()))).encode())
    file = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gpuhost-demo" / f"{stamp.hexdigest()}.json"
    if not file.exists():
        made = walks(length)
        file.parent.mkdir(parents=True, exist_ok=True)
        for old in sorted(file.parent.glob("*.json"), key=os.path.getmtime)[:-1]:
            old.unlink()
        file.write_text(json.dumps(made), encoding="utf-8")
    return [(at, text) for at, text in json.loads(file.read_text(encoding="utf-8"))]


def shifted(scrapes: Scrapes, begin: float, began: float, end: float) -> Scrapes:
    """The walk from its second `begin` to the wall time `end`, as if begun at the wall time `began`; times of day in it
    move along."""
    found = []
    for at, text in scrapes:
        if begin <= at <= end - began:
            lines = []
            for line in text.splitlines():
                name = line.partition("{")[0].partition(" ")[0]
                if name.endswith("timestamp_seconds") or name == "gpuhost_boot_time_seconds":
                    series, _, value = line.rpartition(" ")
                    line = f"{series} {float(value) + began - WALL!r}"  # noqa: PLW2901
                lines.append(line)
            found.append((began + at, "\n".join(lines)))
    return found


class Shifted(SystemClock):
    """Of a host that began its tour so long ago."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def now(self) -> float:
        return super().now() - self._seconds

    def wall(self) -> float:
        return super().wall() - self._seconds


def hour_before(walk: Scrapes, begin: float, started: float) -> Scrapes:
    """What a host told in the hour before `started`, when it began to tell live at the walk's second `begin` + HOUR.
    Not a scrape more, however much later this is put in: of what follows it keeps the books itself."""
    return shifted(walk, begin, started - HOUR - begin, started)


def start_hosts(processes: stack.Processes, begins: list[float]) -> tuple[dict[str, int], dict[str, float]]:
    """The port of each, and when it was started."""
    targets, started = {}, {}
    for number, begin in enumerate(begins, 1):
        name, port = f"gpu-host-{number}", stack.free_port()
        folder = processes.folder / name
        folder.mkdir()
        file = folder / "control.json"
        started[name] = time.time()
        control.create(str(file), HOST, "tour", Shifted(begin))
        processes.start(
            name,
            [
                sys.executable, "-m", "gpuhost_exporter", "serve", f"--simulate={HOST}:tour",
                f"--simulate.control={file}", "--collector.ledger", f"--web.listen-address=127.0.0.1:{port}",
            ],
            {"XDG_RUNTIME_DIR": str(folder), "XDG_STATE_HOME": str(folder), "TMPDIR": str(folder)},
        )  # fmt: skip
        targets[name] = port
    for name, port in targets.items():
        stack.answers(f"http://127.0.0.1:{port}/readyz", processes, name)
    return targets, started


def put_history(prometheus: stack.Prometheus, hosts: dict[str, Scrapes]) -> None:
    """What the hosts told before Prometheus starts, and what the rules make of it."""
    first, last = (pick(scrapes[place][0] for scrapes in hosts.values()) for pick, place in ((min, 0), (max, -1)))
    file = prometheus.processes.folder / "history.om"
    stack.write_openmetrics(file, hosts)
    prometheus.backfill(file)
    file.unlink()
    prometheus.backfill_rules(first, last, EVERY)


def watch(prometheus: stack.Prometheus) -> None:
    """Start what there is of Prometheus, Alertmanager and Grafana; say what runs where."""
    processes, shown = prometheus.processes, []
    try:
        prometheus.alertmanager = stack.alertmanager(processes)
        shown.append(f"{'Alertmanager':13} http://127.0.0.1:{prometheus.alertmanager}/")
    except stack.Missing as missing:
        print(f"Without Alertmanager: {missing}")
    prometheus.start()
    shown.append(f"{'Prometheus':13} {prometheus.url}/alerts")
    try:
        shown.append(f"{'Grafana':13} http://127.0.0.1:{stack.grafana(processes, prometheus.url)}/")
    except stack.Missing as missing:
        print(f"Without Grafana, whose dashboards are in {HERE.parent}: {missing}")
    print("\n".join(shown), flush=True)


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    length = sum(seconds for _, seconds in lap())
    begins = [float(round(length * number / HOSTS / EVERY) * EVERY) for number in range(HOSTS)]
    folder = Path(tempfile.mkdtemp(prefix="gpuhost-demo-"))
    processes = stack.Processes(folder)
    try:
        for name in ("prometheus", "promtool"):
            stack.program(name, install="apt-get install prometheus")
        print("An hour of history, out of the simulation: a minute the first time, then seconds ...", flush=True)
        walk = kept(int(max(begins)) + HOUR + EVERY)
        print("Eight simulated hosts ...", flush=True)
        # A host's own figures go on from those that it would have told in the hour before.
        targets, started = start_hosts(processes, [begin + HOUR for begin in begins])
        print("\n".join(f"{name:13} http://127.0.0.1:{port}/" for name, port in targets.items()), flush=True)
        prometheus = stack.Prometheus(processes, targets, hasty=True)
        told = zip(started.items(), begins, strict=True)
        put_history(prometheus, {name: hour_before(walk, begin, at) for (name, at), begin in told})
        watch(prometheus)
        print(f"All there. It is in {folder}; Ctrl-C ends and removes it.", flush=True)
        if "--ready-file" in arguments:
            Path(arguments[arguments.index("--ready-file") + 1]).write_text(prometheus.url, encoding="utf-8")
        while True:
            time.sleep(2.0)
            if ended := processes.ended():
                print(f"{ended[0]} has ended:\n{processes.log(ended[0])}", file=sys.stderr)
                return 1
    except stack.Missing as missing:
        print(missing, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        processes.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
