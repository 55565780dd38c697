"""`make demo`: eight simulated hosts that walk through everything, an hour of history, and what watches them.

Runs until Ctrl-C and leaves nothing behind but the hour, which the next demo need not make again (CACHE).
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
from contextlib import ExitStack, suppress
from pathlib import Path

import tomllib

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import stack  # noqa: E402
import surroundings  # noqa: E402
from history import LEFT_OUT, NEXT, record  # noqa: E402

from gpuhost_exporter.clock import SystemClock  # noqa: E402
from gpuhost_exporter.sim import control  # noqa: E402
from gpuhost_exporter.sim.folder import memory  # noqa: E402
from gpuhost_exporter.verify.ending import Ending  # noqa: E402

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
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpuhost-demo"

Scrapes = list[tuple[float, str]]


def lap() -> list[tuple[str, float]]:
    """The tour's stops. Where the driver fails the job goes on: its counters are those of a steady one."""
    tour = tomllib.loads((_SCENARIOS / "tour.toml").read_text(encoding="utf-8"))
    stops = [(stop["scenario"], stop["seconds"]) for stop in tour["stop"]]
    return [("steady" if scenario in LEFT_OUT else scenario, seconds) for scenario, seconds in stops]


def part(begin: int, end: int, names: frozenset[str], folder: str) -> Scrapes:
    """The walk, around and around the tour, from `begin` to `end` seconds, both included."""
    logging.disable(logging.WARNING)  # what goes wrong in a scenario is meant to
    stops = [stop for stop, _ in zip(itertools.cycle(lap()), range(100), strict=False)]
    start = max(0, begin - LEAD)
    found = record(
        stops, host=HOST, wall=WALL, every=EVERY, step=STEP, start=start, end=end + 1, names=names, folder=folder
    )
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


def walks(length: int, ending: Ending) -> Scrapes:
    """The whole walk, by as many workers as there are processors."""
    workers = os.cpu_count() or 1
    bounds = [round(length * number / workers / EVERY) * EVERY for number in range(workers + 1)]
    context = multiprocessing.get_context("spawn")
    with ExitStack() as left:
        with ending.held():
            folder = tempfile.mkdtemp(prefix=f"gpuhost-demo-{os.getpid()}-", dir=memory())
            left.callback(remove, folder, ending)
        pool = left.enter_context(concurrent.futures.ProcessPoolExecutor(workers, context, _be_ended_by_the_demo))
        try:
            with ending.held():
                parts = [pool.submit(part, *ends, read_names(), folder) for ends in itertools.pairwise(bounds)]
            return joined([each.result() for each in parts])
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


def _be_ended_by_the_demo() -> None:
    """A worker that a terminal's signal met would go on with other parts."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def kept(length: int, ending: Ending) -> Scrapes:
    """The walk as an earlier demo left it, or made anew when the exporter or the scenarios have changed."""
    sources = sorted(Path(control.__file__).parents[1].rglob("*.py")) + sorted(_SCENARIOS.glob("*.toml"))
    stamp = hashlib.sha256(b"".join(file.read_bytes() for file in [*sources, HERE / "history.py", HERE / "demo.py"]))
    stamp.update(repr((length, EVERY, STEP, sorted(read_names()))).encode())
    file = CACHE / f"{stamp.hexdigest()}.json"
    if file.exists():
        return [(at, text) for at, text in json.loads(file.read_text(encoding="utf-8"))]
    made = walks(length, ending)
    keep(file, json.dumps(made))
    return made


def keep(file: Path, text: str) -> None:
    """Whole or not at all: half of it, from a full disk or a demo that was ended, would be every later demo's error."""
    part = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        for old in sorted(file.parent.iterdir(), key=os.path.getmtime)[:-1]:
            old.unlink()
        part.write_text(text, encoding="utf-8")
        part.replace(file)
    except OSError as error:
        print(f"The hour is not kept for the next demo: {error}", file=sys.stderr)
    finally:
        with suppress(OSError):
            part.unlink()


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


def hour_before(walk: Scrapes, begin: float, started: float, peer: str) -> Scrapes:
    """What a host told in the hour before `started`, when it began to tell live at the walk's second `begin` + HOUR.
    Not a scrape more, however much later this is put in: of what follows it keeps the books itself.

    `peer`: whom it probes."""
    hour = shifted(walk, begin, started - HOUR - begin, started)
    return [(at, text.replace(f'peer="{NEXT}"', f'peer="{peer}"')) for at, text in hour]


