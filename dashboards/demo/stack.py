"""Prometheus, Alertmanager and Grafana as they are installed, in a folder of their own, with history put in before."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RULES = sorted((ROOT / "alerts" / "rules").glob("*.yml"))
SCRAPE_SECONDS = 15
JOB = "gpuhost-demo"
ENDPOINTS_JOB = "vllm"
# Where Grafana keeps its own files, by who packaged it.
_GRAFANA_HOMES = ("/usr/share/grafana", "/usr/local/share/grafana", "/opt/homebrew/opt/grafana/share/grafana")
_START_SECONDS = 60.0


class Missing(Exception):
    """A program that is not installed; the message says what to install."""


def program(*names: str, install: str) -> str:
    for name in names:
        if found := shutil.which(name):
            return found
    raise Missing(f"{names[0]} is not installed: {install}")


def in_containers() -> Iterator[str]:
    """What there is to start instead, with a container engine: not the demo."""
    for engine in filter(shutil.which, ("docker", "podman")):
        yield (
            f"Or one host with all that watches it: {engine} compose -f {ROOT / 'deploy' / 'compose.yaml'} up -d; "
            "the file says how to simulate it."
        )
        return


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@dataclass(slots=True)
class Processes:
    """What was started, to be ended in the opposite order. `held`: within it nothing breaks off a start, which would
    leave behind a process that is not known yet."""

    folder: Path
    held: Callable[[], AbstractContextManager[None]] = nullcontext
    running: list[tuple[str, subprocess.Popen[bytes]]] = field(default_factory=list)

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        with self.held(), (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(environment or {})},
                start_new_session=True,  # Ctrl-C is for the demo, which ends them in order
            )
            self.running.append((name, process))

    def ended(self) -> list[str]:
        return [name for name, process in self.running if process.poll() is not None]

    def stop(self, name: str | None = None) -> None:
        for started, process in reversed(self.running):
            if name in (None, started) and process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for started, process in reversed(self.running):
            if name in (None, started):
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        self.running = [each for each in self.running if name not in (None, each[0])]

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-2000:]


def answers(url: str, processes: Processes, name: str) -> None:
    """Wait until the program answers; its log in the error when it ends before."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310
                return
        except OSError:
            if name in processes.ended() or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not start:\n{processes.log(name)}") from None
            time.sleep(0.1)


def _of_instance(label: str) -> dict[str, Any]:
    return {
        "source_labels": [label, "instance"],
        "regex": "(.+);(.+)",
        "target_label": label,
        "replacement": "$1 of $2",
    }


@dataclass(slots=True)
class Prometheus:
    processes: Processes
    targets: Mapping[str, int]  # instance -> port
    endpoints: Mapping[str, int] = field(default_factory=dict)  # the same, of inference
    port: int = field(default_factory=free_port)
    alertmanager: int | None = None
    rules: Sequence[Path] = tuple(RULES)
    every: int = SCRAPE_SECONDS  # scrapes and evaluates
    hasty: bool = False  # evaluates all rules that often, also those with an interval of their own
    own_jobs: bool = False  # simulated hosts all run the same job: tells one for each

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def data(self) -> Path:
        return self.processes.folder / "prometheus"

    def start(self, lookback_ms: int = 60_000, options: Sequence[str] = ()) -> None:
        """`lookback_ms`: how old a sample may be to count as the present one. `options`: others of Prometheus."""
        binary = program("prometheus", install="apt-get install prometheus")
        configuration: dict[str, Any] = {
            "global": {"scrape_interval": f"{self.every}s", "evaluation_interval": f"{self.every}s"},
            "rule_files": [str(file) for file in (self._in_haste() if self.hasty else self.rules)],
            "scrape_configs": [
                {
                    "job_name": job,
                    "metric_relabel_configs": [_of_instance("exported_job"), _of_instance("run")] * self.own_jobs,
                    "static_configs": [
                        {"targets": [f"127.0.0.1:{port}"], "labels": {"instance": instance, "cluster": "demo"}}
                        for instance, port in targets.items()
                    ],
                }
                for job, targets in ((JOB, self.targets), (ENDPOINTS_JOB, self.endpoints))
            ],
        }
        if self.alertmanager is not None:
            configuration["alerting"] = {
                "alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{self.alertmanager}"]}]}]
            }
        file = self.processes.folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(configuration), encoding="utf-8")
        self.processes.start(
            "prometheus",
            [
                binary,
                f"--config.file={file}",
                f"--storage.tsdb.path={self.data}",
                f"--web.listen-address=127.0.0.1:{self.port}",
                "--storage.tsdb.retention.time=40d",
                # Samples that were put in carry no mark where their series ends.
                f"--query.lookback-delta={lookback_ms}ms",
                *options,
            ],
        )
        answers(f"{self.url}/-/ready", self.processes, "prometheus")

    def stop(self) -> None:
        self.processes.stop("prometheus")

    def _in_haste(self) -> Iterator[Path]:
        """Rules that read what is recorded every few minutes would mostly find nothing within a short lookback."""
        for file in self.rules:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
            for group in content["groups"]:
                group.pop("interval", None)
            copy = self.processes.folder / file.name
            copy.write_text(yaml.safe_dump(content), encoding="utf-8")
            yield copy

    def backfill(self, openmetrics: Path) -> None:
        """Put samples in before it starts."""
        _promtool("tsdb", "create-blocks-from", "openmetrics", str(openmetrics), str(self.data))

    def backfill_rules(self, start: float, end: float, step: int) -> None:
        """Evaluate the recording rules over what was put in, `step` seconds apart. Those that read others' results
        come after them."""
        for depth, groups in enumerate(_by_depth()):
            file = self.processes.folder / f"rules-{depth}.yml"
            file.write_text(yaml.safe_dump({"groups": groups}), encoding="utf-8")
            self.start(lookback_ms=1000 * step - 1)  # of two samples in a row always one
            try:
                _promtool(
                    "tsdb", "create-blocks-from", "rules", f"--url={self.url}", f"--start={start:.0f}",
                    f"--end={end:.0f}", f"--eval-interval={step}s", f"--output-dir={self.data}", str(file),
                )  # fmt: skip
            finally:
                self.stop()