def start_hosts(processes: stack.Processes, begins: dict[str, float]) -> tuple[dict[str, int], dict[str, float]]:
    """The port of each, and when it was started."""
    targets, started = {}, {}
    for number, (name, begin) in enumerate(begins.items(), 1):
        port = stack.free_port()
        folder = processes.folder / name
        folder.mkdir()
        file, configuration, storage = folder / "control.json", folder / "gpuhost-exporter.toml", folder / "state"
        surroundings.configure(configuration, list(begins), name)
        started[name] = time.time()
        surroundings.keep_verify(storage, HOST, number, started[name])
        control.create(str(file), HOST, "tour", Shifted(begin))
        processes.start(
            name,
            [
                sys.executable, "-m", "gpuhost_exporter", "serve", f"--simulate={HOST}:tour",
                f"--simulate.control={file}", "--collector.ledger", f"--web.listen-address=127.0.0.1:{port}",
                f"--config.file={configuration}", f"--storage.path={storage}",
            ],
            {"XDG_RUNTIME_DIR": str(folder), "TMPDIR": str(folder)},
        )  # fmt: skip
        targets[name] = port
    for name, port in targets.items():
        stack.answers(f"http://127.0.0.1:{port}/readyz", processes, name)
    return targets, started


def put_history(prometheus: stack.Prometheus, hosts: dict[str, Scrapes], endpoint_began: float) -> None:
    """What the hosts and the endpoint told before Prometheus starts, and what the rules make of it."""
    first, last = (pick(scrapes[place][0] for scrapes in hosts.values()) for pick, place in ((min, 0), (max, -1)))
    served = [(at, surroundings.requests_served(at - endpoint_began)) for at in range(int(first), int(last), EVERY)]
    file = prometheus.processes.folder / "history.om"
    for job, told in ((stack.JOB, hosts), (stack.ENDPOINTS_JOB, {surroundings.ENDPOINT: served})):
        stack.write_openmetrics(file, told, job)
        prometheus.backfill(file)
    file.unlink()
    prometheus.backfill_rules(first, last, EVERY)


def watch(prometheus: stack.Prometheus) -> None:
    """Start what there is of Prometheus, Alertmanager and Grafana; say what runs where."""
    processes, shown = prometheus.processes, []
    try:
        prometheus.alertmanager = stack.alertmanager(processes)
        shown.append(f"{'Alertmanager':14} http://127.0.0.1:{prometheus.alertmanager}/")
    except stack.Missing as missing:
        print(f"Without Alertmanager: {missing}")
    prometheus.start()
    shown.append(f"{'Prometheus':14} {prometheus.url}/alerts")
    try:
        shown.append(f"{'Grafana':14} http://127.0.0.1:{stack.grafana(processes, prometheus.url)}/")
    except stack.Missing as missing:
        print(f"Without Grafana, whose dashboards are in {HERE.parent}: {missing}")
    print("\n".join(shown), flush=True)


def show(processes: stack.Processes, ending: Ending, ready: Path | None) -> int:
    """Until something ends; what is to be said of it then."""
    length = sum(seconds for _, seconds in lap())
    begins = {
        f"gpu-host-{number + 1}": float(round(length * number / HOSTS / EVERY) * EVERY) for number in range(HOSTS)
    }
    for name in ("prometheus", "promtool"):
        stack.program(name, install="apt-get install prometheus")
    print(f"An hour of history, out of the simulation: a minute the first time, then out of {CACHE} ...", flush=True)
    walk = kept(int(max(begins.values())) + HOUR + EVERY, ending)
    print("Eight simulated hosts ...", flush=True)
    # A host's own figures go on from those that it would have told in the hour before.
    targets, started = start_hosts(processes, {name: begin + HOUR for name, begin in begins.items()})
    endpoint_began = min(started.values()) - HOUR
    endpoints = {surroundings.ENDPOINT: surroundings.serve_endpoint(endpoint_began)}
    for name, port in (targets | endpoints).items():
        print(f"{name:14} http://127.0.0.1:{port}/", flush=True)
    prometheus = stack.Prometheus(processes, targets, endpoints, hasty=True)
    hosts = {
        name: hour_before(walk, begin, started[name], surroundings.peer(list(begins), name))
        for name, begin in begins.items()
    }
    put_history(prometheus, hosts, endpoint_began)
    watch(prometheus)
    print(f"All there. It is in {processes.folder}; Ctrl-C ends and removes it.", flush=True)
    if ready:
        ready.write_text(prometheus.url, encoding="utf-8")
    while True:
        time.sleep(2.0)
        if ended := processes.ended():
            print(f"{ended[0]} has ended:\n{processes.log(ended[0])}", file=sys.stderr)
            return 1


def main(arguments: list[str]) -> int:
    ready = Path(arguments[arguments.index("--ready-file") + 1]) if "--ready-file" in arguments else None
    ending = Ending()
    try:
        with ending, ExitStack() as left:
            with ending.held():
                processes = stack.Processes(Path(tempfile.mkdtemp(prefix="gpuhost-demo-")), ending.held)
                left.callback(remove, processes.folder, ending)
                left.callback(stop, processes, ending)
            return show(processes, ending, ready)
    except stack.Missing as missing:
        print(missing, *stack.in_containers(), sep="\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


def stop(processes: stack.Processes, ending: Ending) -> None:
    with ending.held():
        processes.stop()


def remove(folder: Path | str, ending: Ending) -> None:
    with ending.held():
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