def alertmanager(processes: Processes, file: Path = ROOT / "alerts" / "alertmanager.yml") -> int:
    binary = program("alertmanager", "prometheus-alertmanager", install="apt-get install prometheus-alertmanager")
    port = free_port()
    processes.start(
        "alertmanager",
        [
            binary, f"--config.file={file}", f"--storage.path={processes.folder / 'alertmanager'}",
            f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=",
        ],
    )  # fmt: skip
    answers(f"http://127.0.0.1:{port}/-/ready", processes, "alertmanager")
    return port


def grafana(processes: Processes, prometheus: str) -> int:
    """With the dashboards provisioned from their folder, and everybody allowed to look."""
    binary = program("grafana", "grafana-server", install="https://grafana.com/grafana/download")
    home = next((each for each in _GRAFANA_HOMES if Path(each).is_dir()), None)
    if home is None:
        raise Missing(f"Grafana's own files are in none of {', '.join(_GRAFANA_HOMES)}")
    port = free_port()
    provisioning = processes.folder / "grafana" / "provisioning"
    source = {"name": "Prometheus", "type": "prometheus", "url": prometheus, "access": "proxy", "isDefault": True}
    source["jsonData"] = {"timeInterval": f"{SCRAPE_SECONDS}s"}
    provider = {"name": "gpuhost", "type": "file", "options": {"path": str(ROOT / "dashboards")}}
    for kind, content in (("datasources", {"datasources": [source]}), ("dashboards", {"providers": [provider]})):
        (provisioning / kind).mkdir(parents=True)
        (provisioning / kind / "gpuhost.yml").write_text(yaml.safe_dump({"apiVersion": 1, **content}), encoding="utf-8")
    server = [binary, "server"] if os.path.basename(binary) == "grafana" else [binary]
    processes.start(
        "grafana",
        [*server, f"--homepath={home}"],
        {
            "GF_PATHS_DATA": str(processes.folder / "grafana"),
            "GF_PATHS_LOGS": str(processes.folder / "grafana"),
            "GF_PATHS_PROVISIONING": str(provisioning),
            "GF_SERVER_HTTP_ADDR": "127.0.0.1",
            "GF_SERVER_HTTP_PORT": str(port),
            "GF_AUTH_ANONYMOUS_ENABLED": "true",
            "GF_ANALYTICS_REPORTING_ENABLED": "false",
            "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
            "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": str(ROOT / "dashboards" / "fleet.json"),
        },
    )
    answers(f"http://127.0.0.1:{port}/api/health", processes, "grafana")
    return port


def write_openmetrics(file: Path, hosts: Mapping[str, Iterable[tuple[float, str]]], job: str = JOB) -> None:
    """`hosts`: instance -> wall time and text of each scrape, in the order of time."""
    with file.open("w", encoding="utf-8") as out:
        for instance, scrapes in hosts.items():
            target = f'cluster="demo",instance="{instance}",job="{job}"'
            for wall, text in scrapes:
                out.writelines(with_target(text, target, f" {wall:.3f}\n"))
        out.write("# EOF\n")


_OWN_JOB = re.compile(r'(?<=[{,])job="')


def with_target(text: str, target: str, end: str) -> Iterator[str]:
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        series, _, value = line.rpartition(" ")
        name, brace, labels = series.partition("{")
        # As Prometheus does with a label that is its own.
        labels = _OWN_JOB.sub('exported_job="', brace + labels)[1:]
        yield f"{name}{{{target},{labels} {value}{end}" if brace else f"{name}{{{target}}} {value}{end}"


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"[a-z]+:gpuhost_\w+:\w+|gpuhost_\w+", expression))


def _rules() -> list[dict[str, Any]]:
    found = []
    for file in RULES:
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]:
            found += [rule for rule in group["rules"] if "record" in rule]
    return found


def _by_depth() -> list[list[dict[str, Any]]]:
    left = _rules()
    levels = []
    while left:
        open_names = {rule["record"] for rule in left}
        ready = [rule for rule in left if not names_in(rule["expr"]) & open_names]
        levels.append([{"name": "demo", "rules": ready}])
        left = [rule for rule in left if rule not in ready]
    return levels


def _promtool(*arguments: str) -> None:
    binary = program("promtool", install="apt-get install prometheus")
    done = subprocess.run(  # noqa: S603
        [binary, *arguments], capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode:
        raise RuntimeError(f"promtool {' '.join(arguments[:3])}: {done.stdout[-500:]}{done.stderr[-1500:]}")
